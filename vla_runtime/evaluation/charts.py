"""Small pictures for a report: interval bars and histograms as inline SVG text.

Numbers go in and SVG comes out; colours are the page's (classes `track`, `interval`, `mark`, `bar`, `axis`).
Nothing here knows an episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10

import numpy as np

from vla_runtime.evaluation.statistics import Interval

# Values above this many times the 95th percentile share the last bin: one slow start-up would otherwise
# squeeze all the rest into the first.
_TAIL = 2.0

# Divides round numbers into round numbers, so that whole steps spread evenly over the bins.
_BINS_PER_TICK = 5

# x, y, and what it is.
Point = tuple[float, float, str]

# The same with the interval of y, where there is one.
Sample = tuple[float, float, Interval | None, str]


def interval_bar(rate: float, interval: Interval, width: int = 200, height: int = 16) -> str:
    """A rate in [0, 1] as a mark inside the bar of its interval, on a track from 0 to 1."""
    low, high = interval
    middle, label = height / 2, f"{rate:.1%}, 95 % interval {low:.1%} to {high:.1%}"
    quarters = "".join(
        f'<line class="axis" x1="{width * q:g}" x2="{width * q:g}" y1="3" y2="{height - 3}"/>'
        for q in (0.25, 0.5, 0.75)
    )
    bar = f'y="{middle - 4}" height="8" rx="4"'
    # The mark stays whole at 0 and 1.
    x = min(max(rate * width, 4), width - 4)
    return (
        f"{_open(width, height, label)}<title>{label}</title>"
        f'<rect class="track" x="0" width="{width}" {bar}/>{quarters}'
        f'<rect class="interval" x="{low * width:.1f}" width="{max((high - low) * width, 1):.1f}" {bar}/>'
        f'<circle class="mark" cx="{x:.1f}" cy="{middle}" r="4"/></svg>'
    )


def histogram(values: Sequence[float], label: str, width: int = 460, height: int = 170) -> str:
    """Counts of finite values over an axis that begins at a round number; `label` names the axis.

    Far outliers share the last bin, which then is marked. ValueError without values.
    """
    data = np.asarray(values, np.float64)
    if data.size == 0:
        raise ValueError(f"histogram of {label}: expected at least one value, got none")
    low, high = float(data.min()), float(data.max())
    end = _TAIL * float(np.percentile(data, 95))
    cut = 0 < end < high
    ticks = _ticks(low, end if cut else high)
    bins = _BINS_PER_TICK * (len(ticks) - 1)
    edges = np.linspace(ticks[0], ticks[-1], bins + 1)
    counts, _ = np.histogram(np.clip(data, ticks[0], ticks[-1]), edges)
    top, bottom, left = 14, 34, 6
    tall, step = height - top - bottom, (width - 2 * left) / bins
    parts = [_open(width, height, label)]
    for i, count in enumerate(counts.tolist()):
        if count:
            bar = max(tall * count / int(counts.max()), 1.5)
            span = (
                f"{edges[i]:.4g} to {edges[i + 1]:.4g}" if not (cut and i == bins - 1) else f"{edges[i]:.4g} and above"
            )
            parts.append(
                f'<rect class="bar" x="{left + i * step + 0.5:.1f}" y="{top + tall - bar:.1f}" width="{step - 1:.1f}" '
                f'height="{bar:.1f}"><title>{span}: {count}</title></rect>'
            )
    floor_y = top + tall + 0.5
    parts.append(f'<line class="axis" x1="{left}" x2="{width - left}" y1="{floor_y}" y2="{floor_y}"/>')
    for i, tick in enumerate(ticks):
        x = left + (width - 2 * left) * (tick - ticks[0]) / (ticks[-1] - ticks[0])
        anchor = "start" if i == 0 else "end" if i == len(ticks) - 1 else "middle"
        more = "+" if cut and i == len(ticks) - 1 else ""
        parts.append(f'<text x="{x:.1f}" y="{floor_y + 14}" text-anchor="{anchor}">{tick:g}{more}</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 4}" text-anchor="middle">{escape(label)}</text>')
    parts.append(f'<text x="{left}" y="10">{int(counts.max())}</text></svg>')
    return "".join(parts)


def timeline(marks: Sequence[tuple[str, Sequence[Sequence[int]]]], ticks: int, width: int = 620) -> str:
    """One bar of `ticks` ticks. marks: what is drawn on it, as (class, runs [first, last]), one over the other."""
    height, scale = 14, width / max(1, ticks)
    parts = [_open(width, height, f"time line of {ticks} ticks")]
    parts.append(f'<rect class="track" x="0" y="2" width="{width}" height="{height - 4}" rx="2"/>')
    for name, runs in marks:
        for first, last in runs:
            wide = max((last - first + 1) * scale, 1.0)
            parts.append(
                f'<rect class="{name}" x="{first * scale:.1f}" y="2" width="{wide:.1f}" height="{height - 4}">'
                f"<title>{name}, tick {first}{f' to {last}' if last > first else ''}</title></rect>"
            )
    return "".join([*parts, "</svg>"])


def curve(points: Sequence[Sample], label: str, top: float | None = None, width: int = 460, height: int = 210) -> str:
    """Values over numbers, joined by a line, each with the bar of its interval where it has one.

    label names the horizontal axis; top: where the vertical one ends, which begins at 0. ValueError without points.
    """
    if not points:
        raise ValueError(f"curve over {label}: expected at least one point, got none")
    xs = _ticks(min(point[0] for point in points), max(point[0] for point in points))
    highest = max(y for point in points for y in (point[1], *(point[2] or ())))
    ys = _ticks(0.0, highest if top is None else top)
    left, right, above, below = 34, 14, 12, 36

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - xs[0]) / (xs[-1] - xs[0])
        up = (y - ys[0]) / (ys[-1] - ys[0])
        return left + (width - left - right) * across, height - below - (height - above - below) * up

    parts = [_open(width, height, label)]
    for y in ys:
        _, level = at(xs[0], y)
        parts.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{level:.1f}" y2="{level:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{level + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in xs:
        across, floor_y = at(x, ys[0])
        parts.append(f'<text x="{across:.1f}" y="{floor_y + 15:.1f}" text-anchor="middle">{x:g}</text>')
    way = " ".join(f"{across:.1f},{up:.1f}" for across, up in (at(point[0], point[1]) for point in points))
    parts.append(f'<polyline class="line" points="{way}"/>')
    for x, y, interval, what in points:
        across, up = at(x, y)
        if interval is not None:
            low, high = (at(x, limit)[1] for limit in interval)
            parts.append(f'<line class="whisker" x1="{across:.1f}" x2="{across:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(
            f'<circle class="mark" cx="{across:.1f}" cy="{up:.1f}" r="4"><title>{escape(what)}</title></circle>'
        )
    parts.append(f'<text x="{width / 2}" y="{height - 4}" text-anchor="middle">{escape(label)}</text></svg>')
    return "".join(parts)


def _open(width: int, height: int, label: str) -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg {size} role="img" aria-label="{escape(label)}">'


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that cover [low, high]; from 0 when low is less than half of high."""
    if 0 <= low < high / 2:
        low = 0.0
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** floor(log10(span / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= 6)
    first, last = floor(low / step), max(ceil(high / step - 1e-9), floor(low / step) + 1)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]
