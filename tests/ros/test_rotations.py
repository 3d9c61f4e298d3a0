"""Of the values that mean the same rotation a robot is sent the one nearest to the last, or to where it is."""

from __future__ import annotations

import numpy as np
import pytest
from air import Air

from vla_runtime.contract import Contract
from vla_runtime.control.clock import VirtualClock
from vla_runtime.control.safety import Safety
from vla_runtime.robot_side import CommandStream, RobotSide, StateStream, Topic
from vla_runtime.ros.gate import GateNode
from vla_runtime.ros.messages import decode, read_trajectory, state_message
from vla_runtime.ros.robot import GATED, RosRobot
from vla_runtime.transforms import ROTATIONS, matrix_from_axis_angle
from vla_runtime.types import ActionSpec, Command, Group, StateSpec

SIZES = {"quaternion_xyzw": 4, "axis_angle": 3, "rot6d": 6}
TWINS = ("quaternion_xyzw", "axis_angle")
AXIS = np.array([1.0, 0.3, 0.1]) / np.linalg.norm([1.0, 0.3, 0.1])


def group(kind, convention):
    size = SIZES[convention]
    dims = tuple(f"d{index}" for index in range(size))
    return Group("turn", dims, kind, "1", (-9.0,) * size, (9.0,) * size, rotation=convention)


class Hand:
    """A robot that is turned. ours: the contract's convention; said, told: those of its state and its commands."""

    def __init__(self, said, told, ours="rot6d", stop="hold"):
        self.air, self.clock, self.safety = Air(), VirtualClock(5.0), Safety()
        self.names = tuple("abcdef"[: SIZES[told]])
        self._said = StateStream("/state", tuple("abcdef"[: SIZES[said]]), rotation=said, max_age=9.0)
        side = RobotSide(
            "hand", {}, {"turn": self._said}, {"turn": CommandStream("/arm", self.names, stop, rotation=told)}
        )
        self.contract = Contract(
            (), StateSpec((group("measured", ours),)), ActionSpec((group("absolute", ours),)), 20.0, robot=side
        )
        self.ours, self.told = ours, told
        self.robot = RosRobot(self.contract, self.air.transport(), self.clock, self.safety, "turn")
        self.time = 100.0

    def says(self, values):
        self.time += 0.05
        named = dict(zip(self._said.names, np.asarray(values, float).tolist(), strict=True))
        self.air.say(Topic("/state", self._said.type, False), state_message(named, self._said, self.time, ""))

    def sent(self, matrix, held=False):
        """What goes out for a rotation, checked to be that rotation."""
        self.robot.apply(Command(ROTATIONS[self.ours][1](matrix).astype(np.float32), 0.0, held))
        data = next(data for topic, data in reversed(self.air.said) if topic == "/arm/gated")
        values = read_trajectory(decode(GATED, data), False)[0]
        found = np.array([values[name] for name in self.names])
        np.testing.assert_allclose(ROTATIONS[self.told][0](found), matrix, atol=2e-6)
        return found


def about(axis, angle):
    return matrix_from_axis_angle(np.asarray(axis) * angle)


@pytest.mark.parametrize("ours", ["rot6d", *TWINS])
@pytest.mark.parametrize("told", TWINS)
def test_a_smooth_turn_is_smooth_in_commands(ours, told):
    hand = Hand("rot6d", told, ours)
    hand.says(ROTATIONS["rot6d"][1](np.eye(3)))
    # Two whole turns and back, in steps of 4 degrees; at whole turns the axis is not to be seen.
    angles = np.deg2rad([*range(0, 724, 4), *range(716, -4, -4)])
    commands = np.array([hand.sent(about(AXIS, angle)) for angle in angles])
    assert np.abs(np.diff(commands, axis=0)).max() < 1.01 * np.deg2rad(4)


