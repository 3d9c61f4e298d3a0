"""The report of a data set as one HTML file with inline drawings: no script, no network.

A pure function from the document of `vla_runtime.data.report` to text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
td, th { padding: .2rem .8rem .2rem 0; text-align: right; font-variant-numeric: tabular-nums; }
td:first-child, th:first-child { text-align: left; }
th { border-bottom: 1px solid #bbb; font-weight: 600; }
svg { display: block; margin: .5rem 0 1.5rem; } .note { color: #666; }
"""
_MAX_TIMELINES = 60


def page(title: str, document: Mapping[str, Any], notes: Mapping[str, Any]) -> str:
    """A whole HTML document. notes: what else to say about the set, key and value."""
    idle = document["idle"]
    body = [
        f"<h1>{escape(title)}</h1>",
        _table(("", ""), [(key, str(value)) for key, value in notes.items()]),
        f"<p>{document['episodes']} episodes, {document['frames']} rows.</p>",
        "<h2>Tasks</h2>",
        _tasks(document["tasks"]),
        "<h2>Episode lengths</h2><p class=note>Rows a control period; episodes on the vertical axis.</p>",
        _histogram(document["lengths"]),
        "<h2>Idle rows</h2>",
        f"<p>{idle['rows']} idle rows ({idle['share']:.1%}) in {idle['stretches']} stretches, the longest of "
        f"{idle['longest']}. Trimming would leave {idle['rows_if_trimmed']} rows; "
        f"{idle['rows_already_trimmed']} were trimmed when the set was made.</p>",
        _timelines(document["lengths"], idle["by_episode"]),
    ]
    for name, ranges in document["actions"].items():
        body += [f"<h2>Range of {escape(name)}</h2>", _ranges(ranges)]
    switches = document["gripper_switches"]
    if switches["median"] is not None:
        body.append(
            f"<h2>Gripper switches an episode</h2><p>{switches['min']} to {switches['max']}, "
            f"median {switches['median']:g}.</p>{_histogram(switches['by_episode'])}"
        )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{lines}</table>"


def _tasks(tasks: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for task in tasks:
        length = task["length"]
        spread = [_number(length[key]) for key in ("min", "median", "max")]
        rate = f"{task['success_rate']:.1%}"
        rows.append((task["instruction"], str(task["episodes"]), *spread, str(task["attempts"]), rate))
    return _table(("task", "episodes", "shortest", "median", "longest", "attempts", "expert success"), rows)


def _ranges(ranges: Sequence[Mapping[str, Any]]) -> str:
    """One line a dimension: the permitted range in grey, min to max as a line, q01 to q99 as a bar."""
    height, left, width = 22, 150, 420
    drawn = []
    for i, row in enumerate(ranges):
        low = min(row["min"], row["low"]) if row["low"] is not None else row["min"]
        high = max(row["max"], row["high"]) if row["high"] is not None else row["max"]
        scale = width / ((high - low) or 1.0)
        y = i * height + height / 2

        def x(value: float, low: float = low, scale: float = scale) -> float:
            return left + (value - low) * scale

        drawn += [
            f'<text x="0" y="{y + 4:.1f}">{escape(row["name"])}</text>',
            f'<rect x="{left}" y="{y - 7:.1f}" width="{width}" height="14" fill="#eee"/>',
            f'<line x1="{x(row["min"]):.1f}" x2="{x(row["max"]):.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#567"/>',
            f'<rect x="{x(row["q01"]):.1f}" y="{y - 5:.1f}" height="10" fill="#49c" '
            f'width="{max(1.0, x(row["q99"]) - x(row["q01"])):.1f}"/>',
            f'<text x="{left + width + 10}" y="{y + 4:.1f}">{row["min"]:.3g}, {row["q01"]:.3g} to {row["q99"]:.3g}, '
            f"{row['max']:.3g}</text>",
        ]
    note = "<p class=note>Grey: permitted. Line: min to max. Bar: 1 % to 99 %. Right: min, q01 to q99, max.</p>"
    return note + _svg(left + width + 260, len(ranges) * height, drawn)


def _histogram(values: Sequence[int]) -> str:
    if not values:
        return ""
    bins = min(30, max(values) - min(values) + 1)
    counts, edges = np.histogram(values, bins=bins)
    width, height, bar = 600, 110, 600 / bins
    drawn = []
    for i, count in enumerate(counts):
        size = 90 * count / counts.max()
        drawn.append(
            f'<rect x="{i * bar:.1f}" y="{90 - size:.1f}" width="{max(1.0, bar - 1):.1f}" height="{size:.1f}" '
            f'fill="#49c"><title>{edges[i]:.0f} to {edges[i + 1]:.0f}: {count}</title></rect>'
        )
    drawn.append(f'<text x="0" y="106">{min(values)}</text>')
    drawn.append(f'<text x="{width}" y="106" text-anchor="end">{max(values)}</text>')
    return _svg(width, height, drawn)


def _timelines(lengths: Sequence[int], runs: Sequence[Sequence[Sequence[int]]]) -> str:
    """One line an episode, idle stretches marked."""
    shown = min(len(lengths), _MAX_TIMELINES)
    scale = 600 / max(lengths)
    drawn = []
    for i in range(shown):
        drawn.append(f'<rect x="0" y="{i * 6}" width="{lengths[i] * scale:.1f}" height="4" fill="#ddd"/>')
        for start, length in runs[i]:
            drawn.append(
                f'<rect x="{start * scale:.1f}" y="{i * 6}" width="{length * scale:.1f}" height="4" fill="#c63"/>'
            )
    note = f"<p class=note>The first {shown} episodes, one line each; idle stretches marked.</p>"
    return note + _svg(600, shown * 6, drawn)


def _svg(width: float, height: float, drawn: Sequence[str]) -> str:
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-size="12" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(drawn)}</svg>'
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
