"""A package from outside takes part by name, with no edit here: the README's plug-in example."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "my_robot"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The example, installed where only these tests look."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, folder / "source")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps",
         "--no-build-isolation", "--target", str(folder / "site"), str(folder / "source")],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return {**os.environ, "PYTHONPATH": str(folder / "site")}


def run(environment, *arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=environment)


def test_by_name_from_rollout(environment, tmp_path):
    done = run(
        environment, "-m", "vla_runtime.rollout", "env=slider", "policy=nudge", "episodes=4", "env.goal=0.3",
        "video=all", f"out={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["env"], summary["policy"], summary["success_rate"]) == ("slider", "nudge", 1.0)
    assert (tmp_path / "videos" / "task00_episode003.mp4").stat().st_size > 1000


def test_wrong_options_of_a_plugin_are_named(environment, tmp_path):
    rollout = ("-m", "vla_runtime.rollout", f"out={tmp_path}", "env=slider")
    done = run(environment, *rollout, "policy=nudge", "policy.sped=1")
    assert done.returncode == 2
    assert "policy.speed" in json.loads(done.stdout)["error"]
    done = run(environment, *rollout, "policy=expert")
    assert done.returncode == 1
    assert "no scripted expert" in json.loads(done.stdout)["error"]


def test_it_conforms(environment):
    script = (
        "from vla_runtime.testing import check_env, check_policy\n"
        "from my_robot.slider import Slider\nfrom my_robot.nudge import Nudge\n"
        "check_env(Slider()); check_policy(Nudge(Slider().spec), Slider().spec)\n"
    )
    done = run(environment, "-c", script)
    assert done.returncode == 0, done.stderr


def test_a_head_is_trained_by_name_and_loaded_only_when_the_caller_names_it(environment, tmp_path):
    done = run(
        environment, "-m", "vla_runtime.collect", "env=reach", "env.size=16", "episodes=3", "workers=1",
        f"out={tmp_path / 'data'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = run(
        environment, "-m", "vla_runtime.finetune", f"data={tmp_path / 'data'}", "head=waypoints", "tokenizer=none",
        "head.count=4", "steps=3", "batch_size=4", "horizon=8", "executed=8", "max_committed=2",
        "backbone.image_size=16", "backbone.width=32", "backbone.heads=2", "backbone.decoder_depth=1",
        f"out={tmp_path / 'mine'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rollout = [
        "-m", "vla_runtime.rollout", "env=reach", "env.size=16", "episodes=1", "video=none",
        f"policy={tmp_path / 'mine'}", f"out={tmp_path / 'run'}",
    ]  # fmt: skip
    done = run(environment, *rollout)
    assert done.returncode == 1
    assert "'waypoints'; nothing was imported or run" in json.loads(done.stdout)["error"]
    done = run(environment, *rollout, "policy.heads={waypoints: my_robot.waypoints.Waypoints}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["errors"] == 0