@pytest.mark.parametrize("told", TWINS)
def test_a_hand_that_points_down_may_waver(told):
    hand = Hand("rot6d", told)
    hand.says(ROTATIONS["rot6d"][1](np.eye(3)))
    commands = [hand.sent(about([1, 0, 0], np.pi + offset)) for offset in (-0.01, 0.01, -0.005, 0.02)]
    assert np.abs(np.diff(commands, axis=0)).max() < 0.03


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("told", TWINS)
def test_the_first_command_is_near_to_where_the_robot_says_it_is(told, sign):
    hand, angle = Hand(told, told), 3.1
    where = sign * ROTATIONS[told][1](about([1, 0, 0], angle))
    if told == "axis_angle" and sign < 0:
        # The same rotation, the other way round.
        where = np.array([angle - 2 * np.pi, 0.0, 0.0])
    hand.says(where)
    assert np.abs(hand.sent(about([1, 0, 0], angle + 0.02)) - where).max() < 0.03


def test_an_episode_and_a_human_begin_again_from_where_the_robot_is():
    hand = Hand("quaternion_xyzw", "quaternion_xyzw")
    turn = about([1, 0, 0], 0.5)
    where = ROTATIONS["quaternion_xyzw"][1](turn)
    hand.says(where)
    np.testing.assert_allclose(hand.sent(turn), where, atol=1e-6)
    # What it says of itself has changed its sign; commands have not.
    hand.says(-where)
    np.testing.assert_allclose(hand.sent(turn), where, atol=1e-6)
    hand.safety.take_over(hand.clock.now())
    hand.robot.apply(Command(ROTATIONS["rot6d"][1](turn).astype(np.float32), 0.0))
    hand.safety.give_back(hand.clock.now())
    np.testing.assert_allclose(hand.sent(turn), -where, atol=1e-6)
    hand.robot.streams.begin()
    hand.says(where)
    hand.robot._sent.clear()
    np.testing.assert_allclose(hand.sent(turn), where, atol=1e-6)


def test_after_a_silence_the_robot_says_where_it_is():
    """A group that ceases is not where it was told to be last."""
    hand = Hand("quaternion_xyzw", "quaternion_xyzw", stop="cease")
    turn = about([1, 0, 0], 0.5)
    where = ROTATIONS["quaternion_xyzw"][1](turn)
    hand.says(where)
    hand.sent(turn)
    hand.robot.apply(Command(ROTATIONS["rot6d"][1](turn).astype(np.float32), 0.0, held=True))
    hand.says(-where)
    np.testing.assert_allclose(hand.sent(turn), -where, atol=1e-6)


def test_what_could_not_be_sent_is_not_what_was_sent_last():
    hand = Hand("axis_angle", "axis_angle")
    hand.says([3.1, 0.0, 0.0])
    hand.sent(about([1, 0, 0], 3.1))
    hand.air.cut = True
    for angle in (4.0, 5.0, 6.0):
        hand.robot.apply(Command(ROTATIONS["rot6d"][1](about([1, 0, 0], angle)).astype(np.float32), 0.0))
    hand.air.cut = False
    assert hand.sent(about([1, 0, 0], 3.2))[0] == pytest.approx(3.2, abs=1e-5)
    assert hand.robot.faults["commands that could not be sent"] == 3


def test_a_gate_takes_rotations_in_another_convention():
    """Zeros, with which it stops what has a velocity, are no rotation."""
    hand = Hand("quaternion_xyzw", "quaternion_xyzw")
    stamps = VirtualClock(100.05)
    gate = GateNode(hand.contract, hand.air.transport(), hand.clock, stamps)
    hand.says([0.0, 0.0, 0.0, 1.0])
    sent = hand.sent(about([1, 0, 0], 0.5))
    heard = hand.air.messages("/arm", GATED)
    assert heard[-1].points[0].positions.tolist() == sent.tolist()
    assert not gate.refused


def test_a_state_that_is_no_rotation_is_left_out():
    hand = Hand("quaternion_xyzw", "quaternion_xyzw")
    hand.says([0.0, 0.0, 0.0, 0.0])
    assert hand.robot.streams.missing() == ["state turn"]
    assert hand.robot.streams.faults["state turn: left out"] == 1
