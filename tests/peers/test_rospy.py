"""Robot and bridge over ROS 1, with a real master between them."""

from __future__ import annotations

import os
import signal

import pytest
from processes import Stage, kill_a_bridge, last, two_episodes, until

ROSPY = ("transport=rospy",)


@pytest.fixture
def stage(ros1, here, tmp_path):
    return Stage(here, (ros1, *ROSPY, "transport.node=arm"), (ros1, *ROSPY), tmp_path)


def test_episodes_over_ros_succeed(stage):
    two_episodes(stage)


def test_a_killed_bridge_leaves_the_robot_standing_and_the_next_goes_on(stage):
    kill_a_bridge(stage)


def test_without_a_master_there_is_no_bridge_and_one_that_is_lost_is_told(stage, ros1):
    robot = stage.robot(steps=100)
    bridge = stage.bridge("bridge", "steps=60")
    until(lambda: len(stage.ticks()) > 4)
    os.killpg(ros1.master.pid, signal.SIGKILL)
    # Those who have met go on.
    said, _, errors = last(bridge)
    assert "does not answer" in " ".join(said["health"]), errors
    assert said["ticks"] > 20
    robot.kill()
    said, code, _ = last(stage.bridge("late"))
    assert code == 1
    assert "expected a master at" in said["error"]
