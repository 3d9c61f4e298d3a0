"""Success of one policy decoded in several ways, on the same episodes.

    python benchmarks/decodings.py --env can --policy nano_can_diffusion --episodes 300 --out runs/decodings \\
        plain:decode=plain other_noise:decode=plain,policy.seed=1 bac:decode=bac \\
        ddim10:decode=exact,decode.sampler=ddim,decode.steps=10

    python benchmarks/decodings.py --env lift --policy nano_lift_discrete_diffusion --out runs/rounds \\
        T12:decode.steps=12 T8:decode.steps=8 T4:decode.steps=4 T2:decode.steps=2 T1:decode.steps=1

Each way is a name and options of `rollout`. The first is the reference: every other is paired with it, episode by
episode (`compare`); the same way with another noise says how much two runs differ by chance. Rollouts and comparisons
are ordinary commands, and what was finished is not done again. Writes benchmarks/decodings_<policy>.json and prints a
table.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from commands import command

from vla_runtime.disk import write_json
from vla_runtime.machine import hardware

HERE = Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", required=True, help="lift, can, libero_object")
    parser.add_argument("--policy", required=True, help="a shipped policy's name or a checkpoint's folder")
    parser.add_argument("--episodes", type=int, default=100, help="per task")
    parser.add_argument("--margin", default="0.05", help="the loss that would still be accepted")
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("ways", nargs="+", help="name:option=value,option=value")
    arguments = parser.parse_args()
    found = {}
    reference = None
    for way in arguments.ways:
        name, _, options = way.partition(":")
        run = arguments.out / name
        line = command(
            "rollout", f"policy={arguments.policy}", f"env={arguments.env}", "env.control=absolute",
            f"episodes={arguments.episodes}", f"workers={arguments.workers}", "video=none", f"out={run}",
            *filter(None, options.split(",")),
        )  # fmt: skip
        kept = ("episodes", "successes", "errors", "success_rate", "ci95", "latency_ms")
        found[name] = {"options": options, **{key: line[key] for key in kept}}
        rows = [json.loads(row) for row in (run / "episodes.jsonl").read_text().splitlines()]
        chunks = [row["timing"].get("chunks", {}) for row in rows]
        names = sorted({fact for one in chunks for fact in one})
        found[name]["chunks"] = {
            fact: round(sum(one.get(fact, 0.0) for one in chunks) / len(chunks), 4) for fact in names
        }
        if reference is None:
            reference = run
            continue
        # A verdict other than non-inferior is an answer, too; a refusal is not.
        said = command("compare", str(reference), str(run), f"margin={arguments.margin}", may_fail=True)
        if "error" in said:
            sys.exit(f"compare {reference} {run}: {said['error']}")
        found[name]["compared"] = said
    policy = Path(arguments.policy).name
    document = {"env": arguments.env, "policy": policy, "hardware": hardware(), "ways": found}
    write_json(HERE / f"decodings_{policy}.json", document)
    print("| decode | success | interval | difference to the first | verdict | chunk p50 ms |")
    print("|---|---|---|---|---|---|")
    for name, row in found.items():
        low, high = row["ci95"]
        paired = row.get("compared")
        difference = (
            ""
            if paired is None
            else (
                f"{100 * paired['difference']:+.1f} ({100 * paired['ci95'][0]:+.1f} to {100 * paired['ci95'][1]:+.1f})"
            )
        )
        verdict = "" if paired is None else paired["verdict"]
        print(
            f"| {name} | {row['successes']} of {row['episodes']} | {100 * low:.1f} to {100 * high:.1f} % "
            f"| {difference} | {verdict} | {row['latency_ms']['p50']:.1f} |"
        )


if __name__ == "__main__":
    main()
