"""Recordings: whole after a crash, decided again bit for bit, and able to say why."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
from numbered import PERIOD, Numbered
from numbered import Recording as RecordingEnv
from recorded import LIMITS, recorded

from vla_runtime.control import recorder
from vla_runtime.control.clock import VirtualClock
from vla_runtime.control.loop import run
from vla_runtime.control.recorder import Recorder, Recording
from vla_runtime.control.trace import Run
from vla_runtime.evaluation.exporting import export_mcap
from vla_runtime.evaluation.replaying import Replay, _ended_by, explain
from vla_runtime.messages import read_env
from vla_runtime.types import SpecMismatch


@pytest.mark.parametrize("join", ["newest", "prefix", "blend", "ensemble", "adaptive"])
@pytest.mark.parametrize("limits", [LIMITS, {"level": "clamp", "groups": {"joints": {"speed": 0.05}}}])
def test_everything_is_decided_again_bit_for_bit(tmp_path, join, limits):
    path, applied, result = recorded(tmp_path, (0.1, 0.25, 0.05), limits, join=join)
    replay = Replay(Recording(path))
    assert replay.differences == []
    assert len(replay.ticks) == result.steps == 30
    assert all(np.array_equal(tick.command.values, one.values) for tick, one in zip(replay.ticks, applied, strict=True))
    assert any(tick.broken for tick in replay.ticks) == (limits is not LIMITS)


@pytest.mark.parametrize(
    ("what", "value"), [("command", np.float32([0.5, 0.5])), ("held", True), ("asked", np.zeros((2, 2), np.float32))]
)
def test_what_was_decided_otherwise_is_told(tmp_path, what, value):
    recording = Recording(recorded(tmp_path)[0])
    assert recording.ticks[8]["asked"] is not None
    recording.ticks[8][what] = value
    (line,) = Replay(recording).differences
    assert "tick 8 at 0.400 s" in line


def test_a_changed_answer_changes_what_follows(tmp_path):
    recording = Recording(recorded(tmp_path)[0])
    index = next(i for i, tick in enumerate(recording.ticks) if tick["answer"] is not None)
    recording.ticks[index]["answer"]["actions"] = recording.ticks[index]["answer"]["actions"] + np.float32(1e-6)
    assert Replay(recording).differences


def test_a_crash_costs_the_last_tick_at_most(tmp_path, caplog):
    path, *_ = recorded(tmp_path)
    data = path.read_bytes()
    whole = Recording(path)
    assert whole.end["end"]["reason"] == "time"
    for cut in (1, 7, 200):
        path.write_bytes(data[:-cut])
        short = Recording(path)
        assert short.end is None
        assert 29 <= len(short.ticks) <= 30
        assert "cut short" in caplog.text
        assert Replay(short).differences == []
    path.write_bytes(data[:3000] + b"\xff" + data[3001:])
    with pytest.raises(ValueError, match="expected whole frames, got damage at byte"):
        Recording(path)
    with pytest.raises(ValueError, match=f"other.rec: expected a recording, got No such file.*; there are {path.name}"):
        Recording(path.with_name("other.rec"))
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="expected a recording"):
        Recording(path)
    path.write_bytes(data[:8])
    with pytest.raises(ValueError, match="without its first frame"):
        Recording(path)
    # A length that is damage does not make it read what is not there.
    path.write_bytes(data[:8] + struct.pack("<II", 1 << 30, 0) + data[16:])
    with pytest.raises(ValueError, match=r"damage at byte 8|without its first frame"):
        Recording(path)


def test_why_a_command_was_what_it_was(tmp_path):
    told = {14: lambda safety, now: safety.stop(now, "somebody pressed it"), 18: lambda safety, now: safety.reset(now)}
    slow = {"level": "clamp", "groups": {"joints": {"speed": 0.05}}}
    path, *_ = recorded(tmp_path, (0.1,), slow, told=told)
    recording = Recording(path)
    replay = Replay(recording)
    assert replay.differences == []

    def why(index):
        return "\n".join(explain(replay.ticks, index * PERIOD + 0.01, read_env(recording.header["env"]), recording.end))

    assert "no chunk has come yet" in why(0)
    assert "asked in this tick, told of no rows" in why(0)
    assert "tick 2 at 0.100 s" in why(2)
    assert "a chunk came in this tick: 16 rows for what was seen at 0.000 s, 0.100 s ago" in why(2)
    assert "a seam: the first command of this plan" in why(6)
    assert "row 2 of 16" in why(6)
    assert "answers what was seen at 0.200 s, 0.100 s before" in why(6)
    assert "limits broken: joints speed; wanted" in why(13)
    assert "brought inside" in why(13)
    assert "safety: the robot may not move since 0.700 s\nstopped: somebody pressed it" in why(15)
    assert "lets the policy move again" in why(18)
    assert "the last tick: time" in why(29)
    with pytest.raises(ValueError, match=r"expected a time from 0.000 to 1.500 s, got 1.5"):
        why(30)


def why(path, index):
    recording = Recording(path)
    ticks, env = Replay(recording).ticks, read_env(recording.header["env"])
    return "\n".join(explain(ticks, index * PERIOD + 0.01, env, recording.end))


def test_a_robot_that_pauses_stands_where_it_was_told_to_be(tmp_path):
    path, *_ = recorded(tmp_path, (0.2,), mode="sync")
    assert "where it was seen: no chunk has come yet" in why(path, 2)
    # Four rows, then four periods of thinking.
    assert "where it was told to be: the policy thinks about the next chunk" in why(path, 9)


def test_a_stop_is_told_though_whoever_said_it_has_another_clock(tmp_path):
    told = {
        5: lambda safety, now: safety.stop(now, "the first"),
        7: lambda safety, now: safety.reset(now),
        14: lambda safety, now: safety.stop(now + 0.03, "the second"),
    }
    path, *_ = recorded(tmp_path, told=told)
    assert "stopped: the first" in why(path, 5)
    assert "since 0.700 s\nstopped: the second" in why(path, 14)


@pytest.mark.parametrize("images", [False, True])
def test_what_a_stop_between_two_ticks_did_is_decided_again(tmp_path, images):
    """The images that a question began anew with are there no more; that they were is known."""

    def blip(safety, now):
        safety.stop(now - 0.03, "somebody")
        safety.reset(now - 0.01)

    path, _, result = recorded(tmp_path, told={10: blip}, images=images)
    assert result.plans > 3
    replay = Replay(Recording(path))
    assert replay.differences == []
    assert len(replay.ticks) == 30


@pytest.mark.parametrize(("mode", "delay"), [("sync", 0.3), ("async", 0.1), ("async", 0.3)])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_of_any_length_is_decided_again_where_a_policy_sees_several_moments(tmp_path, mode, delay, stopped):
    """Which images there were hangs on when answers were known to come, also on one that came no more."""
    for steps in range(8, 34):
        told = {steps - 6: lambda safety, now: safety.stop(now, "x"), steps - 4: lambda safety, now: safety.reset(now)}
        path, applied, _ = recorded(
            tmp_path, [delay], steps=steps, mode=mode, offsets=(-2, -1, 0), told=told if stopped else None
        )
        replay = Replay(Recording(path))
        assert replay.differences == []
        assert len(replay.ticks) == len(applied) == steps


def test_images_that_a_crash_took_are_not_made_up(tmp_path):
    recording = Recording(recorded(tmp_path, images=True)[0])
    looked = [index for index, tick in enumerate(recording.ticks) if tick["images"]]
    assert looked == list(range(0, 30, 4))
    assert all(set(recording.observation(index).images) == {"overhead", "hand"} for index in looked)
    for index in looked[-2:]:
        recording.ticks[index]["images"] = {}
    replay = Replay(recording, Looking(recording))
    assert replay.differences == []
    assert replay.decoded == len(looked) - 2


class Looking:
    """A session that answers as was answered, to the images that were shown."""

    def __init__(self, recording):
        self._recording = recording

    def predict(self, observations, committed=None, deadline=None):
        index = round(observations[-1].time / PERIOD)
        kept = self._recording.observation(index).images
        assert all(np.array_equal(kept[name], image) for name, image in observations[-1].images.items())
        later = range(index, len(self._recording.ticks))
        return next(answer for at in later if (answer := self._recording.answer(at)) is not None)


def test_images_that_cannot_be_kept_are_an_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(recorder, "encode_image", full)
    with pytest.raises(OSError, match="no space left"):
        recorded(tmp_path, images=True)


def test_the_tick_that_an_exception_ended_is_in_the_recording_too(tmp_path):
    """It never became a command: what it saw, the answer that was wrong, and what was sent instead."""
    env = RecordingEnv(size=16)
    policy = Numbered(env)
    good = policy.predict

    def predict(observations, committed=None, deadline=None):
        chunk = good(observations, committed, deadline)
        return replace(chunk, actions=chunk.actions * np.nan) if len(policy.asked) == 3 else chunk

    policy.predict = predict
    env.reset(0, 0, 0)
    kept, result = Recorder(tmp_path / "a.vlarec", {}), Run()
    with pytest.raises(SpecMismatch):
        run(env, policy, policy.spec, VirtualClock(), replan=4, max_steps=40, on_tick=kept, result=result)
    kept.close(result, "SpecMismatch: not finite")
    found = Recording(tmp_path / "a.vlarec")
    assert len(found.ticks) == 8
    assert len(env.applied) == 9
    last = found.end["last"]
    assert (last["tick"], last["now"]) == (8, pytest.approx(8 * PERIOD))
    assert np.isnan(last["answer"]["actions"]).all()
    np.testing.assert_array_equal(last["sent"], env.applied[-1].values)
    said = "\n".join(_ended_by(last))
    assert "tick 8 at 0.400 s ended it\na chunk came in it: 16 rows, the first [nan, nan]" in said
    assert "sent instead, to stay where it was seen: [0, 0]" in said
    # These are the ones that are looked at elsewhere, too.
    assert export_mcap(found, tmp_path / "a.mcap") == 3 * 8 + 8 + 2
