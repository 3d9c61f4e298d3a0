"""Small pictures for a report: interval bars and histograms as inline SVG text.

Numbers go in and SVG comes out; colours are the page's (classes `track`, `interval`, `mark`, `bar`, `axis`).
Nothing here knows an episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, cos, floor, log10, pi, sin

import numpy as np

from vla_runtime.evaluation.statistics import Interval

# Values above this many times the 95th percentile share the last bin: one slow start-up would otherwise
# squeeze all the rest into the first.
_TAIL = 2.0

# Divides round numbers into round numbers, so that whole steps spread evenly over the bins.
_BINS_PER_TICK = 5

# x, y, and what it is.
Point = tuple[float, float, str]


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


def scatter(
    points: Mapping[str, Sequence[Point]], labels: tuple[str, str], width: int = 640, height: int = 420
) -> str:
    """Named groups of points (x, y, what it is) on logarithmic axes, a shape each; labels name the axes.

    ValueError without points and for values that are not above 0.
    """
    every = [point for group in points.values() for point in group]
    if not every or min(min(x, y) for x, y, _ in every) <= 0:
        raise ValueError(f"scatter of {labels}: expected points above 0, got {every[:3]}")
    left, right, top, bottom = 62, 150, 12, 44
    spans = _decades([x for x, _, _ in every]), _decades([y for _, y, _ in every])

    def place(axis: int, value: float) -> float:
        low, high = spans[axis]
        share = (log10(value) - log10(low)) / (log10(high) - log10(low))
        return left + share * (width - left - right) if axis == 0 else top + (1 - share) * (height - top - bottom)

    end_x, end_y = width - right, height - bottom
    parts = [_open(width, height, f"{labels[1]} against {labels[0]}")]
    for axis in (0, 1):
        for value in _round_values(*spans[axis]):
            at = place(axis, value)
            line = f'x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{end_y}"'
            text = f'x="{at:.1f}" y="{end_y + 16}" text-anchor="middle"'
            if axis == 1:
                line = f'x1="{left}" x2="{end_x}" y1="{at:.1f}" y2="{at:.1f}"'
                text = f'x="{left - 6}" y="{at + 4:.1f}" text-anchor="end"'
            parts.append(f'<line class="axis" {line}/><text {text}>{value:g}</text>')
    for index, (name, group) in enumerate(points.items()):
        for x, y, told in group:
            shape = _shape(index, place(0, x), place(1, y))
            parts.append(f"<g>{shape}<title>{escape(told)}: {x:.4g}, {y:.4g}</title></g>")
        row = top + 10 + 18 * index
        parts.append(f'{_shape(index, end_x + 16, row)}<text x="{end_x + 28}" y="{row + 4}">{escape(name)}</text>')
    parts.append(f'<text x="{(left + end_x) / 2}" y="{height - 8}" text-anchor="middle">{escape(labels[0])}</text>')
    middle = (top + end_y) / 2
    turned = f'transform="rotate(-90 14 {middle})" x="14" y="{middle}" text-anchor="middle"'
    parts.append(f"<text {turned}>{escape(labels[1])}</text></svg>")
    return "".join(parts)


def _shape(index: int, x: float, y: float) -> str:
    """A shape for the index-th group: told apart without colours, too."""
    sides, hue = (0, 3, 4, 5, 6)[index % 5], (215, 20, 140, 280, 50, 330, 180)[index % 7]
    paint = f'style="fill: hsl({hue} 55% 50%); fill-opacity: .85"'
    if not sides:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" {paint}/>'
    turns = [2 * pi * corner / sides - pi / 2 for corner in range(sides)]
    corners = " ".join(f"{x + 5.5 * cos(turn):.1f},{y + 5.5 * sin(turn):.1f}" for turn in turns)
    return f'<polygon points="{corners}" {paint}/>'


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """A range with room on both sides."""
    low, high = min(values), max(values)
    room = max((high / low) ** 0.06, 1.1)
    return low / room, high * room


def _round_values(low: float, high: float) -> list[float]:
    """Round numbers inside the range: powers of ten, and as many between them as make at least three."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    found: list[float] = []
    for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(n / 10 for n in range(10, 100))):
        every = (float(f"{factor * 10.0**power:.3g}") for power in powers for factor in factors)
        found = [value for value in every if low <= value <= high]
        if len(found) >= 3:
            break
    return found


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
