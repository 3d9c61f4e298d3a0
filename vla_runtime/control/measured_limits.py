"""Limits taken from demonstrations: what good motion never exceeded, with room, and how often that is a false alarm.

It knows rows of commands and their spec; where they come from is the caller's business.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_runtime.control.limits import Limits, motion
from vla_runtime.types import ActionSpec, Command, Float

Groups = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Commands [T, A] of a motion. still: the action that moves nothing where it begins, if it does so from rest."""

    rows: Float
    still: Float | None = None


def measure_limits(spec: ActionSpec, episodes: Sequence[Stretch], period: float, margin: float) -> Groups:
    """Limits by group that every episode keeps, its first step from rest too: their extremes, `margin` times as wide.

    Speed and acceleration for all groups that move (no acceleration for increments to a measured pose), a workspace
    for absolute ones that are no rotation. ValueError for a margin below 1 and where there is nothing to measure.
    """
    if not margin >= 1:
        raise ValueError(f"margin: expected at least 1, got {margin}")
    if not any(len(one.rows) > 2 for one in episodes):
        raise ValueError("data: expected episodes of more than 2 rows, got none")
    found: Groups = {}
    for group in spec.groups:
        if group.kind == "binary":
            continue
        moved = (motion(spec, group.name, one.rows, period, one.still) for one in episodes)
        speeds, changes = zip(*moved, strict=True)
        found[group.name] = {"speed": _most(speeds, margin)}
        if group.kind != "delta":
            found[group.name]["acceleration"] = _most(changes, margin)
        if group.kind == "absolute" and group.rotation is None:
            rows = np.concatenate([one.rows for one in episodes])[:, spec.slices[group.name]].astype(np.float64)
            low, high = rows.min(0), rows.max(0)
            room = (margin - 1) * (high - low) / 2
            inside = np.clip([low - room, high + room], group.low, group.high)
            found[group.name]["low"] = [-_rounded_up(-float(value)) for value in inside[0]]
            found[group.name]["high"] = [_rounded_up(float(value)) for value in inside[1]]
    return found


def false_alarms(spec: ActionSpec, episodes: Sequence[Stretch], period: float, groups: Groups) -> dict[str, Any]:
    """How often `groups` would have stopped good motion: {episodes, alarmed, ticks, alarms, limits: {name: ticks}}."""
    alarmed = ticks = alarms = 0
    broken: Counter[str] = Counter()
    for one in episodes:
        limits = Limits(spec, period, groups, "warn")
        if one.still is not None:
            limits.rest(one.still)
        told = 0
        for index, row in enumerate(one.rows):
            limits.clamp(Command(row, index * period))
            told += bool(limits.broken)
        broken.update(limits.events)
        alarmed, alarms, ticks = alarmed + bool(told), alarms + told, ticks + len(one.rows)
    return {
        "episodes": len(episodes),
        "alarmed": alarmed,
        "ticks": ticks,
        "alarms": alarms,
        "limits": dict(sorted(broken.items())),
    }


def _most(values: Sequence[Any], margin: float) -> float:
    # A group that never moved may still be told to, a little.
    return _rounded_up(max(float(np.concatenate(values).max(initial=0.0)) * margin, 1e-3))


def _rounded_up(value: float) -> float:
    # Never to the inside, where what was measured would break it.
    return round(math.ceil(value * 1e6) / 1e6, 6)
