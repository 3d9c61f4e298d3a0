"""What one attempt of an expert records: its answers, in both controls, beside what was executed."""

import numpy as np
import pytest
from collecting import SMALL, collected

from envs.perturbed import Perturbed
from envs.reach import Reach
from policies.samples import read_samples
from vla_runtime.collect import collect
from vla_runtime.compose import load
from vla_runtime.data.lerobot import Dataset
from vla_runtime.transforms import Normalise


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


def test_some_cameras_are_enough(tmp_path):
    both = collected(tmp_path / "both", *SMALL, "env.tasks=[0]", "episodes=1")
    one = collected(tmp_path / "one", *SMALL, "env.tasks=[0]", "episodes=1", "cameras=[hand]")
    assert one["frames"] == both["frames"]
    data = Dataset(tmp_path / "one", horizon=1)
    assert [camera.name for camera in data.contract.cameras] == ["hand"]
    assert "observation.images.overhead" not in data.features
    images = [Dataset(tmp_path / name, 1)[2][0].images["hand"] for name in ("one", "both")]
    assert np.array_equal(*images)
    with pytest.raises(ValueError, match=r"cameras: expected some of \['overhead', 'hand'\], .*; reach has these"):
        collected(tmp_path / "other", *SMALL, "cameras=[wrist]")


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


def test_an_unsupported_style_or_a_failing_environment_is_told(tmp_path, pausing):
    with pytest.raises(ValueError, match=r"env.control: expected one of"):
        collected(tmp_path / "set", *pausing, "env.control=delta", "workers=2")
