"""What stands before a robot's controller lets only fresh commands through, in order, of one bridge."""

from __future__ import annotations

import numpy as np
import pytest
from air import Air
from hypothesis import given
from hypothesis import strategies as st
from robots import reach_robot

from vla_runtime.control.clock import VirtualClock
from vla_runtime.control.safety import Safety
from vla_runtime.robot_side import CommandStream, Topic
from vla_runtime.ros.gate import Gate, GateNode
from vla_runtime.ros.messages import empty, flag, trajectory
from vla_runtime.ros.robot import GATED, RosRobot

NAMES = ("j1", "j2")


def command(number=0, time=100.0, origin="a", values=(0.1, 0.2), names=NAMES):
    return trajectory(dict(zip(names, values, strict=True)), False, time, f"{origin}:{number}", 0.05)


def test_fresh_commands_pass_in_order():
    gate = Gate(NAMES, 0.2)
    assert gate.offer(command(0), 100.1) == {"j1": 0.1, "j2": 0.2}
    assert gate.offer(command(5, 100.1), 100.1)
    assert not gate.refused


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (command(9, time=99.7), "old"),
        (command(9, time=100.5), "old"),
        (command(3), "out of order"),
        (command(2), "out of order"),
        (command(9, names=("j1", "j3")), "wrong"),
        (command(9, values=(np.nan, 0.0)), "wrong"),
        (trajectory({"j1": 0.0, "j2": 0.0}, False, 100.0, "nobody", 0.05), "wrong"),
        (command(0, time=99.95, origin="b"), "of another bridge"),
    ],
)
def test_others_do_not(message, reason):
    gate = Gate(NAMES, 0.2)
    assert gate.offer(command(3), 100.0)
    assert gate.offer(message, 100.0) is None
    assert dict(gate.refused) == {reason: 1}


def test_a_bridge_that_was_replaced_stays_so():
    """The old one may still have commands on the way, or wake again."""
    gate = Gate(NAMES, 0.2)
    assert gate.offer(command(50, 100.0, "old"), 100.0)
    assert gate.offer(command(0, 100.05, "new"), 100.05)
    assert gate.offer(command(51, 100.1, "old"), 100.1) is None
    assert gate.offer(command(1, 100.1, "new"), 100.1)


def test_after_a_new_beginning_nothing_of_before_counts():
    gate = Gate(NAMES, 0.2)
    gate.begin(100.0)
    assert gate.offer(command(0, 99.99), 100.01) is None
    assert gate.offer(command(1, 100.01), 100.02)


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(-0.5, 0.5), st.sampled_from("abc")), max_size=60))
def test_whatever_comes_what_passes_is_fresh_and_newer(events):
    gate, now, passed = Gate(NAMES, 0.2), 100.0, []
    for number, age, origin in events:
        now += 0.03
        if gate.offer(command(number, now - age, origin), now):
            passed.append((origin, number))
            assert abs(age) <= 0.2 + 1e-6
    origins = [origin for index, (origin, _) in enumerate(passed) if not index or passed[index - 1][0] != origin]
    assert len(origins) == len(set(origins))
    for origin in origins:
        numbers = [number for one, number in passed if one == origin]
        assert numbers == sorted(set(numbers))


class Node:
    def __init__(self, stream, passing=True):
        self.air, self.clock, self.stamps = Air(), VirtualClock(), VirtualClock(100.0)
        control = "velocity" if stream.stop == "zero" else "absolute"
        contract, self.set_by = reach_robot(control, action={"joints": stream}), [0.0]
        self.node = GateNode(
            contract, self.air.transport(), self.clock, self.stamps, lambda: self.set_by.pop(), passing
        )
        self.stream, self._count = stream, 0

    def wait(self, seconds, set_by=0.0):
        self.clock.sleep_until(self.clock.now() + seconds)
        self.stamps._now += seconds + set_by
        self.set_by.append(set_by)
        self.node.tick()

    def send(self, values=(0.1, 0.2), age=0.0):
        self._count += 1
        values = dict(zip(NAMES, values, strict=True))
        stamp = self.stamps.now() - age
        message = trajectory(values, self.stream.stop == "zero", stamp, f"a:{self._count}", 0.05)
        self.air.say(Topic(f"{self.stream.topic}/gated", GATED), message)

    def heard(self):
        return self.air.messages(self.stream.topic, self.stream.type)


@pytest.mark.parametrize(("stop", "told"), [("hold", [0.1, 0.2]), ("cease", None), ("zero", [0.0, 0.0])])
def test_without_commands_the_robot_is_brought_to_a_stand(stop, told):
    kind = "trajectory_msgs/msg/JointTrajectory" if stop != "zero" else "std_msgs/msg/Float64MultiArray"
    node = Node(CommandStream("/arm", NAMES, stop, kind))
    node.wait(5.0)
    assert node.heard() == []  # nothing was ever commanded: nothing is to be stopped
    node.send()
    node.wait(0.15)
    assert len(node.heard()) == 1
    node.wait(0.1)
    node.wait(0.1)
    heard = node.heard()[1:]
    # A place is said once, a velocity of zero again and again.
    assert len(heard) == {"hold": 1, "cease": 0, "zero": 2}[stop]
    for message in heard:
        values = message.data if stop == "zero" else message.points[0].positions
        assert values.tolist() == told
    assert node.node.faults["watchdog"] == 1
    node.send((0.3, 0.4))
    assert len(node.heard()) == len(heard) + 2


def test_the_watchdog_heeds_no_clock_of_the_robot():
    """Its stamps stand still; time does not."""
    node = Node(CommandStream("/arm", NAMES, "hold"))
    node.send()
    node.clock.sleep_until(1.0)
    node.node.tick()
    assert node.node.faults["watchdog"] == 1


