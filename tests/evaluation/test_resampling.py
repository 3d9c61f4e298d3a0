"""Bootstrap intervals: against scipy's, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vla_runtime.evaluation.resampling import bootstrap_interval


@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_intervals_are_those_of_scipy(statistic):
    values = np.random.default_rng(0).gamma(2, size=80)
    low, high = bootstrap_interval(values, statistic, resamples=20000)
    wanted = stats.bootstrap((values,), statistic, method="percentile", n_resamples=20000, rng=1).confidence_interval
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=0.02)
    assert low < statistic(values) < high


def test_they_repeat_themselves_and_need_values():
    values = np.arange(5.0)
    assert bootstrap_interval(values, np.mean) == bootstrap_interval(values, np.mean)
    assert bootstrap_interval(np.ones(3), np.median) == (1, 1)
    for wrong in (np.ones(0), np.ones((2, 2))):
        with pytest.raises(ValueError, match="expected at least one value"):
            bootstrap_interval(wrong, np.mean)


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(1)
    found = [bootstrap_interval(rng.normal(size=60), np.mean, resamples=400) for _ in range(200)]
    assert 0.88 <= np.mean([low <= 0 <= high for low, high in found]) <= 0.99
