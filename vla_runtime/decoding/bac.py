"""Block-wise adaptive caching: at which denoising steps each block of a decoder is computed anew.

Block-wise Adaptive Caching (arXiv 2506.13456). A block is one residual branch (self-attention,
cross-attention, feed-forward) of one layer. From recorded branch outputs the Adaptive Caching Scheduler
chooses S update steps a block by dynamic programming; the Bubbling Union Algorithm lets the blocks that
reuse worst update whenever a feed-forward block downstream does, since that one would otherwise answer to stale
inputs. The schedule is data, bound to the weights it was made for. Knows no networks: features in, steps out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_runtime.disk import write_json

Array = NDArray[np.float64]
Steps = tuple[int, ...]

VERSION = 1
METRICS = ("cosine", "l1", "l2", "mse")
KINDS = ("self", "cross", "feed")


@dataclass(frozen=True, slots=True, order=True)
class Block:
    """One residual branch: kind ("self", "cross" or "feed") in a layer."""

    layer: int
    kind: str

    def __str__(self) -> str:
        return f"{self.layer}.{self.kind}"


def blocks_of(depth: int) -> tuple[Block, ...]:
    """All blocks of a decoder of `depth` layers, in the order in which they run."""
    return tuple(Block(layer, kind) for layer in range(depth) for kind in KINDS)


def similarity(features_KX: NDArray[Any], metric: str = "cosine") -> Array:
    """How alike a block's outputs at K steps are: float64 [K, K], larger is more alike. Each row is one flat output.

    ValueError for a metric that is not known or values that are not finite.
    """
    if metric not in METRICS:
        raise ValueError(f"calibrate.metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    values = np.asarray(features_KX, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("features: expected finite values, got NaN or infinity")
    if metric == "cosine":
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        unit = values / np.maximum(lengths, 1e-12)
        return np.asarray(unit @ unit.T)
    if metric == "l1":
        return -np.stack([np.abs(values - one).mean(1) for one in values])
    squares = np.stack([((values - one) ** 2).mean(1) for one in values])
    return -squares if metric == "mse" else -np.sqrt(squares)


def reuse_error(features_KX: NDArray[Any]) -> float:
    """How far a block's outputs lie apart: mean absolute difference over all pairs of steps (BUA, first stage)."""
    ordered = np.sort(np.asarray(features_KX, np.float64), axis=0)
    steps = len(ordered)
    if steps < 2:
        return 0.0
    # Over sorted values the k-th is added k times and taken away K - 1 - k times.
    weights = 2.0 * np.arange(steps) - (steps - 1)
    return float((weights[:, None] * ordered).sum(0).mean() / (steps * (steps - 1) / 2))


def adaptive(similarity_KK: Array, updates: int) -> Steps:
    """The `updates` steps, the first among them, whose outputs are most like those they stand for until the next.

    Maximises the sum over all steps of the similarity between the output that is served and the true one, exactly,
    by dynamic programming over the full matrix.
    """
    steps = _check_budget(similarity_KK, updates)
    # segment[a, e]: what serving the output of step a over steps a .. e - 1 is worth.
    sums = np.concatenate([np.zeros((steps, 1)), np.cumsum(similarity_KK, axis=1)], axis=1)
    segment = sums - sums[np.arange(steps), np.arange(steps)][:, None]
    segment[np.arange(steps)[:, None] >= np.arange(steps + 1)[None]] = -np.inf
    best = np.full((updates + 1, steps + 1), -np.inf)
    best[0, 0] = 0.0
    came = np.zeros((updates + 1, steps + 1), int)
    for count in range(1, updates + 1):
        worth = best[count - 1, :steps, None] + segment
        came[count], best[count] = worth.argmax(0), worth.max(0)
    chosen, end = [], steps
    for count in range(updates, 0, -1):
        end = int(came[count, end])
        chosen.append(end)
    return tuple(reversed(chosen))


def adjacent(similarity_KK: Array, updates: int) -> Steps:
    """For ablation: the first step and those least like the one before them. That is all the adjacent form says."""
    steps = _check_budget(similarity_KK, updates)
    before = np.array([similarity_KK[k, k - 1] for k in range(1, steps)])
    return tuple(sorted([0, *(1 + np.argsort(before, kind="stable")[: updates - 1]).tolist()]))


def uniform(steps: int, updates: int) -> Steps:
    """`updates` steps, evenly spread from the first on."""
    if not 1 <= updates <= steps:
        raise ValueError(f"updates: expected 1 to {steps} (all steps), got {updates}")
    return tuple(sorted({int(k * steps / updates) for k in range(updates)}))


