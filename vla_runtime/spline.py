"""Clamped uniform B-spline curves in numpy: basis, derivatives, bounds, fits with fixed ends.

A curve of degree P with N control points lives on u in [0, 1]: its knots are P zeros, N + 1 - P values
evenly from 0 to 1, and P ones, so that it begins at its first and ends at its last control point (BEAST,
arXiv 2506.06072, section 3; de Boor 1978 for the recurrences). This file knows time only as a duration
that scales derivatives, and knows nothing of robots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Fewer free control points than this leave a join nothing to shape the rest of a chunk with.
MIN_FREE = 4

# Points at which a curve is looked at to say a part of it as a curve of its own.
_LOOKS = 64

# Of such a fit, which is determined anyhow: keeps it solvable where a part is short.
_TINY_RIDGE = 1e-12


def check_degree(num_basis: int, degree: int) -> None:
    """ValueError unless 0 <= degree < num_basis."""
    if not 0 <= degree < num_basis:
        raise ValueError(f"spline: expected 0 <= degree < number of basis functions, got {degree} and {num_basis}")


def knots(num_basis: int, degree: int) -> Array:
    """The clamped uniform knot vector float64 [N + P + 1]."""
    check_degree(num_basis, degree)
    inner = np.linspace(0.0, 1.0, num_basis + 1 - degree)
    return np.concatenate([np.zeros(degree), inner, np.ones(degree)])


def basis(u: ArrayLike, num_basis: int, degree: int) -> Array:
    """Values of the N basis functions at u [T] in [0, 1]: float64 [T, N], rows that sum to 1 (Cox-de Boor)."""
    points = np.atleast_1d(np.asarray(u, np.float64))
    if points.size and (points.min() < -1e-9 or points.max() > 1 + 1e-9):
        raise ValueError(f"spline: expected u in [0, 1], got {points.min()} to {points.max()}")
    points = np.clip(points, 0.0, 1.0)
    k = knots(num_basis, degree)
    # The last non-empty interval is closed on the right, so that u = 1 belongs to the curve.
    interval = np.clip(np.searchsorted(k, points, side="right") - 1, degree, num_basis - 1)
    values = np.zeros((len(points), num_basis + degree))
    values[np.arange(len(points)), interval] = 1.0
    for order in range(1, degree + 1):
        count = num_basis + degree - order
        left = k[order : order + count] - k[:count]
        right = k[order + 1 : order + 1 + count] - k[1 : 1 + count]
        rise = (points[:, None] - k[:count]) * _inverse(left)
        fall = (k[order + 1 : order + 1 + count] - points[:, None]) * _inverse(right)
        values = rise * values[:, :count] + fall * values[:, 1 : count + 1]
    return values


def difference_matrix(num_basis: int, degree: int) -> Array:
    """float64 [N - 1, N]: control points of a curve to those of its derivative by u, of degree P - 1."""
    if degree < 1:
        raise ValueError(f"spline: expected degree >= 1 to take a derivative, got {degree}")
    k = knots(num_basis, degree)
    scale = degree / (k[degree + 1 : degree + num_basis] - k[1:num_basis])
    matrix = np.zeros((num_basis - 1, num_basis))
    rows = np.arange(num_basis - 1)
    matrix[rows, rows], matrix[rows, rows + 1] = -scale, scale
    return matrix


@dataclass(frozen=True, slots=True, eq=False)
class SplineCurve:
    """A curve in A dimensions. points: float64 [N, A] control points; duration: seconds from u = 0 to u = 1."""

    points: Array
    degree: int
    duration: float

    def __post_init__(self) -> None:
        if self.points.ndim != 2:
            raise ValueError(f"spline: expected control points [N, A], got {list(self.points.shape)}")
        check_degree(len(self.points), self.degree)
        if not self.duration > 0:
            raise ValueError(f"spline: expected a duration > 0 s, got {self.duration}")

    def at(self, time: ArrayLike) -> Array:
        """Values float64 [T, A] at times [T] in [0, duration] seconds."""
        u = np.atleast_1d(np.asarray(time, np.float64)) / self.duration
        return basis(u, len(self.points), self.degree) @ self.points

    def derivative(self) -> SplineCurve:
        """The curve of this one's rate of change per second; ValueError for degree 0."""
        points = difference_matrix(len(self.points), self.degree) @ self.points / self.duration
        return SplineCurve(points, self.degree - 1, self.duration)

    def retimed(self, factor: float) -> SplineCurve:
        """The same way, `factor` times as slow. ValueError unless factor > 0."""
        if not factor > 0:
            raise ValueError(f"spline: expected to be retimed by more than 0, got {factor}")
        return SplineCurve(self.points, self.degree, self.duration * factor)

    def continued(self, since: float, start: ArrayLike) -> SplineCurve:
        """The rest of this curve from `since` seconds on, but begun otherwise: a curve of as many control points.

        start: [F, A], F in 1 to 3: value, velocity per second and acceleration with which it begins, to rounding;
        the free control points are those of the curve nearest to this one (BEAST, section 3.2, at any time instead of
        the chunk's end). ValueError when fewer than four of them stay free, or nothing of the curve is left.
        """
        count = len(self.points)
        given = np.asarray(start, np.float64)
        if count - len(given) < MIN_FREE:
            raise ValueError(
                f"spline: expected at least {MIN_FREE} free control points, got {count} less the {len(given)} that "
                "the start fixes; take more basis functions (and rows) or fewer conditions"
            )
        if not 0 <= since < self.duration:
            raise ValueError(f"spline: expected a time in [0, {self.duration}) s to go on from, got {since}")
        left = self.duration - since
        rows = self.at(np.linspace(since, self.duration, max(_LOOKS, 4 * count)))
        first = leading_points(given, count, self.degree, left)
        return SplineCurve(fit(rows, count, self.degree, _TINY_RIDGE, first), self.degree, left)

    def bounds(self) -> tuple[Array, Array]:
        """Low and high float64 [A] that the curve stays within: the extremes of its control points.

        Safe, because basis values are non-negative and sum to 1; tight only where a control point is touched.
        """
        return self.points.min(axis=0), self.points.max(axis=0)


