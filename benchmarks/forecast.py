"""Whether success under latency can be told beforehand: in real time, and forecast from its recorded latencies.

    python benchmarks/forecast.py --policy nano_lift_moving_diffusion --episodes 300 --out runs/forecast \\
        ddim10:decode=exact,decode.sampler=ddim,decode.steps=10 \\
        ddim50:decode=exact,decode.sampler=ddim,decode.steps=50 plain:decode=plain

Each profile is a name and options of `rollout` that make the policy take another time. It runs in a process of its own
beside the loop, both by the machine's clock, and leaves `latencies.json`; then the same episodes run on the virtual
clock with these latencies played back, the policy deciding alike. What differs is what the forecast misses. The machine
must have nothing else to do. Runs are ordinary commands, and what was finished is not done again. Writes
benchmarks/forecast_<policy>.json and prints a table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from commands import command

from vla_runtime.disk import write_json
from vla_runtime.evaluation.statistics import newcombe_interval
from vla_runtime.machine import hardware

HERE = Path(__file__).parent
# Of control, seconds: delays count in whole ones.
PERIOD = 0.05


def world_delays(folder):
    """Seconds of the world's time that went by before each answer counted, of all episodes of a run."""
    rows = [json.loads(row) for row in (folder / "episodes.jsonl").read_text().splitlines()]
    return np.array([delay for row in rows for delay in row["timing"]["delays_ms"]]) / 1e3


def succeeded(folder):
    """Whether each episode of a run did, by what makes it the same in another."""
    rows = [json.loads(row) for row in (folder / "episodes.jsonl").read_text().splitlines()]
    return {(row["task"], row["episode"], row["initial_state"]): row["success"] for row in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="lift_moving")
    parser.add_argument("--policy", required=True, help="a shipped policy's name or a checkpoint's folder")
    parser.add_argument("--join", default="prefix", help="as loop.join=")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2, help="of the forecast; real time has one")
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("profiles", nargs="+", help="name:option=value,option=value")
    arguments = parser.parse_args()
    policy, found = Path(arguments.policy).name, {}
    for profile in arguments.profiles:
        name, _, options = profile.partition(":")
        common = [
            f"env={arguments.env}", "env.control=absolute", f"policy={arguments.policy}", "loop=async",
            f"loop.join={arguments.join}", f"episodes={arguments.episodes}", "video=none", "record.ticks=false",
            *filter(None, options.split(",")),
        ]  # fmt: skip
        real = arguments.out / f"{name}_real"
        lived = command("rollout", *common, "loop.clock=system", "loop.planner=process", f"out={real}")
        virtual = arguments.out / f"{name}_forecast"
        told = command(
            "rollout", *common, f"loop.latency={real / 'latencies.json'}", f"workers={arguments.workers}",
            f"out={virtual}",
        )  # fmt: skip
        waits = np.array(json.loads((real / "latencies.json").read_text()))
        forecast, happened = succeeded(virtual), succeeded(real)
        worlds = {"real": world_delays(real), "forecast": world_delays(virtual)}
        medians = {where: float(np.median(delays)) for where, delays in worlds.items()}
        if abs(medians["real"] - medians["forecast"]) > PERIOD + 1e-6:
            # A world that waited for somebody, or one that was not as late: another experiment.
            sys.exit(f"{name}: expected the same delays on both worlds' clocks, got medians of {medians} s")
        if forecast.keys() != happened.keys():
            sys.exit(f"{name}: expected the same episodes in {real} and {virtual}")
        pairs = Counter((forecast[key], happened[key]) for key in forecast)
        counts = [pairs[pair] for pair in ((True, True), (True, False), (False, True), (False, False))]
        found[name] = {
            "options": options,
            "latency_s": {f"p{share}": round(float(np.percentile(waits, share)), 4) for share in (50, 95, 99)},
            "world_delay_s": {
                where: {f"p{share}": round(float(np.percentile(delays, share)), 4) for share in (50, 95, 99)}
                for where, delays in worlds.items()
            },
            "real": {key: lived[key] for key in ("episodes", "successes", "errors", "ci95", "control")},
            "forecast": {key: told[key] for key in ("episodes", "successes", "errors", "ci95")},
            "difference": round(told["success_rate"] - lived["success_rate"], 6),
            "difference_ci95": newcombe_interval(*counts),
        }
    document = {"env": arguments.env, "policy": policy, "join": arguments.join, "hardware": hardware()}
    write_json(HERE / f"forecast_{policy}.json", {**document, "profiles": found})
    print("| profile | latency p50 / p95 | in real time | forecast | difference | interval |")
    print("|---|---|---|---|---|---|")
    for name, row in found.items():
        low, high = row["difference_ci95"]
        print(
            f"| {name} | {1e3 * row['latency_s']['p50']:.0f} / {1e3 * row['latency_s']['p95']:.0f} ms "
            f"| {row['real']['successes']} of {row['real']['episodes']} "
            f"| {row['forecast']['successes']} of {row['forecast']['episodes']} "
            f"| {100 * row['difference']:+.1f} | {100 * low:+.1f} to {100 * high:+.1f} |"
        )


if __name__ == "__main__":
    main()
