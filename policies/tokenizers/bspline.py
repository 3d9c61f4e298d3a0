"""BEAST's tokenizer: an action chunk as the control points of a B-spline (arXiv 2506.06072, section 3).

A chunk of T rows becomes N control points a dimension by one product with a precomputed ridge solution;
each control point is one continuous value, or one of 256 levels between bounds that an offline pass over
the data has fixed for its slot. Binary dimensions (the gripper) are piecewise constant on N equal
intervals. The number of tokens is fixed, so they decode in parallel, and a wrong one bends only the part
of the curve that its basis function reaches. Sees normalised chunks only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.tokenizers.bins import OnDevices, check_ids
from vla_runtime.spline import MIN_FREE, SplineCurve, basis, fit, fit_matrix

_LEVELS = 256


class BSpline:
    """ActionTokenizer: token n * A + d is control point n of dimension d.

    rows: T; size: A; num_basis: N; degree: P of the continuous dimensions; binary: which dimensions are
    piecewise constant; ridge: of the fit; low, high float32 [N, A]: bounds of every control point, from
    `with_bounds_of`, without which discrete tokens do not exist.
    """

    name = "bspline"
    vocab_size = _LEVELS

    def __init__(
        self,
        rows: int,
        size: int,
        num_basis: int = 8,
        degree: int = 4,
        binary: Sequence[int] = (),
        ridge: float = 1e-4,
        low: Sequence[Sequence[float]] | None = None,
        high: Sequence[Sequence[float]] | None = None,
    ):
        if num_basis > rows:
            raise ValueError(
                f"bspline: expected at least as many rows as basis functions, got {rows} rows and {num_basis}; "
                "take a longer chunk or fewer basis functions"
            )
        if num_basis < MIN_FREE:
            raise ValueError(f"bspline: expected at least {MIN_FREE} basis functions, got {num_basis}")
        if not all(0 <= dim < size for dim in binary) or len(set(binary)) != len(binary):
            raise ValueError(f"bspline: expected different binary dimensions in [0, {size}), got {list(binary)}")
        self.rows, self.size, self.num_basis, self.degree = rows, size, num_basis, degree
        self.binary, self.ridge = tuple(sorted(binary)), ridge
        self.num_tokens = num_basis * size
        self._smooth = [dim for dim in range(size) if dim not in self.binary]
        # Per kind of dimension: how to fit [N, T] and how to evaluate [T, N].
        self._fit = {kind: _table(fit_matrix(rows, num_basis, kind, ridge)) for kind in (degree, 0)}
        self._basis = {kind: basis(np.linspace(0, 1, rows), num_basis, kind) for kind in (degree, 0)}
        self._grid = {kind: _table(values) for kind, values in self._basis.items()}
        # Where the smooth dimensions lie, where the binary ones, and where each is in both one after the other.
        order = [*self._smooth, *self.binary]
        self._dims = [OnDevices(torch.tensor(dims, dtype=torch.long)) for dims in (self._smooth, self.binary)]
        self._order = OnDevices(torch.tensor(order, dtype=torch.long).argsort())
        self.low = self._bound(low, "low")
        self.high = self._bound(high, "high")
        self._limits = [None if bound is None else OnDevices(bound) for bound in (self.low, self.high)]
        if (self.low is None) != (self.high is None):
            raise ValueError("bspline: expected both low and high bounds or neither")

    def with_bounds_of(self, chunks: Iterable[NDArray[np.float32]], margin: float = 0.0) -> BSpline:
        """This tokenizer with bounds from an offline pass: extremes of the control points of chunks [T, A].

        margin: share of each range that is added on both sides. ValueError for no chunks.
        """
        lows, highs = [], []
        for chunk in chunks:
            points = self.control_points(torch.as_tensor(np.asarray(chunk)[None]))[0]
            lows.append(points)
            highs.append(points)
        if not lows:
            raise ValueError("bspline: expected chunks to take bounds from, got none")
        low, high = torch.stack(lows).amin(0), torch.stack(highs).amax(0)
        room = margin * (high - low)
        return BSpline(**{**self.state(), "low": (low - room).tolist(), "high": (high + room).tolist()})

    def control_points(self, actions_BTA: Tensor) -> Tensor:
        """Least-squares control points float32 [B, N, A] of chunks [B, T, A]: one product, in float32."""
        if actions_BTA.ndim != 3 or actions_BTA.shape[1:] != (self.rows, self.size):
            raise ValueError(
                f"tokenizer: expected actions [B, {self.rows}, {self.size}], got {list(actions_BTA.shape)}"
            )
        if not torch.isfinite(actions_BTA).all():
            raise ValueError("tokenizer: expected finite actions, got NaN or infinity")
        return self._apply(self._fit, actions_BTA.float())

    def rows_of(self, points_BNA: Tensor, grid: NDArray[np.float64] | None = None) -> Tensor:
        """Actions float32 [B, T, A] of control points [B, N, A], at u in `grid` [T], by default the chunk's rows."""
        tables = self._grid
        if grid is not None:
            tables = {kind: _table(basis(grid, self.num_basis, kind)) for kind in (self.degree, 0)}
        return self._apply(tables, points_BNA)

    @property
    def smooth(self) -> tuple[int, ...]:
        """The dimensions that are curves; the others are piecewise constant."""
        return tuple(self._smooth)

    def curve(self, rows_TA: NDArray[np.float32], period: float) -> SplineCurve:
        """The curve through the `smooth` dimensions of rows [T, A] of this tokenizer, in any units.

        Exact for rows as it decodes them; where they were clipped, the nearest. period: seconds between rows.
        """
        points = fit(np.asarray(rows_TA, np.float64)[:, self._smooth], self.num_basis, self.degree, ridge=0.0)
        return SplineCurve(points, self.degree, (self.rows - 1) * period)

    def encode(self, actions_BTA: Tensor) -> Tensor:
        """float [B, T, A] in [-1, 1] -> int64 ids [B, N * A]."""
        return self.quantise(self.control_points(actions_BTA))

    def decode(self, ids_BL: Tensor, checked: bool = True) -> Tensor:
        """int64 ids [B, N * A] -> float32 [B, T, A]. checked: as `dequantise`."""
        return self.rows_of(self.dequantise(ids_BL, checked))

    def quantise(self, points_BNA: Tensor) -> Tensor:
        """Control points to ids [B, N * A]: the nearest of 256 levels between the slot's bounds."""
        return (
            (self.normalise(points_BNA).add(1).mul((_LEVELS - 1) / 2)).clamp(0, _LEVELS - 1).round().long().flatten(1)
        )

    def dequantise(self, ids_BL: Tensor, checked: bool = True) -> Tensor:
        """Ids to control points float32 [B, N, A]. ValueError for ids out of range, unless they are known to be inside
        (checked=False), where a GPU is not asked for them.
        """
        check_ids(ids_BL, self.num_tokens, self.vocab_size, checked)
        levels = ids_BL.float().mul(2 / (_LEVELS - 1)).sub(1)
        return self.denormalise(levels.reshape(-1, self.num_basis, self.size))

    def normalise(self, points_BNA: Tensor) -> Tensor:
        """Control points to [-1, 1] between their slots' bounds: the continuous tokens."""
        low, high = self._bounds(points_BNA)
        # A slot that never varies (low = high) maps to 0 and comes back as low.
        width = torch.where(high > low, high - low, torch.ones_like(high))
        return torch.where(high > low, (points_BNA - low) / width * 2 - 1, torch.zeros_like(points_BNA))

    def denormalise(self, tokens_BNA: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        low, high = self._bounds(tokens_BNA)
        return low + (tokens_BNA + 1) / 2 * (high - low)

    def influence(self) -> NDArray[np.float64]:
        """How much control point n of dimension a weighs in row t: float64 [T, N, A]."""
        weights = np.repeat(self._basis[self.degree][..., None], self.size, axis=2)
        weights[..., list(self.binary)] = self._basis[0][..., None]
        return weights

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; the constructor takes it back."""
        return {
            "rows": self.rows,
            "size": self.size,
            "num_basis": self.num_basis,
            "degree": self.degree,
            "binary": list(self.binary),
            "ridge": self.ridge,
            "low": None if self.low is None else self.low.tolist(),
            "high": None if self.high is None else self.high.tolist(),
        }

    def _apply(self, tables: dict[int, OnDevices], values: Tensor) -> Tensor:
        def product(kind: int, dims: OnDevices) -> Tensor:
            table = tables[kind].on(values.device)
            # Half precision would move a control point to the next level.
            with torch.autocast(values.device.type, enabled=False):
                return torch.einsum("ij,bjd->bid", table, values.index_select(-1, dims.on(values.device)).float())

        smooth = product(self.degree, self._dims[0])
        if not self.binary:
            return smooth
        both = torch.cat([smooth, product(0, self._dims[1])], dim=-1)
        return both.index_select(-1, self._order.on(values.device))

    def _bound(self, values: Sequence[Sequence[float]] | None, name: str) -> Tensor | None:
        if values is None:
            return None
        bound = torch.tensor(values, dtype=torch.float32)
        if bound.shape != (self.num_basis, self.size) or not torch.isfinite(bound).all():
            raise ValueError(
                f"bspline: expected finite {name} [{self.num_basis}, {self.size}], got {list(bound.shape)}"
            )
        return bound

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._limits
        if low is None or high is None:
            raise ValueError(
                "bspline: expected bounds of the control points, got none; take them from data with with_bounds_of"
            )
        return low.on(like.device), high.on(like.device)


def _table(values: NDArray[np.float64]) -> OnDevices:
    return OnDevices(torch.as_tensor(values, dtype=torch.float32))
