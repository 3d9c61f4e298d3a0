"""A side that has no ROS at all, and a real ROS 2 node on the other: both directions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from processes import Stage, last, two_episodes
from robots import reach_robot

RCLPY = ("transport=rclpy",)
CYCLONE = ("transport=cyclonedds", "transport.peers=[127.0.0.1]", "transport.interface=lo")


@pytest.fixture
def cyclone(ros2, monkeypatch):
    """Options of a participant in the domain that the test's ROS is in."""
    return (*CYCLONE, f"transport.domain={ros2.domain}")


def test_a_bridge_without_ros_drives_a_robot_with_it(ros2, here, cyclone, tmp_path):
    stage = Stage(here, (ros2, *RCLPY), (here, *cyclone), tmp_path)
    two_episodes(stage)


def test_a_bridge_with_ros_drives_a_robot_without_it(ros2, here, cyclone, tmp_path):
    stage = Stage(here, (here, *cyclone), (ros2, *RCLPY), tmp_path)
    robot, bridge = stage.robot(), stage.bridge()
    said, code, errors = last(bridge)
    assert code == 0, errors
    assert (said["successes"], said["faults"]) == (1, {})
    played, code, errors = last(robot)
    assert code == 0, errors
    assert (played["successes"], played["refused"]) == (1, {})


def test_qualities_that_do_not_match_are_told(ros2, here, cyclone, tmp_path):
    stage = Stage(here, (ros2, *RCLPY), (here, *cyclone), tmp_path)
    wanted = reach_robot()
    cameras = {name: replace(one, reliable=True) for name, one in wanted.robot.cameras.items()}
    robot = stage.robot(patience=5.0)
    stage.contract = stage.written("picky", replace(wanted, robot=replace(wanted.robot, cameras=cameras)))
    said, code, _ = last(stage.bridge("bridge", "patience=4.0"))
    assert code == 1
    assert "expected somebody who agrees on reliable, got another reliability" in said["error"]
    robot.kill()
