"""Which steps of a denoising policy may reuse what: recorded once, turned into schedules, judged on other frames.

One full decode per calibration observation is recorded, branch by branch; similarity matrices and reuse
errors are averaged over observations. From them come the schedules of block-wise adaptive caching
(arXiv 2506.13456) and of the obvious alternatives. It knows neither commands nor simulators.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.decoders import Decoder
from policies.decoding import PLAIN, Decode, refreshable
from policies.heads.diffusion import Diffusion, Flow
from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.heads.prepared import PreparedDecoder
from policies.timing import finish
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
# How far two plain decodes lie apart: the noise floor of every other row.
OTHER_NOISE = "plain, other noise"
Noise = dict[str, Tensor]
_log = logging.getLogger(__name__)


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
def record(policy: VLAPolicy, observations: Sequence[Observation], seed: int = 0, metric: str = "cosine") -> Recording:
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
        recorder = Recorder(len(blocks))
        recorded: Any = CachedSteps(backbone, recorder)  # type: ignore[arg-type]
        head.decode(recorded, backbone.encode(policy.batch([observation])), None, noise)
        for index, block in enumerate(blocks):
            outputs = recorder.flat(index)
            alike[block] += similarity(outputs, metric) / len(observations)
            cosine[block] += similarity(outputs, "cosine") / len(observations)
            errors[block] += reuse_error(outputs) / len(observations)
    return Recording(alike, cosine, errors, steps, sampler, policy.spec.weights, metric, digest.hexdigest()[:16])


@torch.no_grad()
def prefix_similarity(policy: VLAPolicy, observations: Sequence[Observation], seed: int = 0) -> Array:
    """How alike the prefix's keys and values are over the rounds of masked diffusion: cosine float64 [T, T].

    A mean over observations and layers; `adaptive` of it says in which rounds a prefix that sees the slots is best
    computed anew. ValueError for a policy without rounds or whose prefix never sees slots.
    """
    head: Any = policy.head
    if not isinstance(head, DiscreteDiffusion) or not refreshable(policy.backbone):
        raise ValueError(
            f"decode.refresh: expected discrete_diffusion over a prefix that sees the slots, got {head.name} over "
            f"{policy.backbone.name}"
        )
    if not observations:
        raise ValueError("decode.refresh: expected observations, got none")
    rounds = head.decoding.rounds
    alike = np.zeros((rounds, rounds))
    for index, observation in enumerate(observations):
        kept = _KeptPrefixes(policy.backbone)
        noise = {name: value.to(policy.device) for name, value in _draw(head, _seed(seed, index, 0)).items()}
        head.decode(kept, kept.encode(policy.batch([observation])), None, noise)
        for layer in zip(*kept.prefixes, strict=True):
            flat = np.stack([torch.cat([part.flatten() for part in pair]).float().cpu().numpy() for pair in layer])
            alike += similarity(flat, "cosine") / len(kept.prefixes[0]) / len(observations)
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


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """An observation, the chunk that answered it if one is known, and, for warm starts, an observation before."""

    observation: Observation
    chunk: ActionChunk | None
    before: Observation | None
    episode: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """A way to decode, on F observations it was not made from, each with N noises.

    deviation: float64 [F, N], mean absolute difference of the rows to those of the full decode with the same noise,
    in [-1, 1]; expert_error: the same to the recorded chunk. seconds: of single decodes of the first frames, the
    encoding of the observation not among them. gap: [F, N], how much less alike than in calibration reused outputs
    were to new ones; empty where nothing is reused.
    """

    deviation: Array
    expert_error: Array
    seconds: Array
    gap: Array


def frames(
    dataset: Dataset | Joined, recorded: int, judged: int, apart: int, seed: int = 0
) -> tuple[list[Frame], list[Frame]]:
    """Samples drawn from a data set: some to record, one an episode, and others to judge by, of other episodes.

    Those to judge by are spread over as many episodes as there are. apart: only samples that have one so many rows
    before them, which is what a warm start needs; 0 for all. ValueError for a set without that many samples or
    episodes.
    """

    def place(index: int) -> tuple[int, int]:
        return dataset.episode_of(index), round(dataset.answer(index).observed / dataset.period)

    usable = [index for index in range(len(dataset)) if dataset.foreseeable(index)]
    places = {place(index): index for index in usable}
    before = {index: places.get((place(index)[0], place(index)[1] - apart)) for index in usable}
    of_episode: dict[int, list[int]] = {}
    drawn = np.random.default_rng(seed).permutation([index for index in usable if before[index] is not None])
    for index in drawn.tolist():
        of_episode.setdefault(dataset.episode_of(index), []).append(index)
    episodes = list(of_episode.values())
    others = [index for turn in zip_longest(*episodes[recorded:]) for index in turn if index is not None]
    if len(episodes) <= recorded or len(others) < judged:
        raise ValueError(
            f"calibrate: expected a data set with usable samples of {recorded} episodes to record and {judged} of "
            f"others, got {len(episodes)} episodes and {len(others)} samples of others; record more, with "
            f"image_stride=1, or take warm_start=[], since a warm start needs a sample {apart} rows earlier"
        )

    def frame(index: int) -> Frame:
        earlier = before[index]
        observation, chunk = dataset[index]
        return Frame(observation, chunk, dataset[earlier][0] if apart and earlier is not None else None,
                     dataset.episode_of(index))  # fmt: skip

    return [frame(indices[0]) for indices in episodes[:recorded]], [frame(index) for index in others[:judged]]


def overlap(policy: VLAPolicy) -> int:
    """Rows from one chunk to the next, for warm starts. ValueError where chunks are executed whole."""
    executed = policy.spec.executed or policy.spec.horizon
    if executed >= policy.spec.horizon:
        raise ValueError(
            f"warm_start: expected a policy that executes less than its {policy.spec.horizon} rows, got {executed}; "
            "nothing of a chunk is left to begin the next with"
        )
    return executed


class _Way:
    """A way to decode, with a decoder for single chunks, which are timed, and one for many noises at once."""

    def __init__(self, policy: VLAPolicy):
        self.policy, self.warm = policy, policy.warm_start()
        self._one, self._many = policy.decoder(), policy.decoder()

    def noise(self, count: int, seed: int) -> Noise:
        head: Any = self.policy.head
        drawn = head.draw(count, torch.Generator().manual_seed(seed))
        return {key: value.to(self.policy.device) for key, value in drawn.items()}

    def many(self, context: Any, noise: Noise, guess: Tensor | None = None) -> tuple[Tensor, list[float]]:
        """Chunks [N, T, A] on the CPU, and how far from calibration what they reused was."""
        chunks = self._decode(self._many, context, noise, guess)
        gap = self._many.cache.gap() if isinstance(self._many, PreparedDecoder) and self._many.cache else None
        return chunks.cpu(), [] if gap is None else gap.tolist()

    def seconds(self, context: Any, noise: Noise, guess: Tensor | None, clock: Clock) -> float:
        """Of one decode, with the first of the noises and of the guesses."""
        one = {"start": noise["start"][:1]} | ({"steps": noise["steps"][:, :1]} if "steps" in noise else {})
        finish(self.policy.device)
        began = clock.now()
        self._decode(self._one, context, one, None if guess is None else guess[:1])
        finish(self.policy.device)
        return clock.now() - began

    def _decode(self, decoder: Decoder, context: Any, noise: Noise, guess: Tensor | None) -> Tensor:
        batch = len(noise["start"])
        if guess is None:
            return decoder(context, None, noise, batch)
        assert self.warm is not None
        return decoder(context, None, noise, batch, guess, self.warm.first)


@torch.no_grad()
def judge(
    policy: VLAPolicy,
    ways: Mapping[str, Decode],
    frames: Sequence[Frame],
    clock: Clock,
    noises: int = 8,
    timed: int = 30,
    seed: int = 1,
    references: Mapping[str, str] | None = None,
) -> dict[str, Judgement]:
    """Every way to decode on every frame, in turn, so that whatever else the machine does hits all alike.

    "plain" is always among them, since deviations are from it, but for ways that `references` names another one for,
    and so is "plain, other noise", which is how far two
    plain decodes lie apart. Warm starts begin with the plain chunk of the observation before. timed: of how many
    frames single decodes are timed; the first is for warming up. ValueError for no frames or noises, and for a warm
    start where a frame has no observation before it.
    """
    recorded = [frame.chunk for frame in frames if frame.chunk is not None]
    if not frames or len(recorded) < len(frames) or noises < 1:
        raise ValueError(f"calibrate: expected recorded chunks to judge on, and noises, got {len(recorded)}, {noises}")
    known = {name: _Way(policy.decoding(decode)) for name, decode in {"plain": PLAIN, **ways}.items()}
    plain = known["plain"]
    if any(way.warm for way in known.values()) and any(frame.before is None for frame in frames):
        raise ValueError("calibrate: expected an observation before every frame for a warm start, got one without")
    figures: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in [*known, OTHER_NOISE]}
    seconds: dict[str, list[float]] = {name: [] for name in known}
    gaps: dict[str, list[list[float]]] = {name: [] for name in known}
    backbone: Any = policy.backbone
    for index, frame in enumerate(frames):
        if index % 10 == 0:
            _log.info("judging frame %d of %d, %d ways to decode each", index + 1, len(frames), len(known))
        now, before = frame.observation, frame.before
        if before is not None and any(way.warm for way in known.values()):
            earlier = backbone.encode(policy.batch([before] * noises))
            rows, _ = plain.many(earlier, plain.noise(noises, _seed(seed, index, 2)))
            for way in known.values():
                if way.warm:
                    way.warm.keep(rows.to(policy.device), before.time, before.instruction)
        context = backbone.encode(policy.batch([now] * noises))
        alone = backbone.encode(policy.batch([now]))
        wanted = torch.from_numpy(policy.action.forward(recorded[index].actions))
        chunks = {}
        for name, way in known.items():
            noise = way.noise(noises, _seed(seed, index, 0))
            guess = way.warm.guess(now.time, now.instruction) if way.warm else None
            if way.warm and guess is None:
                raise ValueError(f"calibrate: expected a chunk that reaches from {before} into {now}, got none")
            if index <= timed:
                taken = way.seconds(alone, noise, guess, clock)
                # The first decode of all makes buffers.
                seconds[name] += [taken] if index or len(frames) == 1 else []
            chunks[name], gap = way.many(context, noise, guess)
            gaps[name].append(gap)
        chunks[OTHER_NOISE], _ = plain.many(context, plain.noise(noises, _seed(seed, index, 1)))
        for name, chunk in chunks.items():
            apart = chunk - chunks[(references or {}).get(name, "plain")]
            error = (chunk - wanted).abs().mean((1, 2))
            figures[name].append((apart.abs().mean((1, 2)), error))
    found = {}
    for name, kept in figures.items():
        apart_FN, error_FN = (torch.stack(column).double().numpy() for column in zip(*kept, strict=True))
        found[name] = Judgement(apart_FN, error_FN, np.array(seconds.get(name, [])), np.array(gaps.get(name, [])))
    return found


def homogeneity(
    policy: VLAPolicy, frames: Sequence[Frame], sources: int, like: Schedule, seed: int = 2
) -> tuple[Array, Array]:
    """What schedules made from single frames, the first `sources`, cost on the others, and what each one's own would.

    like: method, updates, bubbled blocks and metric. Mean squared differences to the plain decode with the same noise,
    float64 [sources, F] and [F]: the claim that one demonstration is enough (arXiv 2506.13456 calls it episode
    homogeneity), put to the test. ValueError without frames to try them on.
    """
    if not 0 < sources < len(frames):
        raise ValueError(f"calibrate: expected more than {sources} frames to try schedules on, got {len(frames)}")
    backbone: Any = policy.backbone
    head: Any = policy.head
    plain = _Way(policy.decoding(PLAIN))
    made: list[Decoder] = []
    others: list[list[float]] = []
    own: list[float] = []
    for index, frame in enumerate(frames):
        recording = record(policy, [frame.observation], _seed(seed, index, 0), like.metric)
        mine = PreparedDecoder(head, backbone, schedule(recording, like.method, like.updates, like.bubble))
        if index < sources:
            made.append(mine)
            continue
        with torch.no_grad():
            context = backbone.encode(policy.batch([frame.observation]))
            noise = plain.noise(1, _seed(seed, index, 1))
            wanted, _ = plain.many(context, noise)
            *theirs, my = (float((one(context, None, noise).cpu() - wanted).square().mean()) for one in (*made, mine))
        others.append(theirs)
        own.append(my)
    return np.array(others).T, np.array(own)


def _seed(seed: int, index: int, use: int) -> int:
    """Another one for every frame and every use of it."""
    return int(np.random.SeedSequence((seed, index, use)).generate_state(1)[0])
