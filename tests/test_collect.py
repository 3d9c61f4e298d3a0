import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from envs.perturbed import Perturbed
from envs.reach import Reach
from policies.samples import read_samples
from vla_runtime.collect import collect
from vla_runtime.compose import load
from vla_runtime.control.clock import SystemClock, VirtualClock
from vla_runtime.control.loop import run
from vla_runtime.data.lerobot import Dataset, DatasetError
from vla_runtime.data.unfinished import PARTS
from vla_runtime.disk import locked
from vla_runtime.evaluation.episodes import begin_seed
from vla_runtime.transforms import Normalise

ROOT = Path(__file__).parent.parent
SMALL = ["env=reach", "env.size=16", "workers=1"]
# The expert needs 5 to 25 periods: with this limit it fails now and then.
SHORT = [*SMALL, "env.max_steps=18", "env.tasks=[0]"]


def collected(out, *overrides):
    result, code = collect(load("collect", [*overrides, f"out={out}"]))
    assert code == 0
    return result


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


def test_image_stride(tmp_path):
    collected(tmp_path / "all", *SMALL, "env.tasks=[0]", "episodes=2")
    collected(tmp_path / "some", *SMALL, "env.tasks=[0]", "episodes=2", "image_stride=4")
    every, some = Dataset(tmp_path / "all", horizon=1), Dataset(tmp_path / "some", horizon=1)
    assert len(every) == some.info["total_frames"]
    for record in some.episodes:
        fresh = some.episode(record.index)["image_fresh"]
        assert np.array_equal(np.flatnonzero(fresh), np.arange(0, record.length, 4))
        for row in range(record.length):
            shown = every.observation(record.start + row // 4 * 4).images["hand"]
            assert np.array_equal(some.observation(record.start + row).images["hand"], shown)
    assert [some.row(i) for i in range(2)] == [0, 4]


def test_recover_records_the_answer_and_not_what_was_executed(tmp_path):
    collected(tmp_path / "set", *SMALL, "env.tasks=[0]", "episodes=6", "recover=true", "perturbation.wrong_start=1.0")
    data = Dataset(tmp_path / "set", horizon=1)
    assert data.own["recover"] is True
    unlike = 0
    for record in data.episodes:
        env = Perturbed(Reach(size=16), wrong_start=1.0)
        facts = env.reset(10_000, 0, record.attempt)
        assert record.facts["reset"]["perturbation"] == facts["perturbation"]
        columns = data.episode(record.index)
        joints = columns["observation.state"][:, :2]
        answers = np.stack([ask(env, state) for state in columns["observation.state"]])
        assert np.allclose(columns["action"], answers, atol=1e-6)
        executed = np.diff(joints, axis=0) / 0.05
        other = np.any(np.abs(executed - columns["action"][:-1]) > 0.05, axis=1)
        # Rows are marked where what was executed is not what was answered.
        assert not np.any(other & ~columns["disturbed"][:-1])
        unlike += bool(np.any(other))
    assert unlike >= 1


def test_chunks_that_a_push_cuts_through_are_known(tmp_path):
    pushed = ["perturbation.pushes=2", "perturbation.wrong_start=0.0", "perturbation.push_steps=3"]
    collected(tmp_path / "set", *SMALL, "env.tasks=[0]", "episodes=6", "recover=true", *pushed)
    data = Dataset(tmp_path / "set", horizon=4)
    marks = np.concatenate([data.episode(i)["disturbed"] for i in range(6)])
    assert marks.any()
    for i in range(len(data)):
        row = data.row(i)
        end = next(record.start + record.length for record in data.episodes if row < record.start + record.length)
        # The last row of a chunk is answered before it is pushed.
        assert data.foreseeable(i) == (not marks[row : min(row + 4, end) - 1].any())
    still = Normalise(np.full(data.contract.state.size, -9), np.full(data.contract.state.size, 9))
    move = Normalise(np.full(data.action.size, -9), np.full(data.action.size, 9))
    assert len(read_samples(data, 16, still, move)) == sum(data.foreseeable(i) for i in range(len(data))) < len(data)


def ask(env, state):
    """The expert's answer to a state, whatever state the environment is in."""
    from dataclasses import replace

    observation = replace(env.observe(), state=state)
    return env.expert(0).begin(0).predict([observation]).actions[0]


def test_video(tmp_path):
    line = collected(tmp_path / "set", *SMALL, "env.tasks=[1]", "episodes=2", "images=video")
    data = Dataset(tmp_path / "set", horizon=1)
    assert (tmp_path / "set/videos/observation.images.hand/chunk-000/file-000.mp4").is_file()
    env = Reach(size=16)
    env.reset(10_000, 1, data.episodes[1].attempt)
    first = data.observation(data.episodes[1].start).images["overhead"].astype(int)
    assert np.abs(first - env.observe(["overhead"]).images["overhead"]).mean() < 12
    assert line["frames"] == len(data)


TWO_CONTROLS = '''
from dataclasses import replace
import numpy as np
from envs.reach import Reach
from vla_runtime.types import ActionSpec, Group

DELTA = ActionSpec((Group("joints", ("shoulder", "elbow"), "delta", "rad", (-0.2,) * 2, (0.2,) * 2),))


class Pausing(Reach):
    """Reach in absolute control that speaks both, and whose expert waits for a while first."""

    @property
    def control_specs(self):
        return {"delta": DELTA, "absolute": self.spec.action}

    def both_controls(self, observation, values):
        return {"delta": (values - observation.state[:2]).astype(np.float32), "absolute": values}

    def expert(self, seed, style="uni"):
        return PausingExpert(super().expert(seed, style))


class Suite(Reach):
    def __init__(self, initial, **options):
        super().__init__(**options)
        self.initial = initial

    def reset(self, seed, task, episode):
        return {**super().reset(seed, task, episode), "initial": self.initial}


class PausingExpert:
    def __init__(self, inner):
        self.inner, self.spec = inner, inner.spec

    def begin(self, seed):
        return PausingSession(self.inner.begin(seed))

    def close(self): ...


class PausingSession:
    def __init__(self, inner):
        self.inner, self.calls = inner, 0

    def predict(self, observations, committed=None, deadline=None):
        self.calls += 1
        chunk = self.inner.predict(observations)
        if 3 <= self.calls <= 7:
            return replace(chunk, actions=observations[-1].state[None, :2])
        return chunk
'''


@pytest.fixture
def pausing(tmp_path, monkeypatch):
    (tmp_path / "pausing.py").write_text(TWO_CONTROLS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return [*SMALL, "env._target_=pausing.Pausing", "env.control=absolute", "env.tasks=[0]", "episodes=2"]


def test_both_controls_are_recorded_in_one_pass(pausing, tmp_path):
    collected(tmp_path / "set", *pausing)
    absolute, delta = (Dataset(tmp_path / "set", horizon=9, control=name) for name in ("absolute", "delta"))
    columns = absolute.episode(0)
    assert np.array_equal(columns["action"], columns["action.absolute"])
    assert np.allclose(columns["action.absolute"] - columns["observation.state"][:, :2], columns["action.delta"])
    _, chunk = delta[absolute.episodes[0].length - 1]
    assert np.array_equal(chunk.actions[1:], np.zeros((8, 2)))
    _, chunk = absolute[absolute.episodes[0].length - 1]
    assert np.array_equal(chunk.actions[1:], np.tile(columns["action"][-1], (8, 1)))


def test_idle_rows_can_be_trimmed(pausing, tmp_path):
    whole, trimmed = tmp_path / "whole", tmp_path / "trimmed"
    collected(whole, *pausing)
    collected(trimmed, *pausing, "trim_idle=true")
    before, after = Dataset(whole, horizon=1), Dataset(trimmed, horizon=1)
    assert before.own["report"]["idle"]["rows"] == 10
    assert before.own["report"]["idle"]["by_episode"] == [[[2, 5]], [[2, 5]]]
    assert after.own["report"]["idle"]["rows"] == 0
    assert after.own["report"]["idle"]["rows_already_trimmed"] == 10
    assert after.info["total_frames"] == before.info["total_frames"] - 10
    kept = np.delete(before.episode(0)["action"], np.arange(2, 7), axis=0)
    assert np.array_equal(after.episode(0)["action"], kept)
    assert np.allclose(after.episode(0)["timestamp"], np.arange(len(kept)) * 0.05)


def test_stored_evaluation_states_are_never_recorded(pausing, tmp_path):
    config = load("collect", [*pausing, "env._target_=pausing.Suite", f"out={tmp_path / 'set'}"])
    config["env"]["initial"] = "stored"
    collect(config)
    data = Dataset(tmp_path / "set", horizon=1)
    assert data.own["collect"]["env"]["initial"] == "sampled"
    assert {record.facts["reset"]["initial"] for record in data.episodes} == {"sampled"}


@pytest.mark.parametrize("workers", [1, 2])
def test_it_gives_up_on_an_expert_that_fails(tmp_path, workers):
    with pytest.raises(RuntimeError, match="task 0: expected 1 successes of the expert, got 0 in 25 attempts"):
        collected(tmp_path / "set", *SHORT, "env.max_steps=1", "episodes=1", f"workers={workers}")


def test_an_unsupported_style_or_a_failing_environment_is_told(tmp_path, pausing):
    with pytest.raises(ValueError, match=r"env.control: expected one of"):
        collected(tmp_path / "set", *pausing, "env.control=delta", "workers=2")


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


def test_by_default_it_makes_a_new_folder_under_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        line, _ = collect(load("collect", [*SMALL, "env.tasks=[0]", "episodes=1"]))
        assert line["out"] == f"runs/collect_reach_000{number}"
