"""Which steps of a denoising policy may reuse what: recorded once and turned into schedules.

One full decode per calibration observation is recorded, branch by branch; similarity matrices and reuse
errors are averaged over observations. From them come the schedules of block-wise adaptive caching
(arXiv 2506.13456) and of the obvious alternatives. It knows neither commands nor simulators.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.decoding import refreshable
from policies.heads.diffusion import Diffusion, Flow
from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.vla import VLAPolicy
from vla_runtime.decoding.bac import (
    Array,
    Block,
    Schedule,
    Steps,
    adaptive,
    adjacent,
    bubbled,
    reuse_error,
    similarity,
    uniform,
    with_last_step,
)
from vla_runtime.decoding.feature_cache import CachedSteps
from vla_runtime.types import Observation

METHODS = ("bac", "adjacent", "blockwise", "unified", "uniform")
Noise = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """What observations said of every block: similarity and cosine float64 [K, K], and how far its outputs lie apart.

    calibration: a hash of the observations and the noise; metric: of the similarity.
    """

    similarity: dict[Block, Array]
    cosine: dict[Block, Array]
    reuse_error: dict[Block, float]
    steps: int
    sampler: str
    weights: str | None
    metric: str
    calibration: str


class Recorder:
    """Stands where a `FeatureCache` would: computes every branch and keeps all outputs."""

    idle = False

    def __init__(self, branches: int) -> None:
        self.branches = branches
        self.outputs: list[list[Tensor]] = []

    def reset(self) -> None:
        self.outputs.clear()

    def reuses(self, index: int) -> bool:
        return False

    def advance(self) -> None:
        self.outputs.append([])

    def branch(self, index: int, compute: Any) -> Tensor:
        output: Tensor = compute()
        self.outputs[-1].append(output.detach().float().cpu())
        return output

    def flat(self, index: int) -> Array:
        """A branch's outputs over the steps, float [K, X]."""
        return np.stack([step[index].flatten().numpy() for step in self.outputs])


def sampler_of(head: Any) -> tuple[str, int]:
    """The head's sampler and its steps. ValueError for a head that does not denoise in steps."""
    if isinstance(head, Diffusion):
        return head.denoising.sampler, head.denoising.steps
    if isinstance(head, Flow):
        return "euler", head.steps
    raise ValueError(f"decode=bac: expected a diffusion or flow head, got {head.name}, which has no steps to reuse")


@torch.no_grad()
def record(
    policy: VLAPolicy, seen: Sequence[Sequence[Observation]], seed: int = 0, metric: str = "cosine"
) -> Recording:
    """Decode what was seen once in full and compare every block's outputs over the steps.

    seen: samples, each of one observation per offset of the policy. ValueError for none, a head without steps and a
    backbone without blocks.
    """
    head: Any = policy.head
    backbone: Any = policy.backbone
    sampler, steps = sampler_of(head)
    if not seen:
        raise ValueError("calibrate: expected observations, got none")
    if not hasattr(backbone, "blocks"):
        raise ValueError(f"calibrate: expected a backbone with blocks, got {backbone.name}")
    blocks = backbone.blocks()
    alike = {block: np.zeros((steps, steps)) for block in blocks}
    cosine = {block: np.zeros((steps, steps)) for block in blocks}
    errors = dict.fromkeys(blocks, 0.0)
    digest = hashlib.sha256(f"{seed}".encode())
    generator = torch.Generator().manual_seed(seed)
    for observations in seen:
        for observation in observations:
            digest.update(observation.state.tobytes())
            for name in sorted(observation.images):
                digest.update(observation.images[name].tobytes())
        noise = {key: value.to(policy.device) for key, value in head.draw(1, generator).items()}
        recorder = Recorder(len(blocks))
        recorded: Any = CachedSteps(backbone, recorder)  # type: ignore[arg-type]
        head.decode(recorded, backbone.encode(policy.batch([observations])), None, noise)
        for index, block in enumerate(blocks):
            outputs = recorder.flat(index)
            alike[block] += similarity(outputs, metric) / len(seen)
            cosine[block] += similarity(outputs, "cosine") / len(seen)
            errors[block] += reuse_error(outputs) / len(seen)
    return Recording(alike, cosine, errors, steps, sampler, policy.spec.weights, metric, digest.hexdigest()[:16])


