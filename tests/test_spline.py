"""Curves against scipy, and the promises that joins and limits rest on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline

from vla_runtime.spline import SplineCurve, basis, fit, fit_matrix, knots, leading_points

GRID = np.linspace(0, 1, 101)
SHAPES = [(n, p) for p in range(6) for n in range(p + 1, 26, 3)]


@pytest.mark.parametrize(("num_basis", "degree"), SHAPES)
def test_basis_is_scipys(num_basis, degree):
    ours = basis(GRID, num_basis, degree)
    theirs = BSpline(knots(num_basis, degree), np.eye(num_basis), degree)(GRID)
    if degree == 0:  # scipy leaves u = 1 outside the last interval there
        theirs[-1] = np.eye(num_basis)[-1]
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    np.testing.assert_allclose(ours.sum(axis=1), 1.0, atol=1e-12)
    assert ours[0, 0] == ours[-1, -1] == 1.0


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(0, 12), st.floats(0.1, 10.0), st.integers(0, 2**31))
def test_derivatives_and_bounds(degree, more, duration, seed):
    points = np.random.default_rng(seed).normal(size=(degree + 1 + more, 3))
    curve = SplineCurve(points, degree, duration)
    reference = BSpline(knots(len(points), degree), points, degree).derivative()
    inside = GRID[(GRID > 0) & (GRID < 1)] + 1e-4  # away from knots, where low degrees jump
    inside = inside[inside < 1]
    np.testing.assert_allclose(
        curve.derivative().at(inside * duration), reference(inside) / duration, atol=1e-7 * degree * 30
    )
    low, high = curve.bounds()
    values = curve.at(GRID * duration)
    assert np.all(values >= low - 1e-12)
    assert np.all(values <= high + 1e-12)


def test_fit_is_the_dense_ridge_solution_and_reproduces_what_it_can_say():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(16, 4))
    phi = basis(np.linspace(0, 1, 16), 8, 4)
    dense = np.linalg.solve(phi.T @ phi + 1e-3 * np.eye(8), phi.T @ rows)
    np.testing.assert_allclose(fit(rows, 8, 4, 1e-3), dense, atol=1e-12)
    np.testing.assert_allclose(fit_matrix(16, 8, 4, 1e-3) @ rows, dense, atol=1e-12)
    points = generator.normal(size=(8, 4))
    np.testing.assert_allclose(fit(phi @ points, 8, 4, 0.0), points, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), st.integers(0, 2**31))
def test_a_fixed_start_is_met_exactly(conditions, seed):
    generator = np.random.default_rng(seed)
    start = generator.normal(size=(conditions, 2))
    first = leading_points(start, 8, 4, 0.8)
    curve = SplineCurve(fit(generator.normal(size=(16, 2)), 8, 4, first=first), 4, 0.8)
    for order in range(conditions):
        np.testing.assert_allclose(curve.at(0.0)[0], start[order], atol=1e-6 * 10**order)
        curve = curve.derivative()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), st.floats(0.0, 0.7), st.integers(0, 2**31))
def test_a_curve_goes_on_at_any_time_from_another_place(conditions, since, seed):
    """BEAST's criterion S5: position (and speed, and acceleration, if asked for) without a jump."""
    generator = np.random.default_rng(seed)
    curve = SplineCurve(generator.normal(size=(8, 2)), 4, 0.75)
    start = generator.normal(size=(conditions, 2))
    rest = curve.continued(since, start)
    assert rest.duration == pytest.approx(0.75 - since)
    for order in range(conditions):
        np.testing.assert_allclose(rest.at(0.0)[0], start[order], atol=1e-8 * 10**order / rest.duration**order)
        rest = rest.derivative()


@pytest.mark.parametrize("since", [0.0, 0.2, 0.6])
def test_a_curve_that_goes_on_as_it_was_stays_what_it_was(since):
    curve = SplineCurve(np.random.default_rng(3).normal(size=(8, 2)).cumsum(0), 4, 0.75)
    start = np.stack([curve.at(since)[0], curve.derivative().at(since)[0]])
    rest, times = curve.continued(since, start), np.linspace(0, 0.75 - since, 40)
    # A part of a curve has other knots: equal from the beginning, near elsewhere.
    tolerance = 1e-9 if since == 0 else 0.02 * np.ptp(curve.points)
    np.testing.assert_allclose(rest.at(times), curve.at(since + times), atol=tolerance)


def test_slower_is_the_same_way():
    curve = SplineCurve(np.random.default_rng(4).normal(size=(8, 2)), 4, 0.75)
    slow, times = curve.retimed(2.0), np.linspace(0, 0.75, 9)
    np.testing.assert_allclose(slow.at(2 * times), curve.at(times), atol=1e-12)
    np.testing.assert_allclose(slow.derivative().at(2 * times), curve.derivative().at(times) / 2, atol=1e-12)
    np.testing.assert_allclose(slow.derivative().bounds(), np.array(curve.derivative().bounds()) / 2, atol=1e-12)


def test_any_grid_gives_the_same_curve():
    curve = SplineCurve(np.random.default_rng(1).normal(size=(8, 2)), 4, 0.75)
    coarse, fine = np.linspace(0, 0.75, 16), np.linspace(0, 0.75, 151)
    np.testing.assert_allclose(curve.at(coarse), curve.at(fine)[::10], atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: knots(4, 4), "degree < number"),
        (lambda: basis([1.5], 8, 4), r"u in \[0, 1\]"),
        (lambda: SplineCurve(np.zeros((8, 2)), 4, 0.0), "duration"),
        (lambda: SplineCurve(np.zeros((8, 2)), 4, 1.0).retimed(0.0), "more than 0"),
        (lambda: SplineCurve(np.zeros((8, 2)), 4, 1.0).continued(1.0, np.zeros((1, 2))), "to go on from"),
        (
            lambda: SplineCurve(np.zeros((5, 2)), 4, 1.0).continued(0.5, np.zeros((2, 2))),
            "at least 4 free control points, got 5 less the 2",
        ),
        (lambda: SplineCurve(np.zeros(8), 4, 1.0), r"\[N, A\]"),
        (lambda: SplineCurve(np.zeros((8, 1)), 0, 1.0).derivative(), "degree >= 1"),
        (lambda: leading_points(np.zeros((6, 1)), 8, 4, 1.0), "at most 5"),
        (lambda: fit_matrix(16, 8, 4, -1.0), "ridge"),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
