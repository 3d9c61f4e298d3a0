"""What a data set holds, in numbers: lengths, idle stretches, action ranges, gripper switches, success of the expert.

`build` makes the document that lies in meta/vla_runtime.json, `report` reads it for a finished set again
from the rows. Knows no environment; `vla_runtime.data.page` draws it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_runtime.data.episode import Columns
from vla_runtime.data.idle import idle_rows, stretches
from vla_runtime.types import ActionSpec, StateSpec

Document = dict[str, Any]


def report(folder: str | Path) -> Document:
    """The report of a finished data set, computed from its rows; errors as for `Dataset`."""
    from vla_runtime.data.reader import Dataset

    data = Dataset(folder, horizon=1)
    columns = [data.episode(i) for i in range(len(data.episodes))]
    facts = [record.facts for record in data.episodes]
    return build(columns, facts, data.own["attempts"], data.contract.state, data.actions)


def build(
    columns: Sequence[Columns],
    facts: Sequence[Mapping[str, Any]],
    attempts: Sequence[Mapping[str, Any]],
    state: StateSpec,
    actions: Mapping[str, ActionSpec],
) -> Document:
    """columns: of each episode, [T, D] by feature. facts: {task, trimmed, ...} of each episode.

    attempts: one a task, {task, instruction, attempts, successes, success_rate}. Returns JSON values.
    """
    lengths = [len(values["action"]) for values in columns]
    tasks = []
    for task in attempts:
        own = [length for length, fact in zip(lengths, facts, strict=True) if fact["task"] == task["task"]]
        tasks.append({**task, "episodes": len(own), "length": _spread(own)})
    return {
        "episodes": len(columns),
        "frames": int(sum(lengths)),
        "length": _spread(lengths),
        "lengths": lengths,
        "tasks": tasks,
        "idle": _idle(columns, facts, state, actions),
        "actions": {name: _ranges(columns, name, spec) for name, spec in actions.items()},
        "gripper_switches": _switches(columns, actions["action"]),
    }


def _spread(values: Sequence[int]) -> Document:
    if not values:
        return {"min": None, "median": None, "max": None}
    return {"min": int(min(values)), "median": float(np.median(values)), "max": int(max(values))}


def _idle(
    columns: Sequence[Columns], facts: Sequence[Mapping[str, Any]], state: StateSpec, actions: Mapping[str, ActionSpec]
) -> Document:
    runs = [stretches(idle_rows(values, state, actions)) for values in columns]
    total = sum(len(values["action"]) for values in columns)
    rows = sum(length for found in runs for _, length in found)
    return {
        "rows": rows,
        "share": rows / total,
        "stretches": sum(len(found) for found in runs),
        "longest": max((length for found in runs for _, length in found), default=0),
        "rows_if_trimmed": total - rows,
        "rows_already_trimmed": int(sum(fact["trimmed"] for fact in facts)),
        "by_episode": [[list(run) for run in found] for found in runs],
    }


def _ranges(columns: Sequence[Columns], name: str, spec: ActionSpec) -> list[Document]:
    values = np.concatenate([found[name] for found in columns]).astype(np.float64)
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    return [
        {
            "name": dimension,
            "min": float(values[:, i].min()),
            "q01": float(q01[i]),
            "q99": float(q99[i]),
            "max": float(values[:, i].max()),
            # JSON has no infinity.
            "low": float(spec.low[i]) if np.isfinite(spec.low[i]) else None,
            "high": float(spec.high[i]) if np.isfinite(spec.high[i]) else None,
        }
        for i, dimension in enumerate(spec.names)
    ]


def _switches(columns: Sequence[Columns], spec: ActionSpec) -> Document:
    binary = [i for group in spec.groups if group.kind == "binary" for i in _dimensions(spec, group.name)]
    if not binary:
        return _spread([])
    counts = [int(np.count_nonzero(np.diff(np.sign(found["action"][:, binary]), axis=0))) for found in columns]
    return {**_spread(counts), "by_episode": counts}


def _dimensions(spec: ActionSpec, group: str) -> range:
    part = spec.slices[group]
    return range(part.start, part.stop)
