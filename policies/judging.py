"""Ways to decode, judged side by side on recorded frames that no schedule was made from.

How far each is from the full decode with the same noise, and from what the expert did. It knows neither commands nor
simulators.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.calibration import Noise, record, schedule, seed_of
from policies.decoders import Decoder
from policies.decoding import PLAIN, Decode
from policies.heads.prepared import PreparedDecoder
from policies.timing import counted_flops, finish
from policies.vla import VLAPolicy
from vla_runtime.control.clock import Clock
from vla_runtime.data.joined import Joined
from vla_runtime.data.reader import Dataset
from vla_runtime.decoding.bac import Array, Schedule
from vla_runtime.types import ActionChunk, Observation

# How far two plain decodes lie apart: the noise floor of every other row.
OTHER_NOISE = "plain, other noise"
# Chunks before the judged one, for warm starts: the first begins with noise, the others warm, as in the loop.
EARLIER = 2
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """What a policy sees, the chunk that answered it if one is known, and, for warm starts, what it saw before.

    seen: one observation per offset, oldest first; before: the same at earlier questions, oldest first.
    """

    seen: tuple[Observation, ...]
    chunk: ActionChunk | None
    before: tuple[tuple[Observation, ...], ...] = ()
    episode: int = 0

    @property
    def observation(self) -> Observation:
        """The newest."""
        return self.seen[-1]


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """A way to decode, on F observations it was not made from, each with N noises.

    deviation: float64 [F, N], mean absolute difference of the rows to those of the full decode with the same noise,
    in [-1, 1]; expert_error: the same to the recorded chunk. seconds: of single decodes of the first frames, the
    encoding of the observation not among them. gap: [F, N], how much less alike than in calibration reused outputs
    were to new ones; empty where nothing is reused. flops: counted, of one decode; None of a graph, where nobody can.
    """

    deviation: Array
    expert_error: Array
    seconds: Array
    gap: Array
    flops: int | None


def frames(
    dataset: Dataset | Joined, offsets: Sequence[int], recorded: int, judged: int, apart: int, seed: int = 0
) -> tuple[list[Frame], list[Frame]]:
    """Samples drawn from a data set: some to record, one an episode, and others to judge by, of other episodes.

    Those to judge by are spread over as many episodes as there are. offsets: the policy's. apart: only samples that
    have `EARLIER` before them, each so many rows from the next, which is what a warm start needs; 0 for all. ValueError
    for a set without that many samples or episodes.
    """

    def place(index: int) -> tuple[int, int]:
        return dataset.episode_of(index), round(dataset.answer(index).observed / dataset.period)

    usable = [index for index in range(len(dataset)) if dataset.foreseeable(index)]
    places = {place(index): index for index in usable}

    def earlier(index: int) -> list[int | None]:
        episode, row = place(index)
        return [places.get((episode, row - back * apart)) for back in range(EARLIER if apart else 0, 0, -1)]

    of_episode: dict[int, list[int]] = {}
    drawn = np.random.default_rng(seed).permutation([index for index in usable if None not in earlier(index)])
    for index in drawn.tolist():
        of_episode.setdefault(dataset.episode_of(index), []).append(index)
    episodes = list(of_episode.values())
    others = [index for turn in zip_longest(*episodes[recorded:]) for index in turn if index is not None]
    if len(episodes) <= recorded or len(others) < judged:
        raise ValueError(
            f"calibrate: expected a data set with usable samples of {recorded} episodes to record and {judged} of "
            f"others, got {len(episodes)} episodes and {len(others)} samples of others; record more, with "
            f"image_stride=1, or take warm_start=[], since a warm start needs {EARLIER} samples before, {apart} "
            "rows apart"
        )

    def frame(index: int) -> Frame:
        before = tuple(dataset.seen(one, offsets) for one in earlier(index) if one is not None)
        return Frame(dataset.seen(index, offsets), dataset.answer(index), before, dataset.episode_of(index))

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

    def many(self, context: Any, count: int, seed: int, guess: Tensor | None = None) -> tuple[Tensor, list[float]]:
        """Chunks [N, T, A] on the CPU, and how far from calibration what they reused was."""
        chunks = self._decode(self._many, context, count, seed, guess)
        gap = self._many.cache.gap() if isinstance(self._many, PreparedDecoder) and self._many.cache else None
        return chunks.cpu(), [] if gap is None else gap.tolist()

    def guess(self, now: Observation) -> Tensor | None:
        """What a warm start begins with; None for noise. ValueError for a chunk before that does not reach so far."""
        if self.warm is None:
            return None
        found = self.warm.guess(now.time, now.instruction)
        if found is None:
            raise ValueError(
                f"calibrate: expected a chunk that reaches from an observation before into {now}, got none"
            )
        return found

    def seconds(self, context: Any, seed: int, guess: Tensor | None, clock: Clock) -> float:
        """Of one decode, with the first of the guesses."""
        finish(self.policy.device)
        began = clock.now()
        self._decode(self._one, context, 1, seed, None if guess is None else guess[:1])
        finish(self.policy.device)
        return clock.now() - began

    def flops(self, context: Any, seed: int, guess: Tensor | None) -> int | None:
        """Of one decode, counted; None of a graph."""
        if self.policy.spec.decode.get("graphs"):
            return None
        one = None if guess is None else guess[:1]
        return counted_flops(lambda: self._decode(self._one, context, 1, seed, one))

    def _decode(self, decoder: Decoder, context: Any, count: int, seed: int, guess: Tensor | None) -> Tensor:
        noise = self.noise(count, seed)
        if guess is None:
            return decoder(context, None, noise, count)
        assert self.warm is not None
        return decoder(context, None, noise, count, guess, self.warm.first)


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
    and so is, where noise is drawn at all, "plain, other noise": how far two plain decodes lie apart. Warm starts begin
    with their own chunk of the observation before, that with the one before it, and so on; the first is plain. timed:
    of how many frames single decodes are timed; the first is for warming up.
    ValueError for no frames or noises, and for a warm start where a frame has no observation before it.
    """
    recorded = [frame.chunk for frame in frames if frame.chunk is not None]
    if not frames or len(recorded) < len(frames) or noises < 1:
        raise ValueError(f"calibrate: expected recorded chunks to judge on, and noises, got {len(recorded)}, {noises}")
    known = {name: _Way(policy.decoding(decode)) for name, decode in {"plain": PLAIN, **ways}.items()}
    plain = known["plain"]
    # The same chunks, up to rounding, in less time.
    full = next((known[name] for name, decode in ways.items() if decode == Decode("exact")), plain)
    warm = [way for way in known.values() if way.warm]
    if warm and not all(frame.before for frame in frames):
        raise ValueError("calibrate: expected an observation before every frame for a warm start, got one without")
    # Greedy rounds draw nothing: they say the same however often they are asked.
    drawn_at_all = bool(plain.noise(1, seed))
    noises = noises if drawn_at_all else 1
    figures: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in known}
    flops: dict[str, int | None] = {}
    seconds: dict[str, list[float]] = {name: [] for name in known}
    gaps: dict[str, list[list[float]]] = {name: [] for name in known}
    backbone: Any = policy.backbone
    for index, frame in enumerate(frames):
        if index % 10 == 0:
            _log.info("judging frame %d of %d, %d ways to decode each", index + 1, len(frames), len(known))
        now = frame.observation
        if warm:
            seeds = [seed_of(seed, index, 2 + link) for link in range(len(frame.before))]
            _lead_up(policy, full, warm, list(zip(frame.before, seeds, strict=True)), noises)
        context = backbone.encode(policy.batch([frame.seen] * noises))
        alone = backbone.encode(policy.batch([frame.seen]))
        wanted = torch.from_numpy(policy.action.forward(recorded[index].actions))
        chunks = {}
        for name, way in known.items():
            guess, drawn = way.guess(now), seed_of(seed, index, 0)
            if not index:
                flops[name] = way.flops(alone, drawn, guess)
            if index <= timed:
                taken = way.seconds(alone, drawn, guess, clock)
                # The first decode of all makes buffers.
                seconds[name] += [taken] if index or len(frames) == 1 else []
            chunks[name], gap = way.many(context, noises, drawn, guess)
            gaps[name].append(gap)
        if drawn_at_all:
            chunks[OTHER_NOISE], _ = full.many(context, noises, seed_of(seed, index, 1))
        for name, chunk in chunks.items():
            apart = chunk - chunks[(references or {}).get(name, "plain")]
            error = (chunk - wanted).abs().mean((1, 2))
            figures.setdefault(name, []).append((apart.abs().mean((1, 2)), error))
    found = {}
    for name, kept in figures.items():
        apart_FN, error_FN = (torch.stack(column).double().numpy() for column in zip(*kept, strict=True))
        times, less_alike = np.array(seconds.get(name, [])), np.array(gaps.get(name, []))
        found[name] = Judgement(apart_FN, error_FN, times, less_alike, flops.get(name, flops["plain"]))
    return found


