"""A recorded robot becomes a data set: aligned in time, with what succeeded and who moved it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from bagged import Bag
from robots import reach_robot

from vla_runtime.robot_side import ARRAY, TRAJECTORY
from vla_runtime.ros.bag_files import Report
from vla_runtime.ros.demonstrations import demonstrations
from vla_runtime.ros.messages import command_message, flag, state_message, text

STRING, BOOL = "std_msgs/msg/String", "std_msgs/msg/Bool"


def read(bag, tmp_path, instruction="touch", succeeded=False, report=None):
    bag.close()
    return list(demonstrations(tmp_path / "bag", bag.contract, instruction, succeeded, report))


def test_rows_hold_what_was_seen_and_what_answered_it(tmp_path):
    bag = Bag(tmp_path / "bag")
    for step in range(40):
        # Cameras at half the rate.
        bag.tick(1000 + step * 0.05, step, ("overhead", "hand") if step % 2 == 0 else ())
    bag.end(1002.0)
    (episode,) = read(bag, tmp_path)
    assert episode.facts["success"]
    assert 37 <= episode.length <= 40
    joints = np.round(episode.columns["observation.state"][:, 0] * 100)
    assert np.array_equal(np.diff(joints), np.ones(len(joints) - 1))
    assert np.allclose(episode.columns["action"][:-1, 0] * 100, joints[:-1] + 1, atol=1e-4)
    shown = np.array([episode.images["hand"][index][0, 0, 0] for index in episode.shown])
    assert np.array_equal(shown, joints // 2 * 2)
    assert not episode.columns["disturbed"].any()
    assert episode.columns["image_fresh"].sum() == len(episode.images["hand"])


def test_episodes_end_where_the_outcome_is_said(tmp_path):
    bag = Bag(tmp_path / "bag")
    bag.say("/vla/instruction", STRING, text("first"), 999.9)
    for step in range(20):
        bag.tick(1000 + step * 0.05, step)
    bag.end(1001.0, success=False)
    bag.say("/vla/instruction", STRING, text("second"), 1001.01)
    bag.say("/vla/takeover", BOOL, flag(True), 1001.6)
    bag.say("/vla/takeover", BOOL, flag(False), 1001.8)
    for step in range(20):
        bag.tick(1001.5 + step * 0.05, step)
    bag.end(1002.5)
    first, second = read(bag, tmp_path, None)
    assert [first.facts["success"], second.facts["success"]] == [False, True]
    assert [first.facts["instruction"], second.facts["instruction"]] == ["first", "second"]
    assert first.facts["reset"]["takeovers"] == []
    # Seconds from the episode's own first row on.
    assert second.facts["reset"]["takeovers"][0] == pytest.approx([0.1, 0.3], abs=0.03)
    assert second.columns["observation.state"][0, 0] == 0


def test_a_hand_that_stays_is_marked_in_every_episode_it_is_in(tmp_path):
    bag = Bag(tmp_path / "bag")
    for step in range(20):
        bag.tick(1000 + step * 0.05, step)
    bag.say("/vla/takeover", BOOL, flag(True), 1000.7)
    bag.end(1001.0)
    for step in range(20):
        bag.tick(1001.5 + step * 0.05, step)
    bag.end(1002.5)
    first, second = read(bag, tmp_path)
    ((begins, ends),) = first.facts["reset"]["takeovers"]
    assert begins == pytest.approx(0.7, abs=0.06)
    assert ends == pytest.approx(first.length * 0.05)
    # Nobody said that it had gone.
    assert second.facts["reset"]["takeovers"] == [[0.0, pytest.approx(second.length * 0.05)]]


def test_a_camera_that_falls_silent_ends_the_episodes_use(tmp_path, caplog):
    bag = Bag(tmp_path / "bag")
    for step in range(60):
        bag.tick(1000 + step * 0.05, step, ("overhead", "hand") if step < 20 else ("overhead",))
    bag.end(1003.0)
    (episode,) = read(bag, tmp_path)
    assert 35 < episode.length < 45
    assert "camera hand fell silent" in caplog.text


def test_rows_without_a_fresh_command_are_marked(tmp_path):
    bag = Bag(tmp_path / "bag")
    for step in range(30):
        bag.tick(1000 + step * 0.05, step, command="gated" if step < 10 else None)
    bag.end(1001.5)
    (episode,) = read(bag, tmp_path)
    assert not episode.columns["disturbed"][:9].any()
    assert episode.columns["disturbed"][-10:].all()


def test_standing_because_it_may_not_move_is_no_demonstration(tmp_path):
    """A bridge says twice a second whether it may; its commands keep the robot where it is meanwhile."""
    bag = Bag(tmp_path / "bag")
    for step in range(40):
        time = 1000 + step * 0.05
        if step % 10 == 0:
            bag.say("/vla/status", STRING, text(json.dumps({"allowed": step >= 20})), time - 0.001)
        bag.tick(time, step)
    bag.end(1002.0)
    (episode,) = read(bag, tmp_path)
    joints = np.round(episode.columns["observation.state"][:, 0] * 100)
    assert episode.columns["disturbed"][joints < 19].all()
    assert not episode.columns["disturbed"][joints > 21].any()


@pytest.mark.parametrize(("kind", "stamped"), [(TRAJECTORY, True), (TRAJECTORY, False), (ARRAY, False)])
def test_what_somebody_told_the_controllers_by_hand_is_a_demonstration(tmp_path, kind, stamped):
    """No bridge was there: a first data set of a robot is teleoperated."""
    bag = Bag(tmp_path / "bag")
    for step in range(30):
        bag.tick(1000 + step * 0.05, step, command=kind, stamped=stamped)
    (episode,) = read(bag, tmp_path, succeeded=True)
    assert episode.facts["success"]
    assert 27 <= episode.length <= 30
    joints = np.round(episode.columns["observation.state"][:, 0] * 100)
    assert np.array_equal(np.diff(joints), np.ones(len(joints) - 1))
    assert np.allclose(episode.columns["action"][:-1, 0] * 100, joints[:-1] + 3, atol=1e-4)
    assert not episode.columns["disturbed"].any()


def test_a_hand_that_takes_over_corrects_and_what_a_gate_passes_on_is_not_taken_twice(tmp_path):
    bag = Bag(tmp_path / "bag")
    for step in range(40):
        time = 1000 + step * 0.05
        if step in (15, 25):
            bag.say("/vla/takeover", BOOL, flag(step == 15), time - 0.01)
        taken = 15 <= step < 25
        bag.tick(time, step, command=TRAJECTORY if taken else "gated")
        if not taken:
            # What the gate made of it: limited, and a little later.
            stream = bag.contract.robot.action["joints"]
            passed = command_message({"j1": 9.0, "j2": 9.0}, stream, False, time + 0.012, 0.05)
            bag.say("/arm/command", TRAJECTORY, passed, time + 0.012)
    bag.end(1002.0)
    (episode,) = read(bag, tmp_path)
    joints = np.round(episode.columns["observation.state"][:, 0] * 100)
    ahead = np.round(episode.columns["action"][:-1, 0] * 100 - joints[:-1])
    assert set(ahead) == {1.0, 3.0}
    assert ahead[15 - int(joints[0]) : 25 - int(joints[0])].tolist() == [3.0] * 10
    assert len(episode.facts["reset"]["takeovers"]) == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [("outcome", "expected an outcome on /vla/outcome, got none; nobody said how it ended. Take succeeded=true"),
     ("command", r"expected the topics \['/arm/command/gated'\], or without /gated what the controllers heard"),
     ("camera", r"expected the topics \['/cameras/hand'\]"),
     ("instruction", "instruction: expected what the robot was to do"), ("size", "messages that can be read of")],
)  # fmt: skip
def test_bags_that_cannot_be_used(tmp_path, fault, words):
    bag = Bag(tmp_path / "bag")
    for step in range(10):
        cameras = ("overhead",) if fault == "camera" else ("overhead", "hand")
        bag.tick(1000 + step * 0.05, step, cameras, None if fault == "command" else "gated")
    if fault != "outcome":
        bag.end(1000.5)
    if fault == "size":
        bag.contract = reach_robot(size=32)
    with pytest.raises(ValueError, match=words):
        read(bag, tmp_path, None if fault == "instruction" else "touch")


def test_of_a_message_only_the_groups_that_are_wrong_are_named(tmp_path):
    side = reach_robot().robot
    streams = {**side.state, "position": replace(side.state["position"], names=("hand.x", "hand.z"))}
    bag = Bag(tmp_path / "bag", state=streams)
    for step in range(4):
        bag.tick(1000 + step * 0.05, step)
    expected = r"of state position, got none; state position .*: 4 left out, .*named \['hand.z'\], got 4 values"
    with pytest.raises(ValueError, match=expected) as caught:
        read(bag, tmp_path, succeeded=True)
    assert "joints" not in str(caught.value).replace("/joint_states", "")


def test_one_message_of_another_time_costs_itself(tmp_path):
    bag = Bag(tmp_path / "bag")
    stream = bag.contract.robot.state["joints"]
    for step in range(30):
        bag.tick(1000 + step * 0.05, step)
        if step == 10:
            values = {"hand.y": 0.0, "j2": 9.0, "j1": 9.0, "hand.x": 0.0}
            bag.say(stream.topic, stream.type, state_message(values, stream, 1e6, ""), 1000.501)
    bag.end(1001.5)
    report = Report(tmp_path / "bag")
    (episode,) = read(bag, tmp_path, report=report)
    joints = np.round(episode.columns["observation.state"][:, 0] * 100)
    assert np.array_equal(np.diff(joints), np.ones(len(joints) - 1))
    assert episode.length >= 27
    assert report.left_out == {"state joints on /joint_states": 1, "state position on /joint_states": 1}
    assert "stamped +998999.499 s off" in report.first["state joints on /joint_states"]


@pytest.mark.parametrize("by", [-30.0, 3600.0])
def test_a_clock_that_is_set_ends_the_episodes_use_and_the_next_is_whole(tmp_path, by):
    bag = Bag(tmp_path / "bag")
    for step in range(60):
        bag.ahead = by if step >= 20 else 0.0
        bag.tick(1000 + step * 0.05, step)
        if step in (29, 59):
            bag.end(1000 + step * 0.05 + 0.03)
    report = Report(tmp_path / "bag")
    first, second = read(bag, tmp_path, report=report)
    # What was seen up to there, and for as long as a state may be old.
    assert np.round(first.columns["observation.state"][:, 0] * 100).max() == 19
    assert first.columns["disturbed"][25:].all()
    joints = np.round(second.columns["observation.state"][:, 0] * 100)
    assert joints.tolist() == list(range(30, 30 + len(joints)))
    assert len(joints) >= 28
    assert not second.columns["disturbed"][:-1].any()
    assert f"was set by {by:+.3f} s (recorded at 1501.000 s)" in report.notes[0]


def test_a_camera_that_another_clock_stamps_is_named_with_how_far_it_is_off(tmp_path):
    for name, off in (("far", 3600.0), ("near", 0.7), ("slow", -3.0)):
        bag = Bag(tmp_path / name)
        for step in range(60):
            bag.ahead = 0.0
            bag.tick(1000 + step * 0.05, step, ("overhead",))
            bag.ahead = off
            bag.tick(1000 + step * 0.05, step, ("hand",), None, state=False)
        bag.ahead = 0.0
        bag.end(1003.0)
        bag.close()
        report = Report(tmp_path / name)
        made = demonstrations(tmp_path / name, bag.contract, "touch", report=report)
        if name == "far":
            with pytest.raises(ValueError, match=r"camera hand on /cameras/hand are 3599\.998 s ahead of those of the"):
                list(made)
            continue
        list(made)
        # What is recorded late may be late.
        noted = [note for note in report.notes if "camera hand on /cameras/hand are 0.698 s ahead" in note]
        assert len(noted) == (name == "near")


@pytest.mark.parametrize("garbled", [False, True])
def test_an_outcome_that_cannot_be_read_ends_its_episode_and_makes_no_success(tmp_path, garbled):
    bag = Bag(tmp_path / "bag")
    for step in range(40):
        bag.tick(1000 + step * 0.05, step)
        if step == 19 and garbled:
            bag.garble("/vla/outcome", STRING, 1000.98)
        elif step == 19:
            bag.say("/vla/outcome", STRING, text('{"success": "false", "reason": "dropped"}'), 1000.98)
    bag.end(1002.0)
    report = Report(tmp_path / "bag")
    (second,) = read(bag, tmp_path, succeeded=True, report=report)
    assert second.columns["observation.state"][0, 0] == pytest.approx(0.2)
    assert report.left_out == {"/vla/outcome": 1}
    assert "episode 0: left out, how it ended cannot be read" in report.notes[0]


def test_why_nothing_of_a_stream_can_be_used(tmp_path):
    bag = Bag(tmp_path / "bag")
    for step in range(10):
        bag.tick(1000 + step * 0.05, step)
    bag.end(1000.5)
    bag.contract = reach_robot(size=32)
    with pytest.raises(
        ValueError, match=r"camera hand on /cameras/hand: 10 left out, recorded at .* expected \(32, 32, 3\)"
    ):
        read(bag, tmp_path)
