"""Success against latency, for every way to join chunks.

    python benchmarks/latency.py --env lift_moving --policy nano_lift_moving_beast --episodes 100 --out runs/latency \\
        sync newest blend adaptive prefix spline

Each name is a run of its own, over all latencies, on the same episodes: `sync` is a robot that stands while the policy
thinks, the others are values of `loop.join`, with the policy beside the loop; `newest,loop.replan=4` adds options. Runs
are ordinary commands, and what was finished is not done again. Writes benchmarks/latency_<policy>.json, the rows and a
plot beside it, and prints a table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from commands import command

from policies.plots import lines
from vla_runtime.disk import replacing, write_json, write_text
from vla_runtime.machine import hardware

HERE = Path(__file__).parent


def loop_of(way):
    """The options of a way to join."""
    join, *options = way.split(",")
    if join == "sync":
        return ["loop=sync", *options]
    return ["loop=async", f"loop.join={join}", *(["decode.guide=true"] if join == "guide" else []), *options]


def smoothness(rows):
    """Means over the episodes of what their rows say of the motion, by group of the action."""
    values = {}
    for row in rows:
        for group, told in (row["smoothness"] or {}).items():
            for name, value in told.items():
                if value is not None:
                    values.setdefault(group, {}).setdefault(name, []).append(value)
    return {
        group: {name: round(sum(known) / len(known), 6) for name, known in told.items()}
        for group, told in values.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="lift_moving")
    parser.add_argument("--policy", required=True, help="a shipped policy's name or a checkpoint's folder")
    parser.add_argument("--latency", default="[0,0.1,0.2,0.4]", help="seconds, as loop.latency=")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--options", nargs="*", default=[], help="more options of the rollout, such as decode=exact")
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("ways", nargs="+", help="sync, or values of loop.join, with a comma before each further option")
    arguments = parser.parse_args()
    policy, found = Path(arguments.policy).name, {}
    for way in arguments.ways:
        run = arguments.out / f"{policy}_{way.replace(',', '_')}"
        line = command(
            "rollout", f"env={arguments.env}", "env.control=absolute", f"policy={arguments.policy}", *loop_of(way),
            f"loop.latency={arguments.latency}", f"episodes={arguments.episodes}", f"workers={arguments.workers}",
            "video=none", "record.ticks=false", f"out={run}", *arguments.options,
        )  # fmt: skip
        text = (run / "episodes.jsonl").read_text()
        rows = [json.loads(row) for row in text.splitlines()]
        for point in line["by_latency"]:
            members = [row for row in rows if row["loop"]["latency"] == point["latency"]]
            point["smoothness"] = smoothness(members)
        found[way] = line["by_latency"]
        write_text(HERE / "rows" / f"latency_{run.name}.jsonl", text)
    name = f"latency_{policy}"
    write_json(
        HERE / f"{name}.json",
        {"env": arguments.env, "policy": policy, "options": arguments.options, "hardware": hardware(), "ways": found},
    )
    panels = {
        "latency, s": {way: [(p["latency"], 100 * p["success_rate"]) for p in points] for way, points in found.items()}
    }
    with replacing(HERE / f"{name}.png") as temporary:
        temporary.write_bytes(lines(panels, f"{policy}: success, %").png)
    latencies = [point["latency"] for point in next(iter(found.values()))]
    print("| `loop.join=` | " + " | ".join(f"{latency:g} s" for latency in latencies) + " |")
    print("|---" * (len(latencies) + 1) + "|")
    for way, points in found.items():
        cells = [f"{p['successes']} ({100 * p['ci95'][0]:.0f} to {100 * p['ci95'][1]:.0f} %)" for p in points]
        print(f"| {way} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