def bubbled(schedules: Mapping[Block, Steps], errors: Mapping[Block, float], count: int) -> dict[Block, Steps]:
    """The schedules with the `count` blocks of largest reuse error updated with every feed-forward block downstream.

    Downstream of a block are the feed-forward blocks of its own layer and of later ones. All unions are over the
    schedules as they were given. ValueError for a count outside 0 to the number of blocks.
    """
    if not 0 <= count <= len(schedules):
        raise ValueError(f"calibrate.bubble: expected 0 to {len(schedules)} (all blocks), got {count}")
    worst = sorted(schedules, key=lambda block: (-errors[block], block.layer, KINDS.index(block.kind)))[:count]
    found = dict(schedules)
    for block in worst:
        down = [other for other in schedules if other.kind == "feed" and other.layer >= block.layer]
        found[block] = tuple(sorted(set(schedules[block]).union(*(schedules[other] for other in down))))
    return found


@dataclass(frozen=True, slots=True)
class Schedule:
    """At which steps, in the order of execution (0 is the noisiest), each block of a decoder is computed.

    weights: hash of the checkpoint's. sampler, steps: the denoising it is for. method: how it was made; updates: S;
    bubble: n; calibration: what it was recorded on. expected: for every update after a block's first, the cosine of
    its output to that of the update before, as recorded. guard: by the first step of a decode (0, or a warm start's),
    how far its mean similarity may fall below that before the next chunk is decoded in full.
    """

    blocks: dict[Block, Steps]
    steps: int
    sampler: str
    weights: str | None
    method: str
    updates: int
    bubble: int
    metric: str
    calibration: str
    expected: dict[Block, tuple[float, ...]] = field(default_factory=dict)
    guard: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, low, high in (("updates", 1, self.steps), ("bubble", 0, len(self.blocks))):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"schedule: expected {name} from {low} to {high}, got {getattr(self, name)}")
        if self.metric not in METRICS:
            raise ValueError(f"schedule: expected a metric of {', '.join(METRICS)}, got {self.metric!r}")
        for block, steps in self.blocks.items():
            if not steps or steps[0] != 0 or list(steps) != sorted(set(steps)) or steps[-1] >= self.steps:
                raise ValueError(
                    f"schedule: expected rising steps of block {block} from 0 on and below {self.steps}, got {steps}"
                )
            if self.expected and len(self.expected[block]) != len(steps) - 1:
                raise ValueError(f"schedule: expected {len(steps) - 1} similarities of block {block}")

    def evaluations(self) -> int:
        """Branch evaluations a chunk."""
        return sum(len(steps) for steps in self.blocks.values())

    def updated(self, step: int) -> frozenset[Block]:
        """The blocks that are computed at a step."""
        return frozenset(block for block, steps in self.blocks.items() if step in steps)

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        blocks = {str(block): list(steps) for block, steps in self.blocks.items()}
        expected = {str(block): list(alike) for block, alike in self.expected.items()}
        write_json(path, {**values, "version": VERSION, "blocks": blocks, "expected": expected})

    @classmethod
    def load(cls, path: Path) -> Schedule:
        """ValueError for a file that is no schedule of this version: what was expected, what was found."""
        try:
            document = json.loads(Path(path).read_text())
            if document.pop("version") != VERSION:
                raise ValueError(f"expected version {VERSION}")
            blocks = {_parsed(name): tuple(steps) for name, steps in document.pop("blocks").items()}
            expected = {_parsed(name): tuple(alike) for name, alike in document.pop("expected").items()}
            guard = {int(first): float(bound) for first, bound in document.pop("guard").items()}
            return cls(blocks=blocks, expected=expected, guard=guard, **document)
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"decode.schedule: expected a caching schedule in {path}, got {error!r}") from error

    def require(self, blocks: Sequence[Block], steps: int, sampler: str, weights: str | None) -> None:
        """ValueError with every difference from the decoder and the denoising it is to be used with."""
        found = []
        if set(blocks) != set(self.blocks):
            found.append(f"blocks: expected {len(blocks)}, {blocks[-1]} the last, got {len(self.blocks)}")
        for name, wanted, got in (
            ("steps", steps, self.steps),
            ("sampler", sampler, self.sampler),
            ("weights", weights, self.weights),
        ):
            if wanted != got:
                found.append(f"{name}: expected {wanted!r}, got {got!r}")
        if found:
            raise ValueError(f"decode.schedule: made for another policy; {'; '.join(found)}; make one with calibrate")


def with_last_step(steps: Steps, total: int) -> Steps:
    """The steps and the last of `total`, which decides the sample."""
    return tuple(sorted({*steps, total - 1}))


def _parsed(name: str) -> Block:
    layer, kind = name.split(".")
    if kind not in KINDS:
        raise ValueError(f"expected a block of {', '.join(KINDS)}, got {name!r}")
    return Block(int(layer), kind)


def _check_budget(similarity_KK: Array, updates: int) -> int:
    if similarity_KK.ndim != 2 or similarity_KK.shape[0] != similarity_KK.shape[1]:
        raise ValueError(f"similarity: expected [K, K], got {list(similarity_KK.shape)}")
    steps = len(similarity_KK)
    if not 1 <= updates <= steps:
        raise ValueError(f"calibrate.updates: expected 1 to {steps} (all steps), got {updates}")
    return steps
