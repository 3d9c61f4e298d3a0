"""The part of a run's report that tells how the loop went: latency, joins, limits, safety, and time lines.

It reads rows and the summary and draws; success itself is told in `report`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from vla_runtime.evaluation.charts import curve, timeline
from vla_runtime.evaluation.folder import in_order, latency_label
from vla_runtime.evaluation.page import number, section, table
from vla_runtime.evaluation.row_text import Row, episode, plain, result

# Episodes whose time line is drawn.
_TIMELINES = 400


def latency(summary: Mapping[str, Any]) -> str:
    """Success and throughput against delay, of a run with several latencies."""
    points = summary.get("by_latency")
    if not points:
        return ""
    success, speed, lines = [], [], []
    for point in points:
        label, (low, high) = latency_label(point["latency"]), point["ci95"]
        told = f"{label}: {point['successes']} of {point['episodes']}, 95 % {low:.1%} to {high:.1%}"
        # Recorded latencies have no number of their own; they lie where their chunks came.
        x = point["delay"] if isinstance(point["latency"], str) else point["latency"]
        if x is not None:
            success.append((1e3 * x, point["success_rate"], (low, high), told))
            speed.append(
                (1e3 * x, point["per_minute"] or 0.0, None, f"{label}: {number(point['per_minute'])} a minute")
            )
        lines.append(
            (
                escape(label),
                number(None if point["delay"] is None else 1e3 * point["delay"]),
                f"{point['successes']} / {point['episodes']}",
                f"{point['success_rate']:.1%}",
                f'<span class="whole">{low:.1%} to {high:.1%}</span>',
                number(point["per_minute"]),
            )
        )
    cards = ""
    if success:
        cards = "".join(
            f'<div class="card"><b>{name}</b><div class="soft">{told}</div>{chart}</div>'
            for name, told, chart in (
                ("Success", "bars: 95 % Wilson intervals", curve(sorted(success), "latency in ms", 1.0)),
                ("Throughput", "successes per minute of simulated time", curve(sorted(speed), "latency in ms")),
            )
        )
    heads = ("latency", "#mean delay ms", "#successes", "#rate", "95 % Wilson interval", "#successes a minute")
    return (
        f'<h2>Success against latency</h2><div class="charts">{cards}</div>{section("In numbers", table(lines, heads))}'
    )


def control(rows: Sequence[Row]) -> str:
    """How the loop went: what a latency, a join or a limit did to the motion, each latency for itself."""
    latencies = list(dict.fromkeys(row["loop"].get("latency") for row in in_order(rows)))
    if len(latencies) < 2:
        return _control("Control", rows)
    parts = {one: [row for row in rows if row["loop"]["latency"] == one] for one in latencies}
    return "".join(_control(f"Control, latency {latency_label(one)}", members) for one, members in parts.items())


def _control(title: str, rows: Sequence[Row]) -> str:
    lines = []

    def tell(what: str, values: Sequence[float | None], unit: str = "") -> None:
        known = [value for value in values if value is not None]
        if known:
            middle, most = (number(float(found)) for found in (np.median(known), max(known)))
            lines.append((escape(what), f"{middle} {unit}".strip(), f"{most} {unit}".strip(), str(len(known))))

    def delay(row: Row) -> float | None:
        return None if row.get("delay") is None else 1e3 * row["delay"]

    tell("age of an observation when its chunk came", [delay(row) for row in rows], "ms")
    for share in ("p50", "p95"):
        ages = [(row.get("plan_age") or {}).get(share) for row in rows]
        told = [None if one is None else 1e3 * one for one in ages]
        tell(f"age of the plan, {share} of an episode's ticks", told, "ms")
    counts = {
        "held": "ticks held or stood", "late": "chunks later than the policy was told",
        "refused": "chunks too fast to take",
    }  # fmt: skip
    for name, what in counts.items():
        tell(what, [row.get(name) for row in rows])
    for group in sorted({group for row in rows for group in row.get("smoothness") or ()}):
        for name, unit in (("seam_jump", ""), ("seam_velocity_jump", "/s"), ("jerk", "/s³"), ("lag", "s")):
            found = [(row.get("smoothness") or {}).get(group, {}).get(name) for row in rows]
            tell(f"{group}: {name.replace('_', ' ')}", found, unit)
    for share in ("p50", "p95", "p99"):
        errors = [(row["timing"].get("period_error_ms") or {}).get(share) for row in rows]
        tell(f"period error, {share} of an episode", errors, "ms")
    tell("overruns", [row["timing"].get("overruns") for row in rows])
    tell("periods that nobody served", [row["timing"].get("missed") for row in rows])
    broken = Counter[str]()
    for row in rows:
        broken.update(row.get("limits") or {})
    for limit, count in sorted(broken.items()):
        lines.append((f"limit broken: {escape(limit)}", f"{count} ticks", "", ""))
    for row in rows:
        lines.extend(
            (f"safety, {episode(row)}", f"{escape(str(what))} at {when:.2f} s", escape(str(why)), "")
            for when, what, why in row.get("safety") or ()
        )
    units = '<div class="soft">Jumps and jerk are in the unit of their group: metres, radians.</div>'
    note = units if any(row.get("smoothness") for row in rows) else ""
    return section(title, table(lines, ("", "#median", "#largest", "#episodes")) + note) if lines else ""


def timelines(rows: Sequence[Row]) -> str:
    """A bar for each of the first episodes: when chunks came, where it stood, and where they join."""
    told_of = [row for row in rows if row.get("timeline")]
    drawn = told_of[:_TIMELINES]
    if not drawn:
        return ""
    lines = []
    longest = max(row["steps"] for row in drawn)
    for row in drawn:
        marks = [(name, row["timeline"].get(name, [])) for name in ("chunks", "held", "safety", "seams", "limits")]
        label = f"task {row['task']} episode {row['episode']}, {escape(plain(row['loop'].get('latency')))} s"
        lines.append((f'<span class="whole">{label}</span>', timeline(marks, longest), result(row)))
    told = (
        '<div class="soft">One bar an episode: chunks that came (blue), ticks held or stood (orange), ticks in which '
        "safety forbade motion (violet), limits broken (red), seams (dark).</div>"
    )
    count = f"{len(lines)} episodes" if drawn == told_of else f"the first {len(lines)} of {len(told_of)} episodes"
    return section("Time lines", f"<details><summary>{count}</summary>{told}{table(lines)}</details>")
