"""Plots: both forms, names escaped, nothing that a logarithm has no answer to."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from policies.plots import lines, pareto


def test_a_plot_is_drawn_twice_and_names_the_front():
    points = {"plain": [(100.0, 0.1, "plain")], "bac": [(10.0, 0.11, "bac <10>"), (20.0, 0.2, "bac 20")]}
    plot = pareto(points, ("milliseconds", "error"))
    assert plot.svg.startswith("<svg")
    assert "bac &lt;10&gt;" in plot.svg
    assert "bac 20" not in plot.svg  # beaten on both
    image = Image.open(io.BytesIO(plot.png))
    assert min(image.size) > 500


@pytest.mark.parametrize("points", [{}, {"a": []}, {"a": [(0.0, 1.0, "x")]}, {"a": [(1.0, -1.0, "x")]}])
def test_points_without_a_logarithm_are_refused(points):
    with pytest.raises(ValueError, match="expected points above 0"):
        pareto(points, ("milliseconds", "error"))


def test_lines_have_a_panel_each():
    plot = lines({"views": {"encode": [(1, 2.0), (2, 3.0)]}, "rows": {"encode": [(8, 1.0)]}}, "ms <b>")
    assert plot.svg.startswith("<svg")
    assert "ms &lt;b&gt;" in plot.svg
    with pytest.raises(ValueError, match="expected points in every panel"):
        lines({"views": {"encode": []}}, "ms")
