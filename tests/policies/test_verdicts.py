"""What figures of ways to decode say."""

from __future__ import annotations

import pytest

from policies.judging import OTHER_NOISE
from policies.verdicts import episodes_needed


def rows(low, high):
    plain = {"variant": "plain", "expert_error": 0.05, "worse_than_plain_interval": (0.0, 0.0)}
    return [plain, {"variant": OTHER_NOISE, "expert_error": 0.05, "worse_than_plain_interval": (low, high)}]


@pytest.mark.parametrize(
    ("low", "high", "needed"), [(-0.001, 0.001, None), (-0.002, 0.002, 400), (-0.0005, 0.0011, 101), (-0.9, 0.0, None)]
)
def test_a_tolerance_that_another_noise_breaks_asks_for_more_episodes(low, high, needed):
    """Of 0.05 two percent are 0.001; half as wide an interval takes four times as many."""
    assert episodes_needed(rows(low, high), 100, 0.02) == needed
    assert episodes_needed(rows(low, high)[:1], 100, 0.02) is None
    assert episodes_needed(rows(low, high), 100, 0.0) is None
