"""Robots that are no arms: a body's velocity, a gait, and a policy that says when it has finished."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from air import Air

from vla_runtime.contract import Contract
from vla_runtime.control.clock import VirtualClock
from vla_runtime.control.safety import Safety
from vla_runtime.control.standing import standing
from vla_runtime.robot_side import ARRAY, TWIST_STAMPED, Topic
from vla_runtime.ros.gate import GateNode
from vla_runtime.ros.messages import empty, image_message, state_message
from vla_runtime.ros.robot import RosRobot
from vla_runtime.types import ActionSpec, Command, SpecMismatch

CONTRACT = Contract.load(Path(__file__).parent.parent.parent / "examples" / "robots" / "quadruped.yaml")
WALK = np.float32([0.5, -0.1, 0.25, 0.5, 0.5, 0.0, 2.5, 0.3, 0.0, 0.1, 0.0])
TWISTS = "/cmd_vel"
GAITS = "/gait/parameters"


class Meadow:
    """The robot's own side: its camera and joints, and the gate; and a bridge."""

    def __init__(self):
        self.air, self.clock = Air(), VirtualClock()
        self.clock.sleep_until(100.0)
        self.body = self.air.transport()
        side = CONTRACT.robot
        self.camera, self.streams = side.cameras["front"], side.state
        own = (self.camera, *self.streams.values())
        self.body.open([Topic(one.topic, one.type, one.reliable, one.depth) for one in own])
        self.gate = GateNode(CONTRACT, self.air.transport(), self.clock, self.clock)
        self.robot = RosRobot(
            CONTRACT, self.air.transport(), self.clock, Safety(), "walk to the tree", told_to_end=self._goes_on
        )

    def _goes_on(self):
        """Asked while somebody waits for the robot to say something."""
        self.say()
        return False

    def say(self):
        now = self.clock.now()
        picture = np.full((224, 224, 3), 90, np.uint8)
        self._say(self.camera, image_message(picture, self.camera, now, "front"))
        for stream in self.streams.values():
            self._say(stream, state_message(dict.fromkeys(stream.names, 0.1), stream, now, ""))

    def _say(self, stream, message):
        self.body.publish(Topic(stream.topic, stream.type, stream.reliable, stream.depth), message)

    def command(self, values, held=False):
        self.say()
        self.robot.apply(Command(np.asarray(values, np.float32), self.clock.now(), held))

    def twists(self):
        found = [one.twist for one in self.air.messages(TWISTS, TWIST_STAMPED)]
        return [(one.linear.x, one.linear.y, one.angular.z) for one in found]

    def gaits(self):
        return [one.data.tolist() for one in self.air.messages(GAITS, ARRAY)]


@pytest.fixture
def meadow():
    found = Meadow()
    found.robot.reset(0, 0, 0)
    return found


def test_velocity_and_gait_go_their_own_ways(meadow):
    meadow.command(WALK)
    np.testing.assert_allclose(meadow.twists(), [WALK[:3]])
    np.testing.assert_allclose(meadow.gaits(), [WALK[3:10]], rtol=1e-6)
    assert meadow.robot.outcome() is None


def test_without_commands_it_stands_in_its_gait(meadow):
    meadow.command(WALK)
    meadow.clock.sleep_until(101.0)
    meadow.gate.tick()
    meadow.gate.tick()
    assert meadow.twists()[1:] == [(0, 0, 0)] * 2
    np.testing.assert_allclose(meadow.gaits(), [WALK[3:10]] * 2, rtol=1e-6)


def test_the_policy_says_when_it_has_finished(meadow):
    meadow.command(WALK)
    done = WALK.copy()
    done[10] = 0.9
    meadow.command(done, held=True)
    assert meadow.robot.outcome() is None, "what is held is nobody's word"
    meadow.command(done)
    found = meadow.robot.outcome()
    assert (found.success, found.reason) == (False, "terminated")
    meadow.robot.reset(0, 0, 1)
    assert meadow.robot.outcome() is None


def test_a_stop_stops_the_body(meadow):
    meadow.command(WALK)
    desk = meadow.air.transport()
    stop = Topic(CONTRACT.robot.desk.stop, "std_msgs/msg/Empty")
    desk.open([stop])
    desk.publish(stop, empty())
    meadow.gate.tick()
    meadow.command(WALK)
    assert meadow.twists()[1:] == [(0, 0, 0)]


def test_it_stands_in_a_gait_of_its_own_until_it_is_told_one(meadow):
    """No state says in which gait it is: what it is told before any plan is there, the contract states."""
    rest = CONTRACT.action.group("gait").rest
    seen = meadow.robot.observe(("front",))
    first = standing(meadow.robot.spec, seen)
    np.testing.assert_allclose(first[3:10], rest, rtol=1e-6)
    np.testing.assert_array_equal(first[:3], 0)
    np.testing.assert_array_equal(standing(meadow.robot.spec, seen, WALK)[3:10], WALK[3:10])
    action = ActionSpec(tuple(replace(one, rest=None) for one in CONTRACT.action.groups))
    with pytest.raises(SpecMismatch, match="or the group to state its rest"):
        standing(replace(meadow.robot.spec, action=action), seen)
    with pytest.raises(ValueError, match=r"rest: expected as many numbers as dims \(7\), got 1"):
        replace(CONTRACT.action.group("gait"), rest=(0.0,))


@pytest.mark.parametrize("ends", ["gait", "nothing"])
def test_what_ends_an_episode_is_one_binary_number(ends):
    with pytest.raises(SpecMismatch, match="ends: expected a binary group of one dimension, with open and close"):
        replace(CONTRACT, robot=replace(CONTRACT.robot, ends=ends))


def test_the_example_is_what_it_says():
    assert Contract.read(CONTRACT.document()).document() == CONTRACT.document()
    assert CONTRACT.action.controls == {"velocity", "absolute"}
