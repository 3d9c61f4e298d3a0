"""Robot, bridge and server as processes that speak over ROS 2: what succeeds, and what a killed one leaves."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from processes import Stage, kill_a_bridge, last, two_episodes, until
from robots import reach_robot

MANAGING, PLAIN = (Path(__file__).parent / name for name in ("managing.py", "plain_robot.py"))


@pytest.fixture
def stage(ros2, here, tmp_path):
    return Stage(here, (ros2, "transport=rclpy", "transport.node=arm"), (ros2, "transport=rclpy"), tmp_path)


def test_episodes_over_ros_succeed(stage):
    two_episodes(stage)


def test_a_killed_bridge_leaves_the_robot_standing_and_the_next_goes_on(stage):
    kill_a_bridge(stage)
    # Between the two it stood: the second begins where the first was cut off, but for what was under way.
    left, found = stage.ticks()[-1]["command"], stage.ticks("second")[0]["state"][:2]
    assert abs(left - found).max() < 0.15


def test_a_killed_server_ends_the_bridge_and_the_robot_stands(stage):
    robot, bridge = stage.robot(steps=60), stage.bridge()
    until(lambda: len(stage.ticks()) > 4)
    os.killpg(stage.server.pid, signal.SIGKILL)
    said, code, _ = last(bridge)
    assert code == 1
    assert "RemoteError" in said["error"]
    played, _, errors = last(robot)
    assert played["successes"] == 0
    assert played["faults"]["periods without a fresh command"] > 5, errors


def test_qualities_that_do_not_match_are_told(stage):
    wanted = reach_robot()
    cameras = {name: replace(one, reliable=True) for name, one in wanted.robot.cameras.items()}
    robot = stage.robot(patience=5.0)
    stage.contract = stage.written("picky", replace(wanted, robot=replace(wanted.robot, cameras=cameras)))
    said, code, _ = last(stage.bridge("bridge", "patience=4.0"))
    assert code == 1
    assert "got none of camera overhead (no readable message on /cameras/overhead), camera hand" in said["error"]
    assert "expected somebody who agrees on reliable, got another reliability" in said["error"]
    said, code, _ = last(robot)
    assert code == 1
    assert "expected a command within 5 s" in said["error"]


def operator(ros2):
    """What to tell an operator to do with the bridge's node; it says how that went."""
    process = ros2.start(MANAGING, "vla_bridge", stdin=subprocess.PIPE)

    def tell(transition):
        process.stdin.write(f"{transition}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, process.communicate()
        return json.loads(line)

    return tell


def test_ros_tools_start_and_stop_it(stage, ros2):
    """With a lifecycle node's transitions; its parameters and diagnostics say how it is."""
    wanted = reach_robot(expiry=0.4)
    desk = replace(wanted.robot.desk, diagnostics="/diagnostics")
    stage.contract = stage.written("told", replace(wanted, robot=replace(wanted.robot, desk=desk)))
    robot, bridge = stage.robot(steps=500), stage.bridge("bridge", "arm=false")
    until(lambda: len(stage.ticks()) > 4)
    # What does not fit its state has no answer, and the node lives on.
    tell = operator(ros2)
    assert tell("configure")["states"] == ["inactive", "inactive"]
    said = tell("activate")
    assert (said["states"], said["done"]) == (["inactive", "active"], True)
    assert (said["expiry"], said["policy"]) == (0.4, "remote")
    assert said["name"] == "vla_bridge: reach_arm"
    line, code, errors = last(bridge)
    assert code == 0, errors
    assert line["successes"] == 1
    assert line["events"] == [["stopped", "not armed yet"], ["reset", ""]]
    last(robot)


def test_one_that_is_deactivated_stands(stage, ros2):
    robot, bridge = stage.robot(steps=160), stage.bridge("bridge", "arm=false", "steps=150")
    tell = operator(ros2)
    until(lambda: stage.ticks())
    tell("activate")
    until(lambda: sum(tick["allowed"] for tick in stage.ticks()) > 2)
    assert tell("deactivate")["states"] == ["active", "inactive"]
    line, code, errors = last(bridge)
    assert code == 1, errors
    assert line["events"] == [["stopped", "not armed yet"], ["reset", ""], ["stopped", "deactivated"]]
    ticks = stage.ticks()
    last_move = max(index for index, tick in enumerate(ticks) if tick["allowed"])
    held = [tick["command"].tobytes() for tick in ticks[last_move + 1 :]]
    assert len(held) > 5
    assert len(set(held)) == 1
    last(robot)


class PlainRobot:
    """A robot that knows nothing of this package; what it is told is a word."""

    def __init__(self, ros2, kind="trajectory"):
        self.process = ros2.start(PLAIN, kind, stdin=subprocess.PIPE)
        assert self.process.stdout.readline() == "ready\n", self.process.communicate()

    def tell(self, word):
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def told(self):
        self.tell("told")
        return json.loads(self.process.stdout.readline())


def gate(ros2, contract, *options):
    options = ("transport=rclpy", "side=gate", f"contract={contract}", *options)
    return ros2.start("-m", "vla_runtime.bridge", *options)


def test_what_a_robot_says_and_hears_is_byte_for_byte_what_was_seen_and_sent(stage, ros2):
    """Images, joints in an order of their own with others among them, and commands."""
    robot = PlainRobot(ros2)
    said, _, errors = last(stage.bridge("bridge", "record.images=png", "steps=30"))
    assert (said["ticks"], said["faults"]) == (30, {}), errors
    heard, recording = robot.told(), stage.recording()
    shown = [recording.observation(index) for index in range(30)]
    images = [image for seen in shown for image in seen.images.values()]
    assert len(images) >= 2 * 6
    assert {hashlib.sha256(image.tobytes()).hexdigest() for image in images} <= set(heard["images"])
    joints = {np.float32(values).tobytes() for values in heard["said"].values()}
    assert all(seen.state.tobytes() in joints for seen in shown)
    sent = [tick["command"].astype(np.float64).tolist() for tick in recording.ticks]
    # Whoever was found a moment later has not heard the first.
    assert len(heard["heard"]) > 15
    assert heard["heard"] == sent[-len(heard["heard"]) :]


@pytest.mark.parametrize(
    ("mood", "fault"),
    [("nan", "state joints: left out"), ("freeze", "state joints: not newer"), ("blind", "streams further apart")],
)
def test_what_makes_no_sense_or_stands_still_stops_the_robot_within_its_limit(stage, ros2, mood, fault):
    """Of a second here, and a few periods until somebody looks."""
    robot, bridge = PlainRobot(ros2), stage.bridge("bridge", "steps=100")
    until(lambda: len(stage.ticks()) > 10)
    robot.tell(mood)
    said, code, errors = last(bridge)
    assert code == 1, errors
    ((what, why),) = said["events"]
    assert (what, "expected one within 1.0 s" in why) == ("stopped", True), why
    assert any(name.startswith(fault) for name in said["faults"])
    ticks = stage.ticks()
    first = next(index for index, tick in enumerate(ticks) if not tick["allowed"])
    seen = [min([tick["time"], *tick["image_times"].values()]) for tick in ticks]
    assert ticks[first]["now"] - max(seen[: first + 1]) < 1.6
    held = {tuple(command) for command in robot.told()["heard"][-(len(ticks) - first) + 3 :]}
    assert len(held) == 1
    assert np.isfinite(list(held)).all()


def test_a_stop_holds_over_the_death_of_a_bridge_and_a_dead_gate_moves_nothing(stage, ros2):
    robot, first = PlainRobot(ros2), gate(ros2, stage.contract)
    bridge = stage.bridge("bridge", "steps=400")
    # A gate that has just begun knows of no stop before it, and waits for a reset.
    until(lambda: len(robot.told()["heard"]) > 5)
    assert robot.told()["done"] == []

    def opened():
        # Whoever is not there yet hears nothing.
        robot.tell("reset")
        return len(robot.told()["done"]) > 5

    until(opened)
    # Said once, with a quality of service that no reliable subscription hears.
    robot.tell("whisper")
    until(lambda: stage.ticks() and not stage.ticks()[-1]["allowed"])
    os.killpg(bridge.pid, signal.SIGKILL)
    stopped = len(robot.told()["done"])
    # The next one is armed, and moves; the gate has not forgotten.
    second = stage.bridge("second", "steps=400")
    heard = len(robot.told()["heard"])
    until(lambda: len(robot.told()["heard"]) > heard + 20)
    assert len(robot.told()["done"]) <= stopped + 1
    robot.tell("reset")
    until(lambda: len(robot.told()["done"]) > stopped + 5)
    # Killed in turn: nothing reaches the controllers, and the next gate lets through what is fresh.
    os.killpg(first.pid, signal.SIGKILL)
    time.sleep(0.2)  # noqa: TID251
    dead = len(robot.told()["done"])
    time.sleep(0.5)  # noqa: TID251
    assert len(robot.told()["done"]) == dead
    gate(ros2, stage.contract, "arm=true")
    until(lambda: len(robot.told()["done"]) > dead + 3)
    os.killpg(robot.process.pid, signal.SIGKILL)
    said, code, errors = last(second)
    assert code == 1, errors
    assert "expected one within" in said["error"]


def test_a_gate_speaks_as_controllers_do(stage, ros2):
    """An array in the robot's order; a twist, and a zero again and again where nobody commands any more."""
    wanted = reach_robot(expiry=0.4)
    arrays = {"joints": replace(wanted.robot.action["joints"], type="std_msgs/msg/Float64MultiArray")}
    contract = stage.written("array", replace(wanted, robot=replace(wanted.robot, action=arrays)))
    robot, one = PlainRobot(ros2, "array"), gate(ros2, contract, "arm=true")
    stage.contract = contract
    bridge = stage.bridge("bridge", "steps=400")
    until(lambda: len(robot.told()["done"]) > 10)
    told = robot.told()
    assert all(values in told["heard"] for values in told["done"])
    for process in (bridge, robot.process, one):
        os.killpg(process.pid, signal.SIGKILL)
    moving = reach_robot("velocity", expiry=0.4)
    body = replace(moving.robot.action["joints"], type="geometry_msgs/msg/Twist", names=("linear.x", "angular.z"))
    twisting = stage.written("twist", replace(moving, robot=replace(moving.robot, action={"joints": body})))
    robot, _ = PlainRobot(ros2, "twist"), gate(ros2, twisting, "arm=true")

    def moved():
        robot.tell("twist")
        return [0.5, -0.25] in robot.told()["done"]

    until(moved)
    until(lambda: robot.told()["done"][-3:] == [[0.0, 0.0]] * 3)
