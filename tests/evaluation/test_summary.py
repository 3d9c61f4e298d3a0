from __future__ import annotations

import pytest

from vla_runtime.evaluation.folder import Job
from vla_runtime.evaluation.summary import by_latency, repeated


def late(latency, success=True, steps=60, delay=0.1):
    loop = {"latency": latency, "rate_hz": 20.0}
    return {"task": 0, "episode": 0, "success": success, "steps": steps, "delay": delay, "loop": loop}


def test_success_and_throughput_against_latency():
    rows = [late(0.2, False, 120), late(0.2, True, 60), late(0.0, True, 40, 0.0), late(0.0, True, 20, 0.0)]
    jobs = [Job(0, episode, latency) for latency in (0.0, 0.2) for episode in range(2)]
    still, slow = by_latency(rows, jobs)
    assert (still["latency"], still["successes"], still["success_rate"], still["delay"]) == (0.0, 2, 1.0, 0.0)
    assert still["per_minute"] == pytest.approx(2 / (60 / 20 / 60))
    assert (slow["successes"], slow["per_minute"]) == (1, pytest.approx(1 / (180 / 20 / 60), rel=1e-5))
    assert slow["ci95"] == pytest.approx([0.094531, 0.905469])
    # Episodes that are missing count, as everywhere.
    assert by_latency(rows, 2 * jobs)[1]["success_rate"] == 0.25
    assert by_latency(rows[:2], jobs[2:]) == []
    # Also where none of a latency has been played yet.
    assert [one["successes"] for one in by_latency(rows[:2], jobs)] == [0, 1]


def test_states_that_come_again_are_counted():
    """LIBERO stores fifty a task; an interval over a hundred episodes would take them for independent."""
    rows = [
        {**late(latency), "initial_state": state} for latency in (0.0, 0.2) for state in ("a", "b", "a", None, None)
    ]
    assert repeated(rows) == 2
    assert repeated(rows[:2]) == 0
