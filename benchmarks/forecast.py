"""Whether success under latency can be told beforehand: forecast from a recorded profile, and then in real time.

    python benchmarks/forecast.py --policy nano_lift_moving_diffusion --episodes 300 --out runs/forecast \\
        ddim10:decode=exact,decode.sampler=ddim,decode.steps=10 \\
        ddim50:decode=exact,decode.sampler=ddim,decode.steps=50 plain:decode=plain

Each profile is a name and options of `rollout` that make the policy take another time. It is recorded in real time, the
policy in a process of its own beside the loop, on a few episodes of another seed, and played back on the virtual clock
over the episodes that then run in real time. What differs is what the forecast misses: that the machine was another, or
that the virtual clock is not the real one. To tell the two apart, the delays that were lived are played back, too. They
are those of the world's clock, which in real time lags behind the wall's where drawing what a policy of several moments
sees takes longer than a period. The machine must have nothing else to do: where delays were others than told, on
average, this ends with 1 once all is written. Runs are ordinary commands, and what was finished is not done again.
Writes benchmarks/forecast_<policy>.json and prints a table.
"""

from __future__ import annotations

import argparse
import hashlib
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
# Seconds by which mean delays may differ: a fifth of a control period, within which they count alike for the most part.
ALIKE = 0.01


def rows_of(folder):
    """Rows of a run by what makes an episode the same in another."""
    rows = [json.loads(row) for row in (folder / "episodes.jsonl").read_text().splitlines()]
    return {(row["task"], row["episode"]): row for row in rows}


def delays_of(rows):
    """Seconds of the world's time that went by before each answer counted: mean and percentiles, of all episodes."""
    delays = np.array([delay for row in rows.values() for delay in row["timing"].get("delays_ms", ())]) / 1e3
    shares = {f"p{share}": round(float(np.percentile(delays, share)), 4) for share in (50, 95, 99)}
    return {"mean": round(float(delays.mean()), 4), **shares}


def difference(forecast, happened):
    """Of success on the same episodes, with its interval: of the forecast, what more there was than happened."""
    pairs = Counter((forecast[key]["success"], happened[key]["success"]) for key in forecast)
    counts = [pairs[pair] for pair in ((True, True), (True, False), (False, True), (False, False))]
    more = (counts[1] - counts[2]) / len(forecast)
    return {"difference": round(more, 6), "difference_ci95": newcombe_interval(*counts)}


def points(row):
    """A difference and its interval, in points."""
    low, high = row["difference_ci95"]
    return f"{100 * row['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="lift_moving")
    parser.add_argument("--policy", required=True, help="a shipped policy's name or a checkpoint's folder")
    parser.add_argument("--join", default="prefix", help="as loop.join=")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--recorded", type=int, default=30, help="episodes, of seed 1, that a profile is recorded on")
    parser.add_argument("--workers", type=int, default=2, help="of the forecast; real time has one")
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("profiles", nargs="+", help="name:option=value,option=value")
    arguments = parser.parse_args()
    policy, found, others = Path(arguments.policy).name, {}, []
    for profile in arguments.profiles:
        name, _, options = profile.partition(":")
        common = [
            f"env={arguments.env}", "env.control=absolute", f"policy={arguments.policy}", "loop=async",
            # Told how long there is, some policies are brief; on the virtual clock nobody is told.
            "loop.deadline=false", f"loop.join={arguments.join}", "video=none", "record.ticks=false",
            *filter(None, options.split(",")),
        ]  # fmt: skip
        real_time = ["loop.clock=system", "loop.planner=process"]
        before, real = (arguments.out / f"{name}_{what}" for what in ("profile", "real"))
        command("rollout", *common, *real_time, "seed=1", f"episodes={arguments.recorded}", f"out={before}")

        def told_from(run, what, common=common, name=name):
            """Folder and last line of a run with the delays of `run`."""
            # One that was recorded anew is another forecast.
            delays = hashlib.sha256((run / "latencies.json").read_bytes()).hexdigest()[:8]
            out = arguments.out / f"{name}_{what}_{delays}"
            return out, command(
                "rollout", *common, f"loop.latency={run / 'latencies.json'}", f"workers={arguments.workers}",
                f"episodes={arguments.episodes}", f"out={out}",
            )  # fmt: skip

        virtual, told = told_from(before, "forecast")
        lived = command("rollout", *common, *real_time, f"episodes={arguments.episodes}", f"out={real}")
        again, retold = told_from(real, "lived")
        forecast, happened, after = rows_of(virtual), rows_of(real), rows_of(again)
        for folder, rows in ((virtual, forecast), (again, after)):
            if any(rows[key]["initial_state"] != happened[key]["initial_state"] for key in rows.keys() | happened):
                sys.exit(f"{name}: expected the same episodes in {real} and {folder}")
        delays = {"recorded": delays_of(rows_of(before)), "forecast": delays_of(forecast), "real": delays_of(happened)}
        apart = delays["forecast"]["mean"] - delays["real"]["mean"]
        if abs(apart) > ALIKE:
            others.append(f"{name}: expected delays of {delays['forecast']['mean']} s, got {delays['real']['mean']} s")
        found[name] = {
            "options": options,
            "delays_s": delays,
            "real": {key: lived[key] for key in ("episodes", "successes", "errors", "ci95", "control")},
            "forecast": {key: told[key] for key in ("episodes", "successes", "errors", "ci95")},
            **difference(forecast, happened),
            "as_told": abs(apart) <= ALIKE,
            "with_lived_delays": {
                "delays_s": delays_of(after),
                **{key: retold[key] for key in ("episodes", "successes", "errors", "ci95")},
                **difference(after, happened),
            },
        }
        document = {"env": arguments.env, "policy": policy, "join": arguments.join, "hardware": hardware()}
        write_json(HERE / f"forecast_{policy}.json", {**document, "profiles": found})
    print("| profile | delays, mean and p95: told | lived | in real time | told | more | with lived delays | more |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in found.items():
        told, lived = (row["delays_s"][where] for where in ("forecast", "real"))
        print(
            f"| {name} | {1e3 * told['mean']:.0f} / {1e3 * told['p95']:.0f} ms "
            f"| {1e3 * lived['mean']:.0f} / {1e3 * lived['p95']:.0f} ms "
            f"| {row['real']['successes']} of {row['real']['episodes']} "
            f"| {row['forecast']['successes']} | {points(row)} "
            f"| {row['with_lived_delays']['successes']} | {points(row['with_lived_delays'])} |"
        )
    if others:
        sys.exit("\n".join(others))


if __name__ == "__main__":
    main()
