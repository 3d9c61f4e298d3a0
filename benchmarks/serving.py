"""What a policy server costs beyond its policy, and how many questions it answers.

    python benchmarks/serving.py

Overhead: two images of 224 px a question, raw and as JPEG, to a policy that answers at once: the time from the question
to the answer without what the policy took. Throughput: eight clients that ask as fast as they get answers, with and
without `batch=`. Server and clients are processes of their own on this machine's loopback. Writes
benchmarks/serving_<hardware>.json.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from vla_runtime.control.clock import SystemClock
from vla_runtime.disk import write_json
from vla_runtime.machine import hardware
from vla_runtime.messages import observation_document
from vla_runtime.serving.client import RemotePolicy
from vla_runtime.types import ActionChunk, ActionSpec, CameraSpec, Group, Observation, PolicySpec, StateSpec

HERE = Path(__file__).parent
SIZE, ROWS = 224, 16


class AtOnce:
    """Answers the same chunk, whatever it is shown."""

    def __init__(self) -> None:
        joints = tuple(f"j{index}" for index in range(7))
        action = Group("joints", joints, "absolute", "rad", (-3.0,) * 7, (3.0,) * 7)
        state = Group("joints", joints, "measured", "rad", (-3.0,) * 7, (3.0,) * 7)
        cameras = (CameraSpec("scene", SIZE, SIZE), CameraSpec("wrist", SIZE, SIZE))
        self.spec = PolicySpec("at_once", cameras, StateSpec((state,)), ActionSpec((action,)), 0.05, ROWS)

    def begin(self, seed):
        return self

    def predict(self, observations, committed=None, deadline=None):
        time = observations[-1].time
        return ActionChunk(np.zeros((ROWS, 7), np.float32), time, 0.05, time)

    def close(self): ...


def at_once(**_):
    """As a command builds it, whatever it is given."""
    return AtOnce()


def _drain(stream):
    """Nobody reads further: a full pipe would stop the server."""
    with suppress(ValueError):
        deque(stream, 0)


@contextmanager
def serving(*options):
    """A server in a process of its own while the block runs; its address."""
    with subprocess.Popen(
        [sys.executable, "-m", "vla_runtime.serve", "port=0", *options], stderr=subprocess.PIPE, cwd=HERE,
        stdout=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            said = next((line for line in process.stderr if " at ws://" in line), None)
            if said is None:
                sys.exit(f"serve {' '.join(options)}: expected an address, got none")
            threading.Thread(target=_drain, args=(process.stderr,), daemon=True).start()
            yield said.split()[-1]
        finally:
            process.terminate()


def overhead(address, encoding, questions):
    """Milliseconds of every question beyond the policy's own time, and the part of it that the client's packing is."""
    clock, random = SystemClock(), np.random.default_rng(0)
    remote = RemotePolicy(address, encoding)
    # As smooth as pictures are: noise would make the largest JPEGs there can be.
    rows = np.linspace(0, 255, SIZE)[:, None, None]
    base = (0.5 * rows + 0.5 * rows.transpose(1, 0, 2) + np.array([0, 20, 40])).clip(0, 255)
    session, taken, packed = remote.begin(0), [], []
    line = session._line
    for index in range(questions + 20):
        images = {
            name: (base + random.normal(0, 4, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)
            for name in ("scene", "wrist")
        }
        seen = Observation(np.zeros(7, np.float32), images, "pick up the cup", index * 0.05)
        began = clock.now()
        observation_document(seen, encoding)
        packing = clock.now() - began
        timing = []
        received = line._received
        line._received = lambda kept=timing, real=received: kept.append(real()) or kept[-1]
        began = clock.now()
        session.predict([seen])
        whole = clock.now() - began
        del line._received
        if index >= 20:
            taken.append(1e3 * whole - timing[-1]["server_timing"]["infer_ms"])
            packed.append(1e3 * packing)
    remote.close()
    return taken, packed


def throughput(address, clients, questions):
    """Answers a second to clients that ask as fast as they can, each on a connection of its own."""
    clock = SystemClock()
    remotes = [RemotePolicy(address, timeout=120.0) for _ in range(clients)]
    spec = remotes[0].spec
    images = {one.name: np.full(one.shape, 100, np.uint8) for one in spec.cameras}
    seen = Observation(np.zeros(spec.state.size, np.float32), images, "lift the red cube", 0.0)
    sessions = [remote.begin(index) for index, remote in enumerate(remotes)]
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda session: session.predict([seen]), sessions))
        began = clock.now()
        list(pool.map(lambda session: [session.predict([seen]) for _ in range(questions)], sessions))
        taken = clock.now() - began
    for remote in remotes:
        remote.close()
    return clients * questions / taken


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--policies", nargs="*", default=["nano_lift_beast", "nano_lift_diffusion"])
    arguments = parser.parse_args()
    document = {"hardware": hardware(), "questions": arguments.questions, "overhead_ms": {}, "answers_per_s": {}}
    with serving("policy._target_=serving.at_once") as address:
        for encoding in ("raw", "jpeg", "png"):
            taken, packed = overhead(address, encoding, arguments.questions)
            p50, p95, p99 = np.percentile(taken, (50, 95, 99))
            document["overhead_ms"][encoding] = {
                "p50": round(p50, 3), "p95": round(p95, 3), "p99": round(p99, 3),
                "of_which_packing_p50": round(float(np.median(packed)), 3),
            }  # fmt: skip
            print(f"{encoding}: p50 {p50:.2f}, p95 {p95:.2f}, p99 {p99:.2f} ms beyond the policy", flush=True)
    for name in arguments.policies:
        found = document["answers_per_s"][name] = {}
        for batch in (1, 8):
            with serving(f"policy={name}", f"batch={batch}") as address:
                found[f"batch={batch}"] = round(throughput(address, 8, 40 if "diffusion" not in name else 5), 2)
            print(f"{name}, batch={batch}: {found[f'batch={batch}']} answers/s to 8 clients", flush=True)
    words = "_".join(re.findall(r"[a-z0-9]+", document["hardware"].lower()))
    write_json(HERE / f"serving_{words}.json", document)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
