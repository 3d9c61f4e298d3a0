"""Which steps of a denoising policy may reuse what: recorded once, turned into schedules, judged on other frames.

One full decode per calibration observation is recorded, branch by branch; similarity matrices and reuse
errors are averaged over observations. From them come the schedules of block-wise adaptive caching
(arXiv 2506.13456) and of the obvious alternatives. It knows neither commands nor simulators.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.decoding import PLAIN, Decode
from policies.heads.diffusion import Diffusion, Flow
from policies.vla import VLAPolicy
from vla_runtime.control.clock import Clock
from vla_runtime.data.joined import Joined
from vla_runtime.data.reader import Dataset
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
from vla_runtime.types import ActionChunk, Observation

METHODS = ("bac", "adjacent", "blockwise", "unified", "uniform")


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


class _Recorder:
    """Stands where a `FeatureCache` would: computes every branch and keeps all outputs."""

    idle = False

    def __init__(self) -> None:
        self.outputs: list[list[Tensor]] = []

    def advance(self) -> None:
        self.outputs.append([])

    def branch(self, index: int, compute: Any) -> Tensor:
        output: Tensor = compute()
        self.outputs[-1].append(output.detach().float().cpu())
        return output


def sampler_of(head: Any) -> tuple[str, int]:
    """The head's sampler and its steps. ValueError for a head that does not denoise in steps."""
    if isinstance(head, Diffusion):
        return head.denoising.sampler, head.denoising.steps
    if isinstance(head, Flow):
        return "euler", head.steps
    raise ValueError(f"decode=bac: expected a diffusion or flow head, got {head.name}, which has no steps to reuse")


@torch.no_grad()
def record(
    policy: VLAPolicy, observations: Sequence[Observation], seed: int = 0, metric: str = "cosine"
) -> Recording:
    """Decode each observation once in full and compare every block's outputs over the steps.

    ValueError for no observations, a head without steps and a backbone without blocks.
    """
    head: Any = policy.head
    backbone: Any = policy.backbone
    sampler, steps = sampler_of(head)
    if not observations:
        raise ValueError("calibrate: expected observations, got none")
    if not hasattr(backbone, "blocks"):
        raise ValueError(f"calibrate: expected a backbone with blocks, got {backbone.name}")
    blocks = backbone.blocks()
    alike = {block: np.zeros((steps, steps)) for block in blocks}
    cosine = {block: np.zeros((steps, steps)) for block in blocks}
    errors = dict.fromkeys(blocks, 0.0)
    digest = hashlib.sha256(f"{seed}".encode())
    generator = torch.Generator().manual_seed(seed)
    for observation in observations:
        digest.update(observation.state.tobytes())
        for name in sorted(observation.images):
            digest.update(observation.images[name].tobytes())
        noise = {key: value.to(policy.device) for key, value in head.draw(1, generator).items()}
        recorder = _Recorder()
        recorded: Any = CachedSteps(backbone, recorder)  # type: ignore[arg-type]
        head.decode(recorded, backbone.encode(policy.batch([observation])), None, noise)
        for index, block in enumerate(blocks):
            outputs = np.stack([step[index].flatten().numpy() for step in recorder.outputs])
            alike[block] += similarity(outputs, metric) / len(observations)
            cosine[block] += similarity(outputs, "cosine") / len(observations)
            errors[block] += reuse_error(outputs) / len(observations)
    return Recording(alike, cosine, errors, steps, sampler, policy.spec.weights, metric, digest.hexdigest()[:16])


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


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """An observation, the recorded chunk that answers it, and, for warm starts, an observation of before."""

    observation: Observation
    chunk: ActionChunk
    before: Observation | None


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """A way to decode, on observations it was not made from; arrays are one number an observation.

    deviation: mean absolute difference of the rows to those of the plain decode with the same noise, in [-1, 1];
    expert_error: to the recorded chunk; seconds: of each decode, the encoding of the observation not among them;
    gap: how much less alike than in calibration reused outputs were to new ones, NaN where nothing is reused.
    """

    deviation: Array
    expert_error: Array
    seconds: Array
    gap: Array


