"""Collected sets: the same however they come about, resumed and refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from collecting import SMALL, collected

from envs.reach import Reach
from vla_runtime.collect import collect
from vla_runtime.compose import load
from vla_runtime.control.clock import SystemClock, VirtualClock
from vla_runtime.control.loop import run
from vla_runtime.data.lerobot import Dataset, DatasetError
from vla_runtime.data.unfinished import PARTS
from vla_runtime.disk import locked
from vla_runtime.evaluation.episodes import begin_seed

ROOT = Path(__file__).parent.parent
# The expert needs 5 to 25 periods: with this limit it fails now and then.
SHORT = [*SMALL, "env.max_steps=18", "env.tasks=[0]"]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(*overrides):
    return [sys.executable, "-m", "vla_runtime.collect", *overrides]


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A set of a task that the expert sometimes fails, and its last line."""
    out = tmp_path_factory.mktemp("short") / "set"
    return out, collected(out, *SHORT, "episodes=5")


def test_the_last_line_and_the_set_agree(short):
    out, line = short
    data = Dataset(out, horizon=8)
    assert line["env"] == "reach"
    assert line["episodes"] == len(data.episodes) == 5
    assert line["frames"] == len(data)
    assert line["attempts"] > 5
    assert line["expert_success_rate"] == round(5 / line["attempts"], 4)
    assert line["out"] == str(out)
    assert not (out / PARTS).exists()
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert data.own["report"]["frames"] == line["frames"]
    assert data.own["attempts"][0]["attempts"] == line["attempts"]


def test_only_successes_are_kept_and_each_says_where_it_began(short):
    out, line = short
    data = Dataset(out, horizon=1)
    env = Reach(size=16, max_steps=18)
    kept = []
    for attempt in range(line["attempts"]):
        hash_ = env.reset(10_000, 0, attempt)["initial_state"]
        seed = begin_seed(10_000, 0, attempt)
        expert = env.expert(10_000)
        done = run(env, expert.begin(seed), expert.spec, VirtualClock(), replan=1)
        if done.outcome.success:
            kept.append((attempt, hash_, seed, np.stack(done.trace.states), np.stack(done.trace.commands)))
    assert [(record.attempt, record.initial_state, record.begin_seed) for record in data.episodes] == [
        k[:3] for k in kept
    ]
    for record, (_, _, _, states, commands) in zip(data.episodes, kept, strict=True):
        assert np.array_equal(data.episode(record.index)["observation.state"], states)
        assert np.array_equal(data.episode(record.index)["action"], commands)
    assert data.initial_states == {k[1] for k in kept}


def test_recorded_images_are_the_environments(short):
    out, _ = short
    data = Dataset(out, horizon=1)
    env = Reach(size=16, max_steps=18)
    env.reset(10_000, 0, data.episodes[1].attempt)
    observation = data.observation(data.episodes[1].start)
    for camera in ("overhead", "hand"):
        assert np.array_equal(observation.images[camera], env.observe([camera]).images[camera])


def test_the_same_command_again_changes_nothing(short):
    out, line = short
    before = contents(out)
    assert collected(out, *SHORT, "episodes=5") == line
    assert contents(out) == before


def test_another_config_on_the_same_folder_is_refused(short):
    out, _ = short
    with pytest.raises(ValueError, match="got 2 that differ") as caught:
        collected(out, *SHORT, "episodes=6", "style=multi")
    assert "episodes: 5 there, 6 asked for" in str(caught.value)
    assert "style: 'uni' there, 'multi' asked for" in str(caught.value)


def test_workers_do_not_change_the_set(short, tmp_path):
    out, line = short
    other = collected(tmp_path / "set", *SHORT, "episodes=5", "workers=2")
    assert {**other, "out": ""} == {**line, "out": ""}
    assert contents(tmp_path / "set") == contents(out)


