"""What figures of ways to decode say: which is best, what beats caching in equal time, how far gaps may go.

Pure functions from judgements to numbers; observations of one episode count as one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from policies.decoding import Decode
from policies.judging import OTHER_NOISE, Judgement
from policies.warm_start import WarmStart
from policies.ways import CAPTURED, scheduled
from vla_runtime.decoding.bac import Array, Schedule
from vla_runtime.evaluation.resampling import bootstrap_interval

# Shares of a full decode's work that differ by so little of themselves count as equal.
_EQUAL_WORK = 0.1


def row_of(name: str, own: Judgement, figures: Mapping[str, Judgement], episodes: Array) -> dict[str, Any]:
    """What is said of a way: time, work and distances, with intervals. episodes: of every frame, int [F]."""
    plain = figures["plain"]
    # Nobody counts a graph's: they are those of what was captured.
    flops = own.flops or figures[name.removesuffix(CAPTURED)].flops or 0
    timed = len(own.seconds) > 0

    def milliseconds(share: float) -> float | None:
        return round(1e3 * float(np.quantile(own.seconds, share)), 3) if timed else None

    # Noises of one observation do not count as observations, nor do observations of one episode as episodes.
    deviation, error, before = (
        _by_episode(values.mean(1), episodes) for values in (own.deviation, own.expert_error, plain.expert_error)
    )
    worse = error - before
    return {
        "variant": name,
        "p50_ms": milliseconds(0.5),
        "p95_ms": milliseconds(0.95),
        "speedup": round(float(np.median(plain.seconds) / np.median(own.seconds)), 2) if timed else None,
        "flops": flops,
        "flops_ratio": round(flops / (plain.flops or 1), 4),
        "deviation": float(np.median(deviation)),
        "deviation_interval": bootstrap_interval(deviation, np.median),
        "expert_error": float(np.mean(error)),
        "expert_error_median": float(np.median(error)),
        "expert_error_median_interval": bootstrap_interval(error, np.median),
        "worse_than_plain": float(np.mean(worse)),
        "worse_than_plain_interval": bootstrap_interval(worse, np.mean),
    }


def with_front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Which rows nothing beats in both time and distance, by more than a rounding error."""
    timed = [row for row in rows if row["p50_ms"] is not None]
    for row in rows:
        row["front"] = row in timed and not any(
            other["p50_ms"] < row["p50_ms"] and other["expert_error"] <= row["expert_error"] * (1 + 1e-6)
            for other in timed
        )
    return rows


def captured_ways(ways: Mapping[str, Decode], figures: Mapping[str, Judgement], episodes: Array) -> dict[str, Decode]:
    """Captured counterparts of the decodings on the front, by their names: graphs change a decoding's time, not its
    chunks, and each takes seconds to capture. figures: of decodings without graphs; episodes: of every frame, int [F].
    """
    rows = with_front([row_of(name, figures[name], figures, episodes) for name in ways])
    front = {row["variant"] for row in rows if row["front"]}
    return {
        f"{name}{CAPTURED}": replace(way, graphs=True)
        for name, way in ways.items()
        if name in front and way.refresh is None
    }


def best_of(rows: Sequence[Mapping[str, Any]], among: Collection[str], tolerance: float) -> tuple[str, bool]:
    """The fastest whose chunks are shown to be as near to recorded ones as plain's, and whether there is one.

    Shown: the upper end of the interval of the paired difference is at most `tolerance` of plain's mean. Where there
    is none, the one with the lowest end.
    """
    allowed = tolerance * next(row["expert_error"] for row in rows if row["variant"] == "plain")
    known = [row for row in rows if row["variant"] in among]
    good = [row for row in known if row["worse_than_plain_interval"][1] <= allowed]
    if good:
        return str(min(good, key=lambda row: row["p50_ms"])["variant"]), True
    return str(min(known, key=lambda row: row["worse_than_plain_interval"][1])["variant"]), False


def episodes_needed(rows: Sequence[Mapping[str, Any]], episodes: int, tolerance: float) -> int | None:
    """From how many episodes on another noise would be shown to be within the tolerance; None where it is, or none is.

    Where plain itself, with other noise, is not, no way whose noise counts can be, however good it is. Intervals
    narrow with the root of how many there are.
    """
    plain, other = (next((row for row in rows if row["variant"] == name), None) for name in ("plain", OTHER_NOISE))
    if plain is None or other is None:
        return None
    low, high = other["worse_than_plain_interval"]
    allowed = tolerance * plain["expert_error"]
    if high <= allowed or allowed == 0:
        return None
    return max(episodes + 1, math.ceil(episodes * float((high - low) / 2 / allowed) ** 2))


def guards(figures: Mapping[str, Judgement], ways: Mapping[str, Decode], cached: str, steps: int) -> dict[int, float]:
    """Bounds on the gap by the first step of a decode: the largest of calibration, and a tenth of its range.

    Cold and warm decodes watch other updates, so their gaps are other numbers.
    """
    found = {}
    for name, way in ways.items():
        gaps = figures[name].gap
        if scheduled(name) == cached and gaps.size:
            first = WarmStart.begins(way.warm_start, steps) if way.warm_start else 0
            found[first] = float(gaps.max() + 0.1 * (gaps.max() - gaps.min()))
    return found


def at_equal_time(rows: Sequence[Mapping[str, Any]], cached: str) -> dict[str, Any]:
    """Of all ways that are no slower than a cached one, that whose chunks are nearest to the recorded ones."""
    own = next(row for row in rows if row["variant"] == cached)
    # What is captured is told by what is, what is not by what is not.
    known = [
        row
        for row in rows
        if row["p50_ms"] is not None
        and row["p50_ms"] <= own["p50_ms"]
        and row["variant"].endswith(CAPTURED) == own["variant"].endswith(CAPTURED)
    ]
    best = min(known, key=lambda row: float(row["expert_error"]))
    kept = ("variant", "p50_ms", "expert_error")
    return {"cached": {key: own[key] for key in kept}, "nearest": {key: best[key] for key in kept}}


def rivals(rows: Sequence[Mapping[str, Any]], cached: str, schedules: Mapping[str, Schedule]) -> list[dict[str, Any]]:
    """Other schedules of as many updates, or as much work, as a cached way, with the medians that tell them apart."""
    own = next(row for row in rows if row["variant"] == cached)
    found = []
    for row in rows:
        made = schedules.get(row["variant"])
        if made is None or row["variant"] == cached:
            continue
        equal = [
            what
            for what, same in (
                ("updates", made.updates == schedules[cached].updates),
                ("work", abs(row["flops_ratio"] - own["flops_ratio"]) <= _EQUAL_WORK * own["flops_ratio"]),
            )
            if same
        ]
        if equal and made.method not in ("bac", "adjacent"):
            medians = {key: row[key] for key in ("expert_error_median", "expert_error_median_interval")}
            found.append({"variant": row["variant"], "equal": equal, **medians})
    return found


def families(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float, str]]]:
    """Points of the plot: rows that were timed, by what they have in common."""
    found: dict[str, list[tuple[float, float, str]]] = {}
    for row in rows:
        if row["p50_ms"] is not None:
            words = str(row["variant"]).replace(",", "").replace(" bubbled", "").split()
            family = " ".join(word for word in words if not word.replace(".", "", 1).isdigit())
            found.setdefault(family, []).append((row["p50_ms"], row["expert_error"], row["variant"]))
    return found


def _by_episode(values: Array, episodes: Array) -> Array:
    return np.array([values[episodes == episode].mean() for episode in np.unique(episodes)])