def fit_matrix(num_rows: int, num_basis: int, degree: int, ridge: float, fixed: int = 0) -> Array:
    """float64 [N - fixed, T]: samples at linspace(0, 1, T), less what fixed points give, to free control points.

    Ridge regression (Phi^T Phi + ridge I)^-1 Phi^T over the columns of the free points, so a fit is one
    product. fixed: how many leading control points are given and not fitted.
    """
    if num_rows < 1 or not 0 <= fixed < num_basis or ridge < 0:
        raise ValueError(
            f"spline: expected rows >= 1, 0 <= fixed < {num_basis}, ridge >= 0; got {num_rows}, {fixed}, {ridge}"
        )
    phi = basis(np.linspace(0.0, 1.0, num_rows), num_basis, degree)[:, fixed:]
    gram = phi.T @ phi + ridge * np.eye(num_basis - fixed)
    return np.asarray(np.linalg.solve(gram, phi.T), np.float64)


def fit(rows: ArrayLike, num_basis: int, degree: int, ridge: float = 1e-4, first: ArrayLike | None = None) -> Array:
    """Control points float64 [N, A] of the curve nearest to rows [T, A] at linspace(0, 1, T).

    first: [F, A] leading control points to keep as they are (F = 1: position; 2: velocity too; 3:
    acceleration too, see `leading_points`).
    """
    values = np.asarray(rows, np.float64)
    given = np.zeros((0, values.shape[1])) if first is None else np.asarray(first, np.float64)
    phi = basis(np.linspace(0.0, 1.0, len(values)), num_basis, degree)
    free = fit_matrix(len(values), num_basis, degree, ridge, len(given)) @ (values - phi[:, : len(given)] @ given)
    return np.concatenate([given, free])


def leading_points(derivatives: ArrayLike, num_basis: int, degree: int, duration: float) -> Array:
    """The first F control points [F, A] that give a curve its value and F - 1 time derivatives at its start.

    derivatives: [F, A]: value, velocity per second, acceleration per second squared.
    """
    given = np.asarray(derivatives, np.float64)
    if len(given) > min(degree + 1, num_basis):
        raise ValueError(
            f"spline: expected at most {degree + 1} conditions at the start for degree {degree}, got {len(given)}"
        )
    # Row d: the d-th derivative at u = 0 is the first control point of the d-th derivative curve.
    rows, matrix = [], np.eye(num_basis)
    for order in range(len(given)):
        if order:
            matrix = difference_matrix(num_basis - order + 1, degree - order + 1) @ matrix / duration
        rows.append(matrix[0, : len(given)])
    return np.asarray(np.linalg.solve(np.array(rows), given), np.float64)


def _inverse(width: Array) -> Array:
    """1 / width, and 0 where the width is 0: the convention 0/0 = 0 of the recurrence."""
    return np.divide(1.0, width, out=np.zeros_like(width), where=width > 0)
