"""Robot, bridge and server as processes that speak over ROS 2: what succeeds, and what a killed one leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from processes import Stage, kill_a_bridge, last, two_episodes, until
from robots import reach_robot

MANAGING = Path(__file__).parent / "managing.py"


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
    assert "got none of camera overhead, camera hand" in said["error"]
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
