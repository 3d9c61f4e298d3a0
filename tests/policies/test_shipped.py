"""Policies in the box: each has a config of its own, is small, and loads by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
from playing import runner

from policies import shipped
from policies.checkpoint import CheckpointError, load_policy
from policies.vla import VLAPolicy
from vla_runtime.compose import describe, load, options
from vla_runtime.evaluation.folder import Job

MB = 1e6


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_they_are_small_enough_to_ship():
    sizes = {name: size(shipped.folder_of(name)) for name in shipped.names()}
    assert all(one <= 12 * MB for one in sizes.values()), sizes
    assert sum(sizes.values()) <= 100 * MB


@pytest.mark.parametrize("name", shipped.names())
def test_each_loads_and_has_a_config_that_fits_its_environment(name):
    policy = VLAPolicy.from_pretrained(name)
    assert policy.spec.name == name
    assert (policy.spec.horizon, policy.spec.executed, policy.spec.max_committed) == (16, 8, 8)
    assert policy.spec.seen, "which initial states were learned is not known"
    assert name in options("policy")
    config = load("rollout", [f"policy={name}"])
    assert config["policy"]["folder"] == name
    assert config["choices"]["policy"] == name
    assert config["env"]["control"] == "absolute"
    assert load("rollout", [f"policy={name}", "env.control=delta"])["env"]["control"] == "delta"
    assert f"policy={name}" in describe("rollout")


def test_a_folder_of_ones_own_is_meant_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.folder_of("elsewhere") == Path("elsewhere")
    for name in shipped.names():
        assert shipped.folder_of(f"./{name}") == Path(name)
        assert shipped.folder_of(name).is_absolute()


def test_a_name_that_is_not_there_lists_those_that_are():
    with pytest.raises(CheckpointError, match="expected a checkpoint folder") as error:
        load_policy("nano_lift_beest")
    assert all(name in str(error.value) for name in shipped.names())


@pytest.mark.usefixtures("needs_sim")
@pytest.mark.parametrize("name", ["nano_lift_beast", "nano_lift_discrete_diffusion"])
def test_on_lift_it_lifts(name):
    """Initial states it was not trained on; figures over a hundred episodes are the README's."""
    play = runner("env=lift", f"policy={name}", "seed=4")
    rows = [play(Job(0, episode)) for episode in range(4)]
    play.close()
    assert not any(row["init_seen"] for row in rows)
    assert sum(row["success"] for row in rows) >= 3, [row["reason"] for row in rows]


@pytest.mark.usefixtures("needs_sim")
def test_it_grasps_a_cube_that_moves():
    """It sees how fast the cube goes, and meets it although its chunks come late."""
    play = runner("env=lift_moving", "policy=nano_lift_moving_beast", "loop=async", "loop.join=prefix", "seed=4")
    rows = [play(Job(0, episode, 0.1)) for episode in range(4)]
    play.close()
    assert play.facts["common"]["env"] == "lift_moving"
    assert not any(row["init_seen"] for row in rows)
    assert sum(row["success"] for row in rows) >= 2, [row["reason"] for row in rows]


@pytest.mark.usefixtures("needs_libero")
@pytest.mark.parametrize(
    ("name", "episodes"), [("nano_libero_object_beast", 2), ("nano_libero_object_discrete_diffusion", 1)]
)
def test_on_libero_it_takes_the_object_it_is_told_to(name, episodes):
    """Two of the ten; figures over all of them are the README's."""
    play = runner("env=libero_object", f"policy={name}")
    rows = [play(Job(task, episode)) for task in (2, 8) for episode in range(episodes)]
    play.close()
    assert not any(row["init_seen"] for row in rows)
    assert sum(row["success"] for row in rows) >= len(rows) - 1, [row["reason"] for row in rows]


@pytest.mark.usefixtures("needs_sim")
def test_blindfolded_it_does_not():
    shown = ["policy=deprived", "policy.of=nano_lift_beast", "policy.without=images", "env.control=absolute"]
    play = runner("env=lift", "env.max_steps=60", *shown)
    rows = [play(Job(0, episode)) for episode in range(3)]
    play.close()
    assert [row["error"] for row in rows] == [None] * 3
    assert sum(row["success"] for row in rows) <= 1


def test_the_default_rollout_is_a_shipped_policy():
    assert load("rollout")["choices"]["policy"] in shipped.names()
