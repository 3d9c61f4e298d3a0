"""Plots of what decoding costs: as SVG for a page, and as PNG for everything else."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

Points = Mapping[str, Sequence[tuple[float, float, str]]]
_MARKS = "osD^vP*Xh<>"


@dataclass(frozen=True, slots=True)
class Plot:
    """The same picture twice."""

    svg: str
    png: bytes


def pareto(points: Points, labels: tuple[str, str]) -> Plot:
    """Named groups of points (x, y, what it is) on logarithmic axes, and the front: what nothing beats on both.

    ValueError without points and for values that are not above 0.
    """
    every = sorted(point for group in points.values() for point in group)
    if not every or min(min(x, y) for x, y, _ in every) <= 0:
        raise ValueError(f"plot of {labels}: expected points above 0, got {every[:3]}")
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel=labels[0], ylabel=labels[1])
    front: list[tuple[float, float, str]] = []
    for point in every:
        if not front or point[1] < front[-1][1] * (1 - 1e-6):
            front.append(point)
    axes.step([x for x, _, _ in front], [y for _, y, _ in front], where="post", color="0.6", zorder=1)
    for index, (name, group) in enumerate(points.items()):
        xs, ys = [x for x, _, _ in group], [y for _, y, _ in group]
        axes.scatter(xs, ys, s=34, marker=_MARKS[index % len(_MARKS)], color=f"C{index % 10}", label=name, zorder=2)
    for x, y, name in front:
        axes.annotate(name, (x, y), xytext=(4, -10), textcoords="offset points", fontsize=7, color="0.45")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    axes.tick_params(which="both", labelsize=8)
    axes.grid(which="both", alpha=0.25)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    return _both(figure)


def lines(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], label: str) -> Plot:
    """One panel for each title, with named lines of points (x, y) from 0 on; label: of what is measured.

    ValueError without points.
    """
    if not panels or not all(any(points for points in named.values()) for named in panels.values()):
        raise ValueError(f"plot of {label}: expected points in every panel, got {list(panels)}")
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    for axes, (title, named) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for index, (name, points) in enumerate(named.items()):
            axes.plot(*zip(*points, strict=True), marker=_MARKS[index], label=name)
        axes.set_xlabel(title)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
    figure.supylabel(label, fontsize=10)
    figure.axes[0].legend(fontsize=8, frameon=False)
    return _both(figure)


def _both(figure: Figure) -> Plot:
    # A page holds the picture itself, without what makes it a file.
    svg = "<svg" + _saved(figure, "svg").decode().partition("<svg")[2]
    return Plot(svg, _saved(figure, "png"))


def _saved(figure: Figure, form: str) -> bytes:
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format=form, dpi=140, transparent=form == "svg")
        return buffer.getvalue()