@pytest.mark.parametrize("by", [-60.0, 60.0])
def test_a_time_of_day_that_is_set_is_followed_and_what_was_on_the_way_does_not_count(by):
    node = Node(CommandStream("/arm", NAMES, "hold"))
    node.send()
    node.wait(0.01, by)
    assert node.node.faults["time of day set"] == 1
    # Stamped before it was set, and one that says it was just now but answers something of before.
    node.send((0.7, 0.7), age=by)
    node.send((0.8, 0.8), age=0.05)
    assert len(node.heard()) == 1
    assert node.node.refused == {"old": 2}
    node.wait(0.01)
    node.send((0.3, 0.4))
    assert node.heard()[-1].points[0].positions.tolist() == [0.3, 0.4]
    # A bridge that begins anew is one of the new time, too.
    node.wait(0.01)
    message = trajectory({"j1": 0.5, "j2": 0.5}, False, node.stamps.now(), "b:0", 0.05)
    node.air.say(Topic("/arm/gated", GATED), message)
    assert node.heard()[-1].points[0].positions.tolist() == [0.5, 0.5]


def test_names_are_put_in_the_robots_order():
    node = Node(CommandStream("/arm", NAMES, "hold", "std_msgs/msg/Float64MultiArray"))
    message = trajectory({"j2": 2.0, "j1": 1.0}, False, node.stamps.now(), "a:0", 0.05)
    node.air.say(Topic("/arm/gated", GATED), message)
    assert node.heard()[0].data.tolist() == [1.0, 2.0]


def test_velocities_are_no_places():
    node = Node(CommandStream("/arm", NAMES, "hold"))
    message = trajectory({"j1": 1.0, "j2": 2.0}, True, node.stamps.now(), "a:0", 0.05)
    node.air.say(Topic("/arm/gated", GATED), message)
    assert node.heard() == []
    assert node.node.refused == {"wrong": 1}


def test_zero_is_what_the_robot_calls_so():
    """Half way is a stand, for this one."""
    node = Node(CommandStream("/arm", NAMES, "zero", scale=2.0, offset=-1.0))
    message = trajectory({"j1": 0.9, "j2": 0.9}, True, node.stamps.now(), "a:0", 0.05)
    node.air.say(Topic("/arm/gated", GATED), message)
    node.wait(0.3)
    assert node.heard()[-1].points[0].velocities.tolist() == [0.5, 0.5]


def test_a_stop_holds_whatever_becomes_of_the_bridge():
    node = Node(CommandStream("/arm", NAMES, "hold"))
    node.send()
    node.air.say(Topic("/vla/stop", "std_msgs/msg/Empty"), empty())
    node.wait(0.01)
    assert node.node.faults["watchdog"] == 1
    heard = len(node.heard())
    node.send((0.5, 0.5))
    assert len(node.heard()) == heard
    # Said before the stop, and heard after it: nobody decides so soon.
    node.air.say(Topic("/vla/reset", "std_msgs/msg/Empty"), empty())
    node.send((0.5, 0.5))
    assert len(node.heard()) == heard
    node.wait(0.3)
    node.air.say(Topic("/vla/reset", "std_msgs/msg/Empty"), empty())
    node.send((0.5, 0.5))
    assert node.heard()[-1].points[0].positions.tolist() == [0.5, 0.5]


def test_a_gate_says_how_it_is_and_a_bridge_hears_it():
    node = Node(CommandStream("/arm", NAMES, "hold"))
    contract = reach_robot(action={"joints": node.stream})
    bridge = RosRobot(contract, node.air.transport(), node.clock, Safety(), "touch")
    node.send(age=0.3)
    node.node.say()
    assert bridge.gate["open"]
    assert bridge.gate["refused"] == {"old": 1}
    node.air.say(Topic("/vla/stop", "std_msgs/msg/Empty"), empty())
    node.node.say()
    assert (bridge.gate["open"], bridge.gate["stopped"]) == (False, True)


def test_a_gate_that_has_just_begun_waits_for_a_reset():
    """It cannot know whether somebody pressed stop before."""
    node = Node(CommandStream("/arm", NAMES, "hold"), passing=False)
    node.send()
    assert node.heard() == []
    node.air.say(Topic("/vla/reset", "std_msgs/msg/Empty"), empty())
    node.send()
    assert len(node.heard()) == 1


def test_a_human_is_not_fought():
    node = Node(CommandStream("/arm", NAMES, "hold"))
    node.send()
    node.air.say(Topic("/vla/takeover", "std_msgs/msg/Bool"), flag(True))
    node.wait(1.0)
    node.send()
    assert len(node.heard()) == 1
    node.air.say(Topic("/vla/takeover", "std_msgs/msg/Bool"), flag(False))
    node.wait(1.0)
    assert len(node.heard()) == 1, "it is not led back to where it was before"
    node.send()
    assert len(node.heard()) == 2


def test_old_commands_reach_no_controller():
    node = Node(CommandStream("/arm", NAMES, "hold"))
    node.send(age=0.3)
    assert node.heard() == []
    assert node.node.refused == {"old": 1}


@pytest.mark.parametrize(("stop", "told"), [("hold", [0.1, 0.2]), ("cease", None), ("zero", [0.0, 0.0])])
def test_a_gate_that_is_told_to_end_leaves_no_motion_behind(stop, told):
    kind = "trajectory_msgs/msg/JointTrajectory" if stop != "zero" else "std_msgs/msg/Float64MultiArray"
    node = Node(CommandStream("/arm", NAMES, stop, kind))
    node.node.stand()
    assert node.heard() == []
    node.send()
    node.node.stand()
    last = node.heard()[1:]
    assert len(last) == (told is not None)
    for message in last:
        values = message.data if stop == "zero" else message.points[0].positions
        assert values.tolist() == told
