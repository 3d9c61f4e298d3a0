"""Recorded actions through the whole line end where they were recorded to end."""

from __future__ import annotations

import pytest
from playing import runner

from vla_runtime import collect as command
from vla_runtime.compose import load
from vla_runtime.evaluation.folder import Job


def recorded(tmp_path, *options):
    out = tmp_path / "data"
    command.collect(load("collect", ["env=reach", "episodes=3", "workers=1", "style=multi", f"out={out}", *options]))
    return out


def replaying(data, *options):
    return runner("env=reach", "policy=replay", f"policy.data={data}", *options)


@pytest.mark.parametrize("replan", [1, 5])
def test_a_replay_repeats_every_episode(tmp_path, replan):
    data = recorded(tmp_path)
    play = replaying(data, "seed=10000", f"loop.replan={replan}")
    for task in (0, 1):
        for episode in range(3):
            row = play(Job(task, episode))
            assert (row["success"], row["init_seen"], row["error"]) == (True, True, None)


def test_an_episode_that_was_not_recorded_is_an_error_in_its_row(tmp_path):
    play = replaying(recorded(tmp_path), "seed=10000")
    row = play(Job(0, 7))
    assert row["reason"] == "error"
    assert "expected an episode that began with seed" in row["error"]


def test_answers_to_pushes_cannot_be_replayed(tmp_path):
    with pytest.raises(ValueError, match="recover=false"):
        replaying(recorded(tmp_path, "recover=true"))
