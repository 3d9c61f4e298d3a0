"""A bridge that reaches a real ROS 2 node through a rosbridge server of others, and what an outage leaves."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import pytest
from processes import Stage, last, until
from robots import reach_robot


@pytest.fixture
def stage(ros2, rosbridge, here, tmp_path):
    """Its cameras are compressed, since nothing else goes through JSON in time."""
    bridge = (here, "transport=rosbridge", f"transport.address={rosbridge.address}")
    found = Stage(here, (ros2, "transport=rclpy"), bridge, tmp_path)
    wanted = reach_robot(expiry=0.6)
    # This server asks for reliable topics, whatever their publishers offer.
    cameras = {
        name: replace(one, type="sensor_msgs/msg/CompressedImage", reliable=True)
        for name, one in wanted.robot.cameras.items()
    }
    state = {name: replace(one, reliable=True) for name, one in wanted.robot.state.items()}
    found.contract = found.written("robot", replace(wanted, robot=replace(wanted.robot, cameras=cameras, state=state)))
    return found


def test_episodes_through_it_succeed(stage):
    robot, bridge = stage.robot(episodes=2), stage.bridge(episodes=2)
    said, code, errors = last(bridge)
    assert code == 0, errors
    assert said["successes"] == 2, errors
    played, code, errors = last(robot)
    assert code == 0, errors
    assert played["successes"] == 2


def test_an_outage_stops_the_robot_and_nothing_old_is_executed(stage, rosbridge):
    robot, bridge = stage.robot(steps=160), stage.bridge("bridge", "steps=140")
    until(lambda: len(stage.ticks()) > 4)
    os.killpg(rosbridge.server.pid, signal.SIGKILL)
    time.sleep(1.5)  # noqa: TID251
    rosbridge.start()
    said, code, errors = last(bridge)
    # Nobody armed it again: what was stale stays stopped.
    assert code == 1, errors
    assert said["faults"]["commands that could not be sent"] > 5
    assert "connections lost (1 times)" in said["health"]
    played, _, errors = last(robot)
    assert played["faults"]["periods without a fresh command"] > 5, errors
    assert not [reason for reason in played["refused"] if "out of order" in reason], played["refused"]