def test_an_interrupted_collection_goes_on_to_the_same_set(short, tmp_path, monkeypatch):
    out, line = short
    made = []
    real = Reach.reset

    def reset(self, seed, task, episode):
        made.append(episode)
        if len(made) == 4:
            raise KeyboardInterrupt
        return real(self, seed, task, episode)

    monkeypatch.setattr(Reach, "reset", reset)
    folder = tmp_path / "set"
    with pytest.raises(KeyboardInterrupt):
        collected(folder, *SHORT, "episodes=5")
    with pytest.raises(DatasetError, match="still being collected"):
        Dataset(folder, horizon=1)
    with pytest.raises(ValueError, match="episodes: 5 there, 4 asked for"):
        collected(folder, *SHORT, "episodes=4")
    assert collected(folder, *SHORT, "episodes=5")["attempts"] == line["attempts"]
    assert made.count(0) == 1
    assert contents(folder) == contents(out)


def test_a_part_cut_short_by_a_power_cut_is_made_again(short, tmp_path, monkeypatch):
    folder = tmp_path / "set"

    def stop(*arguments):
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr("vla_runtime.collect.assemble", stop)
        with pytest.raises(OSError, match="no space"):
            collected(folder, *SHORT, "episodes=5")
    rows = next(folder.glob(f"{PARTS}/task-000-attempt-*/rows.parquet"))
    rows.write_bytes(rows.read_bytes()[:100])
    collected(folder, *SHORT, "episodes=5")
    assert contents(folder) == contents(short[0])


def test_killed_at_any_moment_the_same_command_completes_the_set(tmp_path):
    options = ["env=reach", "env.size=16", "workers=2", "style=multi", "recover=true", "episodes=12"]
    folder = tmp_path / "set"
    process = subprocess.Popen(
        command(*options, f"out={folder}"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    clock = SystemClock()
    deadline = clock.now() + 60
    while len(list(folder.glob(f"{PARTS}/task-*"))) < 3:
        assert clock.now() < deadline
        assert process.poll() is None
        clock.sleep_until(clock.now() + 0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "meta/info.json").exists()
    with pytest.raises(DatasetError, match=r"finish it with: python -m vla_runtime.collect env=reach") as caught:
        Dataset(folder, horizon=1)
    assert "recover=true" in str(caught.value)
    done = subprocess.run(command(*options, f"out={folder}"), cwd=ROOT, capture_output=True, text=True, check=True)
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["episodes"] == 24
    collected(tmp_path / "whole", *options, "workers=1")
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize("workers", [1, 2])
def test_it_gives_up_on_an_expert_that_fails(tmp_path, workers):
    with pytest.raises(RuntimeError, match="task 0: expected 1 successes of the expert, got 0 in 25 attempts"):
        collected(tmp_path / "set", *SHORT, "env.max_steps=1", "episodes=1", f"workers={workers}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=9999", "seed: expected at least 10000, got 9999"),
        ("image_stride=0", "image_stride: expected at least 1"),
        ("episodes=0", "episodes: expected at least 1"),
        ("images=jpeg", "images: expected one of .*, got 'jpeg'"),
        ("style=wild", "style: expected one of .*, got 'wild'"),
        ("env.tasks=[7]", "env.tasks: expected indices 0 to 1"),
    ],
)
def test_wrong_options(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        collected(tmp_path / "set", *SMALL, override)


def test_a_strange_folder_and_a_busy_one_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"expected an empty folder .*notes.txt"):
        collected(tmp_path, *SMALL)
    with locked(tmp_path / "busy"), pytest.raises(ValueError, match="no other process writes"):
        collected(tmp_path / "busy", *SMALL)


def test_a_set_of_another_program_is_left_alone(short, tmp_path):
    folder = tmp_path / "theirs"
    shutil.copytree(short[0], folder)
    (folder / "meta/vla_runtime.json").unlink()
    before = contents(folder)
    with pytest.raises(ValueError, match=r"got a data set without meta/vla_runtime.json.*choose another out="):
        collected(folder, *SHORT, "episodes=5")
    assert contents(folder) == before


def test_by_default_it_makes_a_new_folder_under_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        line, _ = collect(load("collect", [*SMALL, "env.tasks=[0]", "episodes=1"]))
        assert line["out"] == f"runs/collect_reach_000{number}"
