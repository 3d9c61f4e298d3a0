"""Ways to decode, judged side by side on recorded frames that no schedule was made from.

How far each is from the full decode with the same noise, and from what the expert did. It knows neither commands nor
simulators.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.batch import Batch
from policies.calibration import Noise, record, schedule, seed_of
from policies.decoders import Decoder
from policies.decoding import PLAIN, Decode
from policies.frames import Frame
from policies.heads.prepared import PreparedDecoder
from policies.timing import counted_flops, finish
from policies.vla import VLAPolicy
from vla_runtime.control.clock import Clock
from vla_runtime.decoding.bac import Array, Schedule
from vla_runtime.types import Observation

# How far two plain decodes lie apart: the noise floor of every other row.
OTHER_NOISE = "plain, other noise"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """A way to decode, on F observations it was not made from, each with N noises.

    deviation: float64 [F, N], mean absolute difference of the rows to those of the full decode with the same noise,
    in [-1, 1]; expert_error: the same to the recorded chunk. seconds: of single chunks of the first frames, from the
    observation's tensors to rows, encoding included. gap: [F, N], how much less alike than in calibration reused
    outputs were to new ones; empty where nothing is reused. flops: counted, of one decode; None of a graph, where
    nobody can.
    """

    deviation: Array
    expert_error: Array
    seconds: Array
    gap: Array
    flops: int | None


class _Way:
    """A way to decode, with a decoder for single chunks, which are timed, and one for many noises at once."""

    def __init__(self, policy: VLAPolicy):
        self.policy, self.warm = policy, policy.warm_start()
        # With graphs, encoding is part of what is captured.
        self._captured = bool(policy.spec.decode.get("graphs"))
        self._whole: Any = policy.chunk_decoder()
        self._many: Any = policy.chunk_decoder() if self._captured else policy.decoder()

    def noise(self, count: int, seed: int) -> Noise:
        head: Any = self.policy.head
        drawn = head.draw(count, torch.Generator().manual_seed(seed))
        return {key: value.to(self.policy.device) for key, value in drawn.items()}

    def many(
        self, batch: Batch, context: Any, count: int, seed: int, guess: Tensor | None = None
    ) -> tuple[Tensor, list[float]]:
        """Chunks [N, T, A] on the CPU, and how far from calibration what they reused was. context: of the batch."""
        noise, begun = self.noise(count, seed), self._begun(guess)
        if self._captured:
            chunks = self._many(batch, None, noise, *begun)
        else:
            chunks = self._many(context, None, noise, count, *begun)
        gap = self._many.gap() if isinstance(self._many, PreparedDecoder) else None
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

    def seconds(self, batch: Batch, seed: int, guess: Tensor | None, clock: Clock) -> float:
        """Of one chunk of a batch of one, with the first of the guesses; noise is drawn before."""
        noise, begun = self.noise(1, seed), self._begun(guess, 1)
        finish(self.policy.device)
        began = clock.now()
        self._whole(batch, None, noise, *begun)
        finish(self.policy.device)
        return clock.now() - began

    def flops(self, context: Any, seed: int, guess: Tensor | None) -> int | None:
        """Of one decode, counted; None of a graph."""
        if self._captured:
            return None
        noise, begun = self.noise(1, seed), self._begun(guess, 1)
        return counted_flops(lambda: self._many(context, None, noise, 1, *begun))

    def _begun(self, guess: Tensor | None, count: int | None = None) -> tuple[Any, ...]:
        """What a decoder is told of a warm start, with `count` of the guesses."""
        if guess is None:
            return ()
        assert self.warm is not None
        return guess[:count], self.warm.first


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
    of how many frames single chunks are timed; the first is for warming up.
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
        batch, single = policy.batch([frame.seen] * noises), policy.batch([frame.seen])
        context, alone = backbone.encode(batch), backbone.encode(single)
        wanted = torch.from_numpy(policy.action.forward(recorded[index].actions))
        chunks = {}
        for name, way in known.items():
            guess, drawn = way.guess(now), seed_of(seed, index, 0)
            if not index:
                flops[name] = way.flops(alone, drawn, guess)
            if index <= timed:
                taken = way.seconds(single, drawn, guess, clock)
                # The first decode of all makes buffers.
                seconds[name] += [taken] if index or len(frames) == 1 else []
            chunks[name], gap = way.many(batch, context, noises, drawn, guess)
            gaps[name].append(gap)
        if drawn_at_all:
            chunks[OTHER_NOISE], _ = full.many(batch, context, noises, seed_of(seed, index, 1))
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
        batch = policy.batch([seen] * noises)
        context = backbone.encode(batch)
        first = None if link else full.many(batch, context, noises, seed)[0]
        for way in warm:
            assert way.warm is not None
            rows = way.many(batch, context, noises, seed, way.guess(seen[-1]))[0] if first is None else first
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
            batch = policy.batch([frame.seen])
            context = backbone.encode(batch)
            drawn = seed_of(seed, index, 1)
            noise, (wanted, _) = plain.noise(1, drawn), plain.many(batch, context, 1, drawn)
            *theirs, my = (float((one(context, None, noise).cpu() - wanted).square().mean()) for one in (*made, mine))
        others.append(theirs)
        own.append(my)
    return np.array(others).T, np.array(own)