def frames(dataset: Dataset | Joined, count: int, apart: int, seed: int = 0) -> list[Frame]:
    """`count` samples drawn from a data set, in the order in which they are drawn.

    apart: only samples that have one so many rows before them, which is what a warm start needs; 0 for all.
    ValueError for a set without that many samples.
    """

    def place(index: int) -> tuple[int, int]:
        return dataset.episode_of(index), round(dataset.answer(index).observed / dataset.period)

    usable = [index for index in range(len(dataset)) if dataset.foreseeable(index)]
    places = {place(index): index for index in usable}
    before = {index: places.get((place(index)[0], place(index)[1] - apart)) for index in usable}
    usable = [index for index in usable if before[index] is not None]
    if len(usable) < count:
        raise ValueError(
            f"calibrate: expected a data set with {count} usable samples, got {len(usable)}; record more, with "
            f"image_stride=1, or take warm_start=[], since a warm start needs a sample {apart} rows earlier"
        )
    found = []
    for index in np.random.default_rng(seed).permutation(usable)[:count].tolist():
        observation, chunk = dataset[index]
        earlier = before[index]
        found.append(Frame(observation, chunk, dataset[earlier][0] if apart and earlier is not None else None))
    return found


@torch.no_grad()
def judge(
    policy: VLAPolicy, ways: Mapping[str, Decode], frames: Sequence[Frame], clock: Clock, seed: int = 1
) -> dict[str, Judgement]:
    """Every way to decode on every frame, in turn, so that whatever else the machine does hits all alike.

    "plain" is always among them, since deviations are from it. Warm starts begin with the plain chunk of the
    observation before. ValueError for no frames, and for a warm start where a frame has no observation before it.
    """
    if not frames:
        raise ValueError("calibrate: expected recorded chunks to judge on, got none")
    policies = {name: policy.decoding(decode) for name, decode in {"plain": PLAIN, **ways}.items()}
    decoders = {name: one.decoder() for name, one in policies.items()}
    warm = {name: found for name, one in policies.items() if (found := one.warm_start()) is not None}
    if warm and any(frame.before is None for frame in frames):
        raise ValueError("calibrate: expected an observation before every frame for a warm start, got one without")
    figures: dict[str, list[tuple[float, ...]]] = {name: [] for name in policies}
    backbone: Any = policy.backbone
    for index, frame in enumerate(frames):
        wanted = torch.from_numpy(policy.action.forward(frame.chunk.actions))
        now = frame.observation
        if warm and frame.before is not None:
            earlier = backbone.encode(policy.batch([frame.before]))
            rows = decoders["plain"](earlier, None, _noise(policies["plain"], seed + len(frames) + index), 1)
            for one in warm.values():
                one.keep(rows, frame.before.time, frame.before.instruction)
        context = backbone.encode(policy.batch([now]))
        plain = wanted
        for name, decoder in decoders.items():
            noise = _noise(policies[name], seed + index)
            began = clock.now()
            if name in warm:
                rows = decoder(context, None, noise, 1, warm[name].guess(now.time, now.instruction), warm[name].first)
            else:
                rows = decoder(context, None, noise, 1)
            seconds = clock.now() - began
            chunk = rows[0].cpu()
            if name == "plain":
                plain = chunk
            error = float((chunk - wanted).abs().mean())
            gap = decoder.facts.get("cache_gap", np.nan)
            figures[name].append((float((chunk - plain).abs().mean()), error, seconds, gap))
    return {name: Judgement(*np.array(rows).T) for name, rows in figures.items()}


def _noise(policy: VLAPolicy, seed: int) -> dict[str, Tensor]:
    head: Any = policy.head
    drawn = head.draw(1, torch.Generator().manual_seed(seed))
    return {key: value.to(policy.device) for key, value in drawn.items()}