def _lead_up(
    policy: VLAPolicy,
    full: _Way,
    warm: Sequence[_Way],
    before: Sequence[tuple[Sequence[Observation], int]],
    noises: int,
) -> None:
    """Let warm ways decode what comes before a frame, so that they begin with what they would in the loop.

    before: what was seen at earlier questions, oldest first, each with the seed of its noises.
    """
    backbone: Any = policy.backbone
    for link, (seen, seed) in enumerate(before):
        context = backbone.encode(policy.batch([seen] * noises))
        first = None if link else full.many(context, noises, seed)[0]
        for way in warm:
            assert way.warm is not None
            rows = way.many(context, noises, seed, way.guess(seen[-1]))[0] if first is None else first
            way.warm.keep(rows.to(policy.device), seen[-1].time, seen[-1].instruction)


def homogeneity(
    policy: VLAPolicy, frames: Sequence[Frame], sources: int, like: Schedule, seed: int = 2, force_last: bool = True
) -> tuple[Array, Array]:
    """What schedules made from single frames, the first `sources`, cost on the others, and what each one's own would.

    like: method, updates, bubbled blocks and metric; force_last: as it was made. Mean squared differences to the plain
    decode with the same noise, float64 [sources, F] and [F]: the claim that one demonstration is enough (arXiv
    2506.13456 calls it episode homogeneity), put to the test. ValueError without frames to try them on.
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
        recording = record(policy, [frame.seen], seed_of(seed, index, 0), like.metric)
        own_plan = schedule(recording, like.method, like.updates, like.bubble, force_last)
        mine = PreparedDecoder(head, backbone, own_plan)
        if index < sources:
            made.append(mine)
            continue
        with torch.no_grad():
            context = backbone.encode(policy.batch([frame.seen]))
            drawn = seed_of(seed, index, 1)
            noise, (wanted, _) = plain.noise(1, drawn), plain.many(context, 1, drawn)
            *theirs, my = (float((one(context, None, noise).cpu() - wanted).square().mean()) for one in (*made, mine))
        others.append(theirs)
        own.append(my)
    return np.array(others).T, np.array(own)
