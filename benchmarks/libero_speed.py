"""Steps per second and reset times: this package's LIBERO environment against the raw one, in one run.

Ours: `envs.libero`, state every tick, both cameras at 256 px only when a new plan is due, every 8th tick. Raw:
LIBERO's OffScreenRenderEnv, which renders both cameras at 256 px in every step. Same task, same initial states,
same actions, same process; blocks of ticks alternate, so that whatever else the machine does hits both. Steps
exclude resets; resets include the ten settling steps, and the first ones include building. Processor time (of all
threads, Mesa's too) is beside wall time, because it hardly depends on what else the machine does.

    python benchmarks/libero_speed.py [--blocks 6] [--task 0] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.libero import Libero
from envs.libero_scene import SETTLING_ACTION, SETTLING_STEPS
from envs.osc_arm import numpy_seeded
from vla_runtime.control.clock import SystemClock
from vla_runtime.machine import hardware
from vla_runtime.types import Command

SUITE = "libero_object"
CAMERAS = ("agentview", "robot0_eye_in_hand")
REPLAN = 8
TICKS = 5 * REPLAN  # a block
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=6, help="blocks a side")
    parser.add_argument("--task", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    task = arguments.task

    env = Libero(SUITE)
    states = env.stored_states(task)
    first_reset = {"ours": timed(partial(env.reset, SEED, task, 0))}
    env.observe(CAMERAS)  # opens the renderer: not part of any figure, as it is not part of a step
    raw, seconds = built_raw(env, task)
    first_reset["raw"] = seconds + timed(partial(reset_raw, raw, states, task, 0))

    steps: dict[str, list[float]] = {"ours": [], "raw": []}
    processor: dict[str, list[float]] = {"ours": [], "raw": []}
    resets: dict[str, list[float]] = {"ours": [], "raw": []}
    random = np.random.default_rng(SEED)
    for block in range(arguments.blocks):
        actions = random.uniform(-1, 1, (TICKS, 7)).astype(np.float32)
        actions[:, 6] = -1
        resets["ours"].append(timed(partial(env.reset, SEED, task, block + 1)))
        used = time.process_time()
        steps["ours"].append(timed(partial(play, env, actions)) / TICKS)
        processor["ours"].append((time.process_time() - used) / TICKS)
        resets["raw"].append(timed(partial(reset_raw, raw, states, task, block + 1)))
        used = time.process_time()
        steps["raw"].append(timed(partial(play_raw, raw, actions)) / TICKS)
        processor["raw"].append((time.process_time() - used) / TICKS)
    raw.close()
    env.close()

    cpu = {side: float(np.median(seconds)) for side, seconds in processor.items()}
    rate = {side: 1.0 / float(np.median(seconds)) for side, seconds in steps.items()}
    row = {
        "suite": SUITE,
        "task": task,
        "replan": REPLAN,
        "steps_per_s": {side: round(value, 2) for side, value in rate.items()},
        "speedup": round(rate["ours"] / rate["raw"], 2),
        "cpu_ms_per_step": {side: round(1000 * value, 1) for side, value in cpu.items()},
        "cpu_speedup": round(cpu["raw"] / cpu["ours"], 2),
        "reset_s": {side: round(float(np.median(seconds)), 3) for side, seconds in resets.items()},
        "build_and_first_reset_s": {side: round(value, 2) for side, value in first_reset.items()},
        "block_steps_per_s": {side: [round(1.0 / value, 2) for value in seconds] for side, seconds in steps.items()},
        "versions": dict(env.spec.versions),
        "hardware": hardware(),
    }
    for key in ("steps_per_s", "cpu_ms_per_step", "reset_s", "build_and_first_reset_s"):
        print(f"{key:24} ours {row[key]['ours']:>8}   raw {row[key]['raw']:>8}")
    print(f"{'speedup':24} {row['speedup']}, by processor time {row['cpu_speedup']} (replanning every {REPLAN} steps)")
    if arguments.out:
        arguments.out.write_text(json.dumps(row, indent=1) + "\n")
    print(json.dumps(row))


def timed(act: Callable[[], object]) -> float:
    clock = SystemClock()
    start = clock.now()
    act()
    return clock.now() - start


def play(env: Libero, actions: NDArray[np.float32]) -> None:
    for tick, action in enumerate(actions):
        env.observe(CAMERAS if tick % REPLAN == 0 else ())
        env.apply(Command(action, 0.0))


def play_raw(raw: Any, actions: NDArray[np.float32]) -> None:
    for action in actions:
        raw.step(action)


def built_raw(env: Libero, task: int) -> tuple[Any, float]:
    from libero.libero.envs import OffScreenRenderEnv

    built = []
    bddl_file = str(env.task_file(task))
    seconds = timed(
        lambda: built.append(OffScreenRenderEnv(bddl_file_name=bddl_file, camera_heights=256, camera_widths=256))
    )
    return built[0], seconds


def reset_raw(raw: Any, states: NDArray[np.float64], task: int, episode: int) -> None:
    with numpy_seeded(SEED, task, episode):
        raw.reset()
    raw.set_init_state(states[episode % len(states)])
    for _ in range(SETTLING_STEPS):
        raw.step(SETTLING_ACTION)


if __name__ == "__main__":
    main()
