"""From an image to the command that answers it, through a bridge and ROS 2.

    python benchmarks/bridge_latency.py          # in an environment with rclpy and the light core

A probe in the robot's place publishes images (256 px, raw) at 30 Hz and joints at 100 Hz; the bridge, a process of its
own, has a policy that answers at once and says in its command which image it saw. Measured is the time from publishing
an image to the first command that saw it, for bridges of several rates: a bridge looks once a period and answers in the
next, so that half to one and a half periods of it are waiting. Writes benchmarks/bridge_latency_<hardware>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import yaml

from vla_runtime.bridge import RobotClock
from vla_runtime.contract import Contract
from vla_runtime.disk import write_json
from vla_runtime.machine import hardware
from vla_runtime.robot_side import CameraStream, CommandStream, RobotSide, StateStream, Topic
from vla_runtime.ros.messages import image_message, read_trajectory, state_message
from vla_runtime.ros.rclpy_transport import RclpyTransport
from vla_runtime.ros.robot import GATED, gated
from vla_runtime.types import ActionChunk, ActionSpec, CameraSpec, Group, PolicySpec, StateSpec

HERE = Path(__file__).parent
JOINTS = tuple(f"j{index}" for index in range(7))
IMAGES_HZ, JOINTS_HZ, VALUES = 30, 100, 200


def contract(rate):
    state = Group("joints", JOINTS, "measured", "rad", (-3.0,) * 7, (3.0,) * 7)
    action = Group("joints", JOINTS, "absolute", "rad", (-3.0,) * 7, (3.0,) * 7)
    side = RobotSide(
        "probe",
        {"scene": CameraStream("/scene", "sensor_msgs/msg/Image", max_age=1.0, reliable=True)},
        {"joints": StateStream("/joint_states", JOINTS, max_age=1.0)},
        {"joints": CommandStream("/arm", JOINTS, "hold")},
        expiry=1.0,
    )
    return Contract((CameraSpec("scene", 256, 256),), StateSpec((state,)), ActionSpec((action,)), rate, robot=side)


class Echo:
    """Says in its first joint which image it saw."""

    def __init__(self, rate):
        known = contract(rate)
        self.spec = PolicySpec("echo", known.cameras, known.state, known.action, 1 / rate, 4, executed=1)

    def begin(self, seed):
        return self

    def predict(self, observations, committed=None, deadline=None):
        newest = observations[-1]
        rows = np.zeros((4, 7), np.float32)
        rows[:, 0] = newest.images["scene"][0, 0, 0] / VALUES
        return ActionChunk(rows, newest.time, self.spec.period, newest.time)

    def close(self): ...


def echo(rate=20.0, **_):
    """As a command builds it."""
    return Echo(rate)


def measured(rate, seconds, domain, folder):
    """Milliseconds of every image that was answered, and how many were shown."""
    known = contract(rate)
    path = folder / f"{rate:g}.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(known.document()))))
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}"}
    bridge = subprocess.Popen(
        [
            *(sys.executable, "-m", "vla_runtime.bridge", "transport=rclpy", f"transport.domain={domain}"),
            *(f"contract={path}", "instruction=echo", "arm=true", "policy=hold", f"out={folder / f'run{rate:g}'}"),
            *("policy._target_=bridge_latency.echo", f"+policy.rate={rate}", "loop.replan=1"),
        ],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    clock, transport = RobotClock(), RclpyTransport("probe", domain=domain)
    shown, answered, lock = {}, {}, threading.Lock()
    camera, stream = known.robot.cameras["scene"], known.robot.state["joints"]
    scene, joints = (Topic(one.topic, one.type, one.reliable, one.depth) for one in (camera, stream))
    transport.open([scene, joints])

    def heard(message):
        now = clock.now()
        values, _, _ = read_trajectory(message, False)
        value = round(values["j0"] * VALUES)
        with lock:
            if value in shown and value not in answered:
                answered[value] = now

    transport.subscribe(Topic(gated("/arm"), GATED), heard)
    taken, images, tick, begins = [], 0, 0, clock.now()
    try:
        while clock.now() < begins + seconds + 5:
            now = begins + tick / JOINTS_HZ
            clock.sleep_until(now)
            transport.publish(joints, state_message(dict.fromkeys(JOINTS, 0.0), stream, clock.now(), ""))
            if tick * IMAGES_HZ // JOINTS_HZ != (tick - 1) * IMAGES_HZ // JOINTS_HZ:
                value = 1 + images % (VALUES - 2)
                picture = np.full((256, 256, 3), value, np.uint8)
                with lock:
                    # Of the same value, but long ago. The first seconds are for meeting.
                    if value in answered and shown[value] > begins + 5:
                        taken.append(1e3 * (answered[value] - shown[value]))
                    answered.pop(value, None)
                    shown[value] = clock.now()
                transport.publish(scene, image_message(picture, camera, clock.now(), ""))
                images += 1
            tick += 1
            if bridge.poll() is not None:
                sys.exit(f"bridge: {bridge.communicate()}")
        with lock:
            taken += [1e3 * (answered[one] - shown[one]) for one in answered if shown[one] > begins + 5]
    finally:
        bridge.terminate()
        bridge.communicate()
        transport.close()
    return taken, round(seconds * IMAGES_HZ)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", type=float, nargs="+", default=[20.0, 100.0, 400.0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--domain", type=int, default=77, help="ROS_DOMAIN_ID")
    arguments = parser.parse_args()
    document = {"hardware": hardware(), "seconds": arguments.seconds, "rates": {}}
    with tempfile.TemporaryDirectory() as folder:
        for rate in arguments.rates:
            taken, shown = measured(rate, arguments.seconds, arguments.domain, Path(folder))
            if not taken:
                sys.exit(f"{rate:g} Hz: expected answers, got none")
            p50, p95 = np.percentile(taken, (50, 95))
            document["rates"][f"{rate:g}"] = {
                "p50_ms": round(float(p50), 3), "p95_ms": round(float(p95), 3), "answered": len(taken), "shown": shown,
            }  # fmt: skip
            print(f"{rate:g} Hz: p50 {p50:.2f}, p95 {p95:.2f} ms, {len(taken)} of about {shown} images", flush=True)
    words = "_".join(re.findall(r"[a-z0-9]+", document["hardware"].lower()))
    write_json(HERE / f"bridge_latency_{words}.json", document)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
