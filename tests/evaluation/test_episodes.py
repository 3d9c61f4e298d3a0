"""Rows of episodes that are driven with a planner beside the loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_runtime.compose import BadArguments, load
from vla_runtime.evaluation.episodes import EpisodeRunner


def row(*options):
    runner = EpisodeRunner(load("rollout", ["env=reach", "env.size=16", "policy=expert", *options]), "none", Path("no"))
    found = runner((0, 0))
    runner.close()
    return found


def test_without_latency_a_planner_beside_the_loop_changes_nothing():
    steady, beside = row(), row("loop=async")
    assert beside["loop"]["mode"] == "async"
    for name in ("success", "steps", "plans", "progress", "initial_state", "held"):
        assert steady[name] == beside[name]


def test_latency_costs_time_and_is_in_the_row():
    late = row("loop=async", "loop.latency=0.25")
    assert late["loop"]["latency"] == 0.25
    assert late["held"] >= 5  # it stands until the first chunk is there
    assert late["steps"] > row()["steps"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["loop.latency=-1"], "expected seconds from 0 on"),
        (["loop.join=glue"], "loop.join: expected one of newest, prefix, blend, ensemble, adaptive, got 'glue'"),
        (["loop.join=prefix"], "expected a policy that takes committed rows, got"),
    ],
)
def test_loops_that_cannot_be_are_refused(options, message):
    with pytest.raises(BadArguments, match=message):
        row("loop=async", *options)
