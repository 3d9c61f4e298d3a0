"""Runs of ticks, and how even periods were."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vla_runtime.control.trace import Trace, runs


@given(st.sets(st.integers(0, 60)))
def test_runs_say_every_tick_once(ticks):
    found = runs(sorted(ticks))
    assert [tick for first, last in found for tick in range(first, last + 1)] == sorted(ticks)
    assert all(after[0] > before[1] + 1 for before, after in itertools.pairwise(found))


def test_periods_that_are_too_long_or_too_short_are_errors():
    trace = Trace(begins=[0.0, 0.05, 0.11, 0.15])
    np.testing.assert_allclose(trace.period_errors(0.05), [0.0, 0.01, 0.01], atol=1e-12)
    assert Trace().period_errors(0.05) == []
    assert Trace(held_at=[1, 2, 5], seams=[3]).timeline() == {
        "held": [[1, 2], [5, 5]], "safety": [], "limits": [], "seams": [[3, 3]], "chunks": [],
    }  # fmt: skip
