"""Robot, bridge and server as processes that speak over ROS 2: what succeeds, and what a killed one leaves."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from robots import reach_robot

from vla_runtime.control.recorder import Recording

HERE = Path(__file__).parent
BRIDGE = ("-m", "vla_runtime.bridge", "transport=rclpy")


def last(process, timeout=60):
    out, errors = process.communicate(timeout=timeout)
    assert out, errors
    return json.loads(out.splitlines()[-1]), process.returncode, errors


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds  # noqa: TID251
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"  # noqa: TID251
        time.sleep(0.05)  # noqa: TID251
    return found


class Stage:
    def __init__(self, ros2, here, folder):
        self._ros2, self._here, self.folder = ros2, here, folder
        self.server = here.start(HERE / "aiming.py")
        self.address = self.server.stdout.readline().strip()
        assert self.address, self.server.communicate()
        self.contract = self.written("robot", reach_robot(expiry=0.4))

    def written(self, name, contract):
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(json.loads(json.dumps(contract.document()))))
        return path

    def robot(self, episodes=1, steps=200, patience=30.0):
        return self._ros2.start(
            *BRIDGE, "side=robot", "env=reach", "env.control=absolute", "env.size=16", f"env.max_steps={steps}",
            f"contract={self.contract}", "transport.node=arm", f"episodes={episodes}", f"patience={patience}",
            f"out={self.folder / 'robot'}",
        )  # fmt: skip

    def bridge(self, name="bridge", *options, episodes=1):
        return self._ros2.start(
            *BRIDGE, f"contract={self.contract}", "policy=remote", f"policy.address={self.address}",
            "instruction=touch the disc", "arm=true", f"episodes={episodes}", f"out={self.folder / name}",
            "safety.observation=1.0", *options,
        )  # fmt: skip

    def ticks(self, name="bridge"):
        found = sorted((self.folder / name).glob("recordings/*"))
        return Recording(found[-1]).ticks if found else []


@pytest.fixture
def stage(ros2, here, tmp_path):
    return Stage(ros2, here, tmp_path)


def test_episodes_over_ros_succeed(stage):
    robot, bridge = stage.robot(episodes=2), stage.bridge(episodes=2)
    said, code, errors = last(bridge)
    assert code == 0, errors
    assert (said["successes"], said["faults"], said["health"]) == (2, {}, [])
    played, code, errors = last(robot)
    assert code == 0, errors
    assert (played["successes"], played["refused"]) == (2, {})


def test_a_killed_bridge_leaves_the_robot_standing_and_the_next_goes_on(stage):
    robot, bridge = stage.robot(), stage.bridge()
    until(lambda: len(stage.ticks()) > 4)
    os.kill(bridge.pid, signal.SIGKILL)
    bridge.wait()
    time.sleep(1.0)  # noqa: TID251
    assert robot.poll() is None
    said, code, errors = last(stage.bridge("second"))
    assert code == 0, errors
    assert said["successes"] == 1
    played, _, errors = last(robot)
    assert played["faults"]["periods without a fresh command"] > 5, errors
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
