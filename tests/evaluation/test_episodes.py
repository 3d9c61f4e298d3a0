"""Rows of episodes that are driven with a planner beside the loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_runtime.compose import BadArguments, load
from vla_runtime.evaluation.episodes import EpisodeRunner
from vla_runtime.evaluation.folder import Job


def row(*options):
    runner = EpisodeRunner(load("rollout", ["env=reach", "env.size=16", "policy=expert", *options]), "none", Path("no"))
    (latency,) = runner.facts["latencies"]
    found = runner(Job(0, 0, latency))
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


def test_in_step_it_stands_while_it_thinks():
    steady, stood = row(), row("loop.latency=0.1")
    assert stood["success"]
    assert stood["delay"] == pytest.approx(0.1)
    # At every question, and nothing of what it was doing goes on meanwhile.
    assert stood["held"] == 2 * stood["plans"]
    assert stood["steps"] == pytest.approx(steady["steps"] + stood["held"], abs=stood["held"] // 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["loop.latency=-1"], "expected seconds from 0 on"),
        (["loop.latency=[0,0.1,0.0]"], "all with different names"),
        (["loop.latency=[]"], "expected at least one"),
        (["loop.join=glue"], "loop.join: expected one of newest, prefix, blend, ensemble, adaptive, got 'glue'"),
        (["loop.join=prefix"], "expected a policy that takes committed rows, got"),
    ],
)
def test_loops_that_cannot_be_are_refused(options, message):
    with pytest.raises(BadArguments, match=message):
        row("loop=async", *options)