@torch.no_grad()
def prefix_similarity(policy: VLAPolicy, seen: Sequence[Sequence[Observation]], seed: int = 0) -> Array:
    """How alike the prefix's keys and values are over the rounds of masked diffusion: cosine float64 [T, T].

    A mean over what was seen and layers; `adaptive` of it says in which rounds a prefix that sees the slots is best
    computed anew. ValueError for a policy without rounds or whose prefix never sees slots.
    """
    head: Any = policy.head
    if not isinstance(head, DiscreteDiffusion) or not refreshable(policy.backbone):
        raise ValueError(
            f"decode.refresh: expected discrete_diffusion over a prefix that sees the slots, got {head.name} over "
            f"{policy.backbone.name}"
        )
    if not seen:
        raise ValueError("decode.refresh: expected observations, got none")
    rounds = head.decoding.rounds
    alike = np.zeros((rounds, rounds))
    for index, observations in enumerate(seen):
        kept = _KeptPrefixes(policy.backbone)
        noise = {name: value.to(policy.device) for name, value in _draw(head, seed_of(seed, index, 0)).items()}
        head.decode(kept, kept.encode(policy.batch([observations])), None, noise)
        for layer in zip(*kept.prefixes, strict=True):
            flat = np.stack([torch.cat([part.flatten() for part in pair]).float().cpu().numpy() for pair in layer])
            alike += similarity(flat, "cosine") / len(kept.prefixes[0]) / len(seen)
    return alike


class _KeptPrefixes:
    """A backbone that remembers what its prefix came to in every round."""

    def __init__(self, backbone: Any):
        self._backbone = backbone
        self.prefixes: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def step(self, context: Any, slots: Tensor, mask: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        hidden, now = self._backbone.step_keeping(context, slots, mask, cond)
        self.prefixes.append(now)
        return hidden  # type: ignore[no-any-return]


def _draw(head: Any, seed: int) -> Noise:
    return head.draw(1, torch.Generator().manual_seed(seed))  # type: ignore[no-any-return]


def schedule(recording: Recording, method: str, updates: int, bubble: int = 0, force_last: bool = True) -> Schedule:
    """A schedule of `updates` steps a block.

    method: bac (adaptive, with `bubble` blocks bubbled), adjacent (the same with the adjacent objective), blockwise
    (adaptive, nothing bubbled), unified (that of the first self-attention for all), uniform. force_last: the last
    step is computed, too. ValueError for updates or bubble out of range.
    """
    if method not in METHODS:
        raise ValueError(f"calibrate.method: expected one of {', '.join(METHODS)}, got {method!r}")
    if method not in ("bac", "adjacent") and bubble:
        raise ValueError(f"calibrate.bubble: expected 0 with method={method}, got {bubble}")
    found: dict[Block, Steps]
    if method == "uniform":
        found = dict.fromkeys(recording.similarity, uniform(recording.steps, updates))
    elif method == "unified":
        first = next(iter(recording.similarity.values()))
        found = dict.fromkeys(recording.similarity, adaptive(first, updates))
    else:
        rule = adjacent if method == "adjacent" else adaptive
        found = {block: rule(matrix, updates) for block, matrix in recording.similarity.items()}
    found = bubbled(found, recording.reuse_error, bubble)
    if force_last:
        found = {block: with_last_step(steps, recording.steps) for block, steps in found.items()}
    expected = {
        block: tuple(float(recording.cosine[block][now, before]) for before, now in pairwise(steps))
        for block, steps in found.items()
    }
    return Schedule(
        found, recording.steps, recording.sampler, recording.weights, method, updates, bubble,
        recording.metric, recording.calibration, expected,
    )  # fmt: skip


def seed_of(seed: int, index: int, use: int) -> int:
    """Another one for every frame and every use of it."""
    return int(np.random.SeedSequence((seed, index, use)).generate_state(1)[0])
