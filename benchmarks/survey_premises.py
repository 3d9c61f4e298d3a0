"""Surveys the stored initial states of LIBERO's four test suites: which scenes are as their task presumes?

All 40 tasks x 50 stored states are begun once through `envs.libero` and their premises are checked after the
settling steps. The table is written after every task, beside this file; a run that was stopped goes on where it
was. Fixture poses are those of seed 0.

    python benchmarks/survey_premises.py [--out FOLDER] [--suites libero_goal,libero_10]
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from envs.libero import Libero
from vla_runtime.machine import hardware

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
STATES = 50
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the table")
    parser.add_argument("--suites", default=",".join(SUITES), help="suites, separated by commas")
    arguments = parser.parse_args()
    table_file = arguments.out / "libero_premises.json"
    suites = arguments.suites.split(",")
    table = read_table(table_file)
    for suite in suites:
        env = Libero(suite)
        surveyed = table["suites"].setdefault(suite, [])
        for task in range(len(surveyed), len(env.spec.tasks)):
            versions = dict(env.spec.versions)
            if table["versions"] not in ({}, versions):
                raise SystemExit(f"{table_file}: expected {versions}, got {table['versions']}; use another --out")
            table["versions"] = versions
            surveyed.append(survey(env, task))
            replace_text(table_file, json.dumps(table, indent=1) + "\n")
            replace_text(table_file.with_suffix(".md"), markdown(table))
            print(f"{suite} {task}: {surveyed[-1]['intact']} of {surveyed[-1]['states']} intact", flush=True)
        env.close()
    tasks = [task for surveyed in table["suites"].values() for task in surveyed]
    total = {"tasks": len(tasks), "states": sum(task["states"] for task in tasks)}
    print(json.dumps({**total, "intact": sum(task["intact"] for task in tasks), "out": str(table_file)}))


def survey(env: Libero, task: int) -> dict[str, Any]:
    """Begin every stored state of a task once; which are intact, and what is broken in the others."""
    broken = {}
    for index in range(STATES):
        facts = env.reset(SEED, task, index)
        if not facts["premise"]:
            broken[str(index)] = facts["premise_broken"]
    return {"task": env.spec.tasks[task], "states": STATES, "intact": STATES - len(broken), "broken": broken}


def read_table(path: Path) -> dict[str, Any]:
    """The table so far, or an empty one."""
    if path.is_file():
        table: dict[str, Any] = json.loads(path.read_text())
        return table
    return {"seed": SEED, "versions": {}, "hardware": hardware(), "suites": {}}


def markdown(table: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in table["versions"].items())
    lines = [
        "# Premises of LIBERO's stored initial states",
        "",
        "Scenes that, after the ten settling steps, are as their task presumes: `benchmarks/survey_premises.py`.",
        f"Versions: {versions}. Hardware: {table['hardware']}.",
        "",
        "| suite | task | instruction | intact | broken states |",
        "|---|---|---|---|---|",
    ]
    for suite, surveyed in table["suites"].items():
        for index, task in enumerate(surveyed):
            broken = "; ".join(f"{state}: {', '.join(terms)}" for state, terms in task["broken"].items()) or "none"
            lines.append(f"| {suite} | {index} | {task['task']} | {task['intact']} / {task['states']} | {broken} |")
    return "\n".join(lines) + "\n"


def replace_text(path: Path, text: str) -> None:
    """Write whole or not at all."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text)
    os.replace(unfinished, path)


if __name__ == "__main__":
    main()
