"""Robot, bridge and server as processes of their own, each in its environment and over its transport."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from robots import reach_robot

from vla_runtime.control.recorder import Recording

AIMING = Path(__file__).parent.parent / "peers" / "aiming.py"


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
    """robot, bridge: each the Python it runs in and the options that say its transport."""

    def __init__(self, here, robot, bridge, folder):
        self._robot, self._bridge, self.folder = robot, bridge, folder
        self.server = here.start(AIMING)
        self.address = self.server.stdout.readline().strip()
        assert self.address, self.server.communicate()
        self.contract = self.written("robot", reach_robot(expiry=0.4))

    def written(self, name, contract):
        path = self.folder / f"{name}.yaml"
        contract.save(path)
        return path

    def robot(self, episodes=1, steps=200, patience=30.0):
        python, *transport = self._robot
        return python.start(
            *("-m", "vla_runtime.bridge", *transport, "side=robot", f"contract={self.contract}"),
            *("env=reach", "env.control=absolute", "env.size=16", f"env.max_steps={steps}"),
            *(f"episodes={episodes}", f"patience={patience}", f"out={self.folder / 'robot'}"),
        )

    def bridge(self, name="bridge", *options, episodes=1):
        python, *transport = self._bridge
        return python.start(
            *("-m", "vla_runtime.bridge", *transport, f"contract={self.contract}"),
            *("policy=remote", f"policy.address={self.address}", "instruction=touch the disc", "arm=true"),
            *(f"episodes={episodes}", f"out={self.folder / name}", "safety.observation=1.0", *options),
        )

    def recording(self, name="bridge"):
        found = sorted((self.folder / name).glob("recordings/*"))
        return Recording(found[-1]) if found else None

    def ticks(self, name="bridge"):
        found = self.recording(name)
        return found.ticks if found else []


def two_episodes(stage):
    """Robot and bridge play two episodes, and nobody complains."""
    robot, bridge = stage.robot(episodes=2), stage.bridge(episodes=2)
    said, code, errors = last(bridge)
    assert code == 0, errors
    assert (said["successes"], said["faults"], said["health"]) == (2, {}, [])
    played, code, errors = last(robot)
    assert code == 0, errors
    assert (played["successes"], played["refused"]) == (2, {})


def kill_a_bridge(stage):
    """One is killed while its robot moves: it stands, and goes on with the next."""
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
