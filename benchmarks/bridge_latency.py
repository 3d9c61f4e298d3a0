"""From an image to the command that answers it, through a bridge and ROS 2.

    python benchmarks/bridge_latency.py          # in an environment with rclpy and the light core

A probe in the robot's place publishes images (256 px, raw) at 30 Hz and joints at 100 Hz; the bridge, a process of its
own, has a policy that answers at once and says in its command which image it saw. Measured is the time from publishing
an image to the first command that saw it, for bridges of several rates. A bridge looks once a period and answers in the
next: what lies between having read an image and being asked about it, and between the answer and the command, is
waiting, of half to one and a half periods, and told apart. Writes benchmarks/bridge_latency_<hardware>.json.
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

from vla_runtime.bridge import RobotClock
from vla_runtime.contract import Contract
from vla_runtime.control.clock import SystemClock
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
# (what, value of the image, moment), in the bridge's process.
STAMPS = []


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


class Stamped(RclpyTransport):
    """ROS 2, and when it had read every image and when it sent every command; kept in a file when it closes."""

    def __init__(self, log, **options):
        super().__init__(**options)
        self._log, self._clock = Path(log), SystemClock()

    def subscribe(self, topic, on_message):
        def stamped(message):
            on_message(message)
            if topic.name == "/scene":
                STAMPS.append(("read", int(message.data[0]), self._clock.now()))

        super().subscribe(topic, stamped)

    def publish(self, topic, message):
        began = self._clock.now()
        super().publish(topic, message)
        if topic.name == gated("/arm"):
            STAMPS.append(("sent", round(message.points[0].positions[0] * VALUES), began))

    def close(self):
        super().close()
        self._log.write_text(json.dumps(STAMPS))


class Echo:
    """Says in its first joint which image it saw."""

    def __init__(self, rate):
        known = contract(rate)
        self.spec = PolicySpec("echo", known.cameras, known.state, known.action, 1 / rate, 4, executed=1)

    def begin(self, seed):
        return self

    def predict(self, observations, committed=None, deadline=None):
        clock, newest = SystemClock(), observations[-1]
        value = int(newest.images["scene"][0, 0, 0])
        STAMPS.append(("asked", value, clock.now()))
        rows = np.zeros((4, 7), np.float32)
        rows[:, 0] = value / VALUES
        STAMPS.append(("said", value, clock.now()))
        return ActionChunk(rows, newest.time, self.spec.period, newest.time)

    def close(self): ...


def echo(rate=20.0, **_):
    """As a command builds it."""
    return Echo(rate)


def waited(stamps, value, began, ended):
    """Seconds of waiting between showing an image and hearing of it; None where a stamp is missing."""
    found = {}
    for what, number, moment in stamps:
        if number == value and began < moment < ended:
            found.setdefault(what, moment)
    if set(found) != {"read", "asked", "said", "sent"}:
        return None
    return found["asked"] - found["read"] + found["sent"] - found["said"]


def measured(rate, seconds, domain, folder):
    """(moments of showing, of hearing, value) of every image that was answered, how many were shown, and the bridge's
    stamps, all on the machine's monotonic clock.
    """
    known = contract(rate)
    path = folder / f"{rate:g}.yaml"
    known.save(path)
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}"}
    bridge = subprocess.Popen(
        [
            *(sys.executable, "-m", "vla_runtime.bridge", "transport=rclpy", f"transport.domain={domain}"),
            *(f"contract={path}", "instruction=echo", "arm=true", "policy=hold", f"out={folder / f'run{rate:g}'}"),
            *("policy._target_=bridge_latency.echo", f"+policy.rate={rate}", "loop.replan=1"),
            *("transport._target_=bridge_latency.Stamped", f"+transport.log={folder / 'stamps.json'}"),
        ],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    clock, stamps, transport = SystemClock(), RobotClock(), RclpyTransport("probe", domain=domain)
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
            transport.publish(joints, state_message(dict.fromkeys(JOINTS, 0.0), stream, stamps.now(), ""))
            if tick * IMAGES_HZ // JOINTS_HZ != (tick - 1) * IMAGES_HZ // JOINTS_HZ:
                value = 1 + images % (VALUES - 2)
                picture = np.full((256, 256, 3), value, np.uint8)
                with lock:
                    # Of the same value, but long ago. The first seconds are for meeting.
                    if value in answered and shown[value] > begins + 5:
                        taken.append((shown[value], answered[value], value))
                    answered.pop(value, None)
                    shown[value] = clock.now()
                transport.publish(scene, image_message(picture, camera, stamps.now(), ""))
                images += 1
            tick += 1
            if bridge.poll() is not None:
                sys.exit(f"bridge: {bridge.communicate()}")
        with lock:
            taken += [(shown[one], answered[one], one) for one in answered if shown[one] > begins + 5]
    finally:
        bridge.terminate()
        bridge.communicate()
        transport.close()
    return taken, round(seconds * IMAGES_HZ), json.loads((folder / "stamps.json").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", type=float, nargs="+", default=[20.0, 100.0, 400.0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--domain", type=int, default=77, help="ROS_DOMAIN_ID")
    arguments = parser.parse_args()
    document = {"hardware": hardware(), "seconds": arguments.seconds, "rates": {}}
    with tempfile.TemporaryDirectory() as folder:
        for rate in arguments.rates:
            taken, shown, stamps = measured(rate, arguments.seconds, arguments.domain, Path(folder))
            whole = [1e3 * (heard - shown) for shown, heard, _ in taken]
            waits = [(1e3 * (heard - shown), waited(stamps, value, shown, heard)) for shown, heard, value in taken]
            alone = [one - 1e3 * wait for one, wait in waits if wait is not None]
            if not alone:
                sys.exit(f"{rate:g} Hz: expected answers, got none")
            (p50, p95), (own50, own95) = (np.percentile(one, (50, 95)) for one in (whole, alone))
            document["rates"][f"{rate:g}"] = {
                "p50_ms": round(float(p50), 3), "p95_ms": round(float(p95), 3),
                "without_waiting_ms": {"p50": round(float(own50), 3), "p95": round(float(own95), 3)},
                "answered": len(taken), "shown": shown,
            }  # fmt: skip
            print(
                f"{rate:g} Hz: p50 {p50:.2f}, p95 {p95:.2f} ms, without waiting {own50:.2f}, {own95:.2f}; "
                f"{len(taken)} of about {shown} images",
                flush=True,
            )
    words = "_".join(re.findall(r"[a-z0-9]+", document["hardware"].lower()))
    write_json(HERE / f"bridge_latency_{words}.json", document)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
