"""What is executed where chunks overlap: the newest alone, a cross-fade, or a mean of all that speak of an instant.

Means are taken by kind: positions and velocities component by component, rotations on SO(3), grippers not at all (the
newest decides). Increments to a measured pose have no mean: their references differ. It knows chunks and time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vla_runtime.spline import MIN_FREE, SplineCurve
from vla_runtime.transforms import ROTATIONS
from vla_runtime.types import ActionChunk, ActionSpec, Float, SpecMismatch

Array = NDArray[np.float64]
_log = logging.getLogger(__name__)

# Of a chunk's facts: how many times as slow as the policy said it is executed.
_SLOWER = "retimed"
# Places at which a curve is looked at.
_LOOKS = 256


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """A chunk that has taken over at `begins` and whose rows may still be wanted."""

    chunk: ActionChunk
    begins: float


class Join(Protocol):
    """What is executed where chunks overlap."""

    def accept(self, chunk: ActionChunk, before: ActionChunk | None, begins: float) -> ActionChunk | None:
        """The chunk as it is to be executed from `begins` on, where it follows another; None where it must not be."""

    def __call__(self, live: Sequence[Live], time: float) -> Float | None:
        """The action float32 [A] at a time from live chunks, oldest first; None where the newest says nothing."""


class _AsItIs:
    """A chunk is executed as the policy said it."""

    def accept(self, chunk: ActionChunk, before: ActionChunk | None, begins: float) -> ActionChunk | None:
        return chunk


class Newest(_AsItIs):
    """The newest chunk alone."""

    def __call__(self, live: Sequence[Live], time: float) -> Float | None:
        return live[-1].chunk.at(time)


class Blend(_AsItIs):
    """A cross-fade from the chunk before over the first `rows` rows that a chunk executes."""

    def __init__(self, spec: ActionSpec, rows: int = 4):
        if rows < 1:
            raise ValueError(f"loop.blend: expected at least 1 row, got {rows}")
        self._mean, self._rows = Mean(spec, "blend"), rows

    def __call__(self, live: Sequence[Live], time: float) -> Float | None:
        new = live[-1].chunk.at(time)
        # What was executed before, which may have been on its way to another chunk yet.
        old = self(live[:-1], time) if len(live) > 1 else None
        # Of rows and parts of them: a faster controller goes across as evenly.
        passed = round((time - live[-1].begins) / live[-1].chunk.period, 6)
        if new is None or old is None or passed >= self._rows:
            return new
        share = (passed + 1) / (self._rows + 1)
        return self._mean(np.stack([old, new]), np.array([1 - share, share]))


class Ensemble(_AsItIs):
    """ACT's temporal ensemble (arXiv 2304.13705, section 4): w = exp(-decay * i), i periods after the oldest chunk.

    Age counts, not the order of arrival, so that how often chunks are asked for does not matter.
    """

    def __init__(self, spec: ActionSpec, decay: float = 0.01):
        self._mean, self._decay = Mean(spec, "ensemble"), decay

    def __call__(self, live: Sequence[Live], time: float) -> Float | None:
        rows, said = _said(live, time)
        if rows is None:
            return None
        seen = np.array([one.chunk.observed for one in said])
        return self._mean(rows, np.exp(-self._decay * (seen - seen[0]) / said[-1].chunk.period))


class Adaptive(_AsItIs):
    """CogACT's adaptive ensemble (arXiv 2411.19650, section 3.4): chunks count as much as they agree with the newest.

    w = exp(sharpness * cosine to the newest row), over dimensions scaled by their range, grippers left out. Near zero,
    where directions mean nothing, a Gaussian of the distance stands in for the cosine.
    """

    def __init__(self, spec: ActionSpec, sharpness: float = 0.1):
        self._mean, self._sharpness = Mean(spec, "adaptive"), sharpness
        low, high = np.asarray(spec.low, np.float64), np.asarray(spec.high, np.float64)
        bounded = np.isfinite(low) & np.isfinite(high) & (high > low)
        width = np.where(bounded, high - low, 2.0)
        self._middle, self._half = np.where(bounded, (low + high) / 2, 0.0), width / 2
        self._counted = np.ones(spec.size, bool)
        for group in spec.groups:
            if group.kind == "binary":
                self._counted[spec.slices[group.name]] = False

    def __call__(self, live: Sequence[Live], time: float) -> Float | None:
        rows, _ = _said(live, time)
        if rows is None:
            return None
        unit = ((rows - self._middle) / self._half)[:, self._counted]
        lengths = np.linalg.norm(unit, axis=1)
        near = 0.05 * np.sqrt(unit.shape[1])
        if lengths[-1] < near:
            alike = np.exp(-(((unit - unit[-1]) ** 2).sum(1)) / (2 * near**2))
        else:
            alike = unit @ unit[-1] / (lengths * lengths[-1] + 1e-7)
        return self._mean(rows, np.exp(self._sharpness * alike))


class Spline(Newest):
    """The newest chunk's curve, begun where the motion before is at the moment of the hand-over, and as fast.

    continuity: 0 takes over the position, 1 the velocity, too, 2 the acceleration, too; what follows is the curve
    nearest to the policy's. fastest, hardest: largest speed and acceleration by the name of a group; a chunk that would
    break them is executed more slowly, as far as needed: both are bounded by the control points before it is accepted.
    One that is too fast however slowly it goes on, since it begins so, is refused. pace: how much faster than the
    policy says curves are executed where these limits allow it. Source: BEAST (arXiv 2506.06072, section 3.2), at any
    time instead of the chunk's end.

    ValueError for a spec with other groups than absolute and binary ones, an unknown continuity, and a pace that is
    less than 1, or more where no speed is limited.
    """

    # Of a chunk, against the policy's own time.
    SLOWEST = 8.0
    # Periods that what is left of a chunk lasts at least: in less there is no room to come to its way.
    SHORTEST = 4

    def __init__(
        self,
        spec: ActionSpec,
        continuity: int = 1,
        fastest: Mapping[str, float] | None = None,
        hardest: Mapping[str, float] | None = None,
        pace: float = 1.0,
    ):
        kinds = {group.kind for group in spec.groups}
        if kinds - {"absolute", "binary"}:
            raise ValueError(
                f"loop.join=spline: expected absolute actions, whose curve is the motion, got {sorted(kinds)}; take "
                "env.control=absolute, or join=newest or prefix"
            )
        if type(continuity) is not int or not 0 <= continuity <= 2:
            raise ValueError(f"loop.continuity: expected 0, 1 or 2, got {continuity!r}")
        if not 1 <= pace < np.inf:
            raise ValueError(f"loop.pace: expected at least 1, the policy's own, got {pace}")
        if pace > 1 and not fastest:
            raise ValueError(
                f"loop.pace={pace:g}: expected a largest speed of a group, which says how much faster is too fast, got "
                "none; state limits.groups"
            )
        self._spec, self._continuity, self._pace = spec, continuity, pace
        # By group: the orders of derivatives that are limited, and to what.
        self._bounds: dict[str, dict[int, float]] = {}
        for order, limits in ((1, fastest), (2, hardest)):
            for name, most in (limits or {}).items():
                self._bounds.setdefault(name, {})[order] = most

    def accept(self, chunk: ActionChunk, before: ActionChunk | None, begins: float) -> ActionChunk | None:
        """SpecMismatch for a chunk without a curve; ValueError where its curve has too few control points."""
        if chunk.curve is None:
            raise SpecMismatch("loop.join=spline: expected a chunk with a curve, got rows alone")
        free = len(chunk.curve.points) - 1 - self._continuity
        if free < MIN_FREE:
            # With the first chunk, not with the first hand-over, when the robot moves.
            raise ValueError(
                f"loop.continuity={self._continuity}: expected at least {MIN_FREE} control points that stay free, got "
                f"{free} of {len(chunk.curve.points)}; take less continuity or a policy with more basis functions"
            )
        # On the policy's time: so far has the motion come, which went on as the chunk before did.
        slower = 1 / self._pace if before is None else before.facts.get(_SLOWER, 1.0)
        since = max(begins - chunk.start, 0.0) / slower
        first = min(chunk.row(chunk.start + since), len(chunk.actions) - 1)
        left = ActionChunk(chunk.actions[first:], begins, chunk.period, chunk.observed, None, (), chunk.facts)
        here = chunk.curve.at(min(since, chunk.curve.duration))
        start = here if before is None else self._motion(before, begins)
        rest, factor = _rest(chunk.curve, since, self.SHORTEST * chunk.period, self._pace)
        curve = rest.continued(0.0, start)
        while self._too_fast(curve, chunk.curved) and factor < self.SLOWEST:
            # What has begun cannot be slower than it is: only what follows is.
            factor, rest = factor * 1.1, rest.retimed(1.1)
            curve = rest.continued(0.0, start)
        if self._too_fast(curve, chunk.curved):
            _log.warning("loop.join=spline: a chunk at %.3f s is refused: too fast however slowly it goes on", begins)
            return None
        return _of_curve(left, curve, chunk.curved, factor)

    def _motion(self, chunk: ActionChunk, time: float) -> Array:
        """Value and derivatives [1 + continuity, D] of the dimensions that are curves, standing after the end."""
        orders = self._continuity
        found = np.zeros((1 + orders, len(chunk.curved)))
        curve, since = chunk.curve, time - chunk.start
        assert curve is not None
        found[0] = curve.at(min(since, curve.duration))[0]
        for order in range(1, 1 + orders if since < curve.duration else 1):
            curve = curve.derivative()
            found[order] = curve.at(since)[0]
        return found

    def _too_fast(self, curve: SplineCurve, curved: Sequence[int]) -> bool:
        """Whether control points of a derivative lie beyond a limit; of rot6d as radians, as `_turning` bounds them.

        Of its acceleration this leaves out what columns do that get shorter and longer again.
        """
        speed = curve.derivative()
        for name, bounds in self._bounds.items():
            part = self._spec.slices[name]
            dims = [index for index, dim in enumerate(curved) if part.start <= dim < part.stop]
            turns = self._spec.group(name).rotation == "rot6d"
            scale = _turning(SplineCurve(curve.points[:, dims], curve.degree, curve.duration)) if turns else 1.0
            for order, most in bounds.items():
                bound = speed if order == 1 else speed.derivative()
                fastest = np.linalg.norm(bound.points[:, dims], axis=1).max()
                if scale * fastest > most * (1 + 1e-9):
                    return True
        return False


def _turning(columns: SplineCurve) -> float:
    """Radians that a rotation turns at most where its rot6d columns go a way of 1: more than 1 where they are shorter
    than 1, as between two rotations they are, or not at right angles.

    With b1 the direction of the first column, s what the second has of it and l the least of the first's length and of
    what the second has beside it, turning at w takes a velocity v of both with w <= (1 + s / l) v / l: from the
    derivative of Gram and Schmidt's rule. Inf where they nearly vanish.
    """
    times = np.linspace(0.0, columns.duration, _LOOKS)
    values = columns.at(times)
    first, second = values[:, :3], values[:, 3:]
    length = np.linalg.norm(first, axis=1)
    along = (first * second).sum(1) / np.maximum(length, 1e-9)
    beside = np.sqrt(np.maximum((second**2).sum(1) - along**2, 0.0))
    # Between two looks no more than this changes.
    speed = float(np.linalg.norm(columns.derivative().points, axis=1).max())
    slack = speed * columns.duration / (_LOOKS - 1)
    least = float(min(length.min(), beside.min())) - slack
    most = float(np.abs(along).max()) + slack
    return (1 + most / least) / least if least > 0.1 else np.inf


def _rest(curve: SplineCurve, since: float, shortest: float, pace: float) -> tuple[SplineCurve, float]:
    """What is left of a curve, at `pace` or as slow as it must be to last `shortest`, and how slow that is."""
    left = curve.duration - since
    if left <= 1e-9:
        # Nothing: it stays where it ended.
        end = np.repeat(curve.at(curve.duration), len(curve.points), axis=0)
        return SplineCurve(end, curve.degree, shortest), 1.0
    factor = max(1 / pace, shortest / left)
    return curve.continued(since, curve.at(since)).retimed(factor), factor


def _of_curve(rows: ActionChunk, curve: SplineCurve, curved: Sequence[int], factor: float) -> ActionChunk:
    """A chunk whose rows are of `curve`, `factor` times as slow as the rows it has."""
    count = int(np.floor(curve.duration / rows.period + 1e-6)) + 1
    times = np.minimum(np.arange(count) * rows.period, curve.duration)
    nearest = np.minimum(np.floor(np.arange(count) / factor + 1e-6).astype(int), len(rows.actions) - 1)
    actions = rows.actions[nearest].copy()
    actions[:, list(curved)] = curve.at(times)
    facts = {**rows.facts, _SLOWER: factor}
    return replace(rows, actions=actions, curve=curve, curved=tuple(curved), facts=facts)


class Mean:
    """A weighted mean of rows of a spec, by kind. what: the join it serves, for the message.

    ValueError for a spec with delta groups.
    """

    def __init__(self, spec: ActionSpec, what: str):
        if "delta" in spec.controls:
            raise ValueError(
                f"loop.join={what}: expected absolute or velocity actions, got increments to the measured pose, which "
                "have no mean; take env.control=absolute, or join=newest or prefix"
            )
        self._spec = spec

    def __call__(self, rows_NA: Array, weights_N: Array) -> Float:
        """Rows oldest first, weights above 0 -> float32 [A]."""
        weights = np.asarray(weights_N, np.float64) / np.sum(weights_N)
        found = np.array(rows_NA[-1], np.float64)
        for group in self._spec.groups:
            part = self._spec.slices[group.name]
            if group.kind == "binary":
                continue
            if group.rotation is None or group.kind != "absolute":
                found[part] = weights @ rows_NA[:, part]
                continue
            decode, encode = ROTATIONS[group.rotation]
            mean = mean_rotation(np.stack([decode(row) for row in rows_NA[:, part]]), weights)
            if mean is not None:
                found[part] = encode(mean)
        return found.astype(np.float32)


def mean_rotation(matrices_N33: Array, weights_N: Array) -> Array | None:
    """The rotation [3, 3] nearest to all in the chordal sense; None where they are so far apart that none is.

    Source: Moakher 2002, "Means and averaging in the group of rotations", SIAM J. Matrix Anal. Appl. 24, 1-16.
    """
    left, sizes, right = np.linalg.svd(np.einsum("n,nij->ij", weights_N, matrices_N33))
    turn = np.sign(np.linalg.det(left @ right))
    if sizes[1] + turn * sizes[2] <= 1e-3 * np.sum(weights_N):
        return None
    return np.asarray(left @ np.diag([1.0, 1.0, turn]) @ right)


def _said(live: Sequence[Live], time: float) -> tuple[Array | None, list[Live]]:
    """What each live chunk says of a time, oldest first; None where the newest says nothing."""
    pairs = [(row, one) for one in live if (row := one.chunk.at(time)) is not None]
    if not pairs or pairs[-1][1] is not live[-1]:
        return None, []
    return np.stack([row for row, _ in pairs]).astype(np.float64), [one for _, one in pairs]
