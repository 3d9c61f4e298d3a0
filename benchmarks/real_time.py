"""Whether the loop keeps its rate in real time while a policy thinks beside it.

    python benchmarks/real_time.py            # 60 s at 50 Hz, then 60 s at 200 Hz from 20 Hz spline chunks
    python benchmarks/real_time.py --seconds 10 --planner thread

The policy keeps a core busy for 150 ms and answers with a curve; a real arm's specs, an environment that only counts.
Prints the last line as JSON and writes benchmarks/real_time.json: ticks served, overruns, period errors, what the
largest step between commands was.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from envs.osc_arm import ABSOLUTE, STATE
from vla_runtime.control.clock import SystemClock
from vla_runtime.control.isolated import Isolated
from vla_runtime.control.joins import Spline
from vla_runtime.control.limits import Limits
from vla_runtime.control.loop import run
from vla_runtime.control.planner import Beside
from vla_runtime.control.safety import Safety, Timeouts
from vla_runtime.control.trace import percentiles
from vla_runtime.disk import write_json
from vla_runtime.machine import hardware
from vla_runtime.spline import SplineCurve, fit
from vla_runtime.types import ActionChunk, CameraSpec, EnvSpec, Observation, PolicySpec

CAMERAS = (CameraSpec("agentview", 256, 256), CameraSpec("robot0_eye_in_hand", 256, 256))
ROWS, ROW_PERIOD, THINKS = 16, 0.05, 0.150


class Counting:
    """An environment whose time is counted in commands."""

    def __init__(self, period, steps):
        self.spec = EnvSpec("counting", CAMERAS, STATE, ABSOLUTE, period, ("nothing",), steps)
        self._images = {camera.name: camera.example() for camera in CAMERAS}
        self._tick = 0

    def observe(self, cameras=()):
        time = self._tick * self.spec.period
        images = {name: self._images[name] for name in cameras}
        return Observation(STATE.example(), images, "nothing", time, dict.fromkeys(images, time))

    def apply(self, command):
        self._tick += 1

    def outcome(self):
        return None


class Busy:
    """A policy that computes for as long as it is told to, and moves the hand along a slow circle."""

    def __init__(self):
        self.spec = PolicySpec("busy", CAMERAS, STATE, ABSOLUTE, ROW_PERIOD, ROWS, curves=True)

    def begin(self, seed):
        return self

    def predict(self, observations, committed=None, deadline=None):
        clock = SystemClock()
        until = clock.now() + THINKS
        numbers = np.random.default_rng(0).normal(size=(200, 200))
        while clock.now() < until:
            numbers = numbers @ numbers.T / np.linalg.norm(numbers)
        time = observations[-1].time
        rows = np.tile(ABSOLUTE.example(), (ROWS, 1)).astype(np.float32)
        angles = 0.5 * (time + ROW_PERIOD * np.arange(ROWS))
        # Beginning where the hand stands.
        rows[:, 0] += 0.1 * np.cos(angles) - 0.1
        rows[:, 1] += 0.1 * np.sin(angles)
        smooth = tuple(range(ABSOLUTE.size - 1))
        curve = SplineCurve(fit(rows[:, :-1], 8, 4, 0.0), 4, (ROWS - 1) * ROW_PERIOD)
        return ActionChunk(rows, time, ROW_PERIOD, time, curve, smooth)

    def close(self):
        pass


def measured(rate, seconds, planner):
    """One run at `rate` Hz."""
    env = Counting(1 / rate, round(rate * seconds))
    policy = Isolated(Busy, ()) if planner == "process" else Busy()
    join = Spline(ABSOLUTE, 1)
    limits = Limits(ABSOLUTE, env.spec.period, {"position": {"speed": 1.0}})
    result = run(
        env, policy.begin(0), replace(policy.spec), SystemClock(), replan=8, planner=Beside, join=join, limits=limits,
        safety=Safety(Timeouts(plan=1.0, observation=1.0)),
    )  # fmt: skip
    policy.close()
    trace = result.trace
    moving = np.stack(trace.commands)[trace.arrivals[0] :, :2]
    return {
        "rate_hz": rate,
        "seconds": seconds,
        "planner": planner,
        "ticks": result.steps,
        "chunks": result.plans,
        "held_after_the_first_chunk": sum(tick > trace.arrivals[0] for tick in trace.held_at),
        "overruns": trace.overruns,
        "period_error_ms": percentiles(trace.period_errors(env.spec.period), 1e3),
        "tick_us": percentiles(trace.ticks, 1e6),
        "largest_speed_m_s": round(float(np.linalg.norm(np.diff(moving, axis=0), axis=1).max() * rate), 4),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--planner", choices=("thread", "process"), default="process")
    arguments = parser.parse_args()
    runs = [measured(rate, arguments.seconds, arguments.planner) for rate in (50, 200)]
    found = {"thinks_s": THINKS, "runs": runs, "hardware": hardware()}
    write_json(Path(__file__).parent / "real_time.json", found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
