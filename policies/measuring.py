"""Variants timed in turn on the same observations, with the same noise.

Whole chunks are timed with a single wait for the device, which is how a session is asked; the stages of a chunk, each
with a wait of its own, in further rounds, so that these waits are in no chunk's time. Noise is drawn, and what begins a
warm decode is looked up, before the clock starts. Python's garbage collector is paused. Knows no files and no tables.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.frames import Frame
from policies.timing import collector_paused, finish
from policies.variants import Variant
from vla_runtime.control.clock import Clock
from vla_runtime.types import Observation

STAGES = ("observe", "vision", "prefix", "decode", "post")
# Rounds where nobody says how many; variants below `FAST` seconds a chunk go on alone until they have `MANY`, so that
# their 99th percentile is of more than one chunk.
ROUNDS, FAST, MANY = 100, 0.01, 500
# Rounds in which stages are timed, at most, and as a share of the others: for a median, not for a tail.
STAGE_ROUNDS, STAGE_SHARE = 20, 0.2
_log = logging.getLogger(__name__)


def measure(
    policy: Any,
    variants: Sequence[Variant],
    shown: Sequence[Frame],
    repeats: int | None,
    warmup: int,
    clock: Clock,
    seed: int,
) -> int:
    """Fill in what every variant took and gave: `warmup` rounds over all of them first, then `repeats`, which are
    returned.

    Every round shows the next observation to each variant, with the same noise where the samplers' agree. Warm starts
    begin with their own chunk of the observation before, as in the loop; the first of those is plain. repeats: None for
    `ROUNDS`, with more of variants that are fast. The first `repeats` chunks of all variants are of the same rounds.
    """
    plain = variants[0]
    rounds = ROUNDS if repeats is None else repeats
    with torch.no_grad(), collector_paused():
        for turn in range(warmup + rounds):
            _round(policy, plain, variants, shown, turn, clock, seed, turn >= warmup)
            if turn % 20 == 0:
                _log.info("round %d of %d, %d variants", turn + 1, warmup + rounds, len(variants))
        fast = [one for one in variants if repeats is None and np.median(one.seconds) < FAST]
        if fast:
            _log.info("%d more rounds of %d variants below %g ms", MANY - rounds, len(fast), 1e3 * FAST)
        for turn in range(warmup + rounds, warmup + MANY if fast else 0):
            _round(policy, plain, fast, shown, turn, clock, seed, True)
        parted = [one for one in variants if one.whole is None]
        for turn in range(min(STAGE_ROUNDS, max(1, round(STAGE_SHARE * rounds)))):
            _round(policy, plain, parted, shown, turn, clock, seed, False, _Stages)
    return rounds


class _Stages:
    """Times of one chunk's stages: `mark` ends one."""

    def __init__(self, device: torch.device, clock: Clock):
        self._device, self._clock = device, clock
        finish(device)
        self._last = clock.now()
        self.seconds: list[float] = []

    def mark(self) -> None:
        finish(self._device)
        now = self._clock.now()
        self.seconds.append(now - self._last)
        self._last = now


def _round(
    policy: Any, plain: Variant, variants: Sequence[Variant], shown: Sequence[Frame], turn: int, clock: Clock,
    seed: int, counts: bool, apart: type[_Stages] | None = None,
) -> None:  # fmt: skip
    """One chunk of each variant. counts: whether its time and what it gave are kept; apart: time its stages instead."""
    frame = shown[turn % len(shown)]
    wanted = None if frame.chunk is None else torch.from_numpy(policy.action.forward(frame.chunk.actions))
    if any(one.warm for one in variants):
        _lead_up(policy, plain, variants, frame.before, seed + 2 * turn + 1)
    expected: Tensor | None = None
    for one in variants:
        guess = _guess(one, frame.observation)
        one.begin()
        noise = noise_of(policy, one, seed + 2 * turn)
        if apart is not None:
            stages = apart(policy.device, clock)
            _actions(policy, one, frame.seen, noise, guess, stages.mark)
            one.stages.append(stages.seconds)
            continue
        finish(policy.device)
        began = clock.now()
        # Actions lie on the host: having them is the one wait.
        rows, _ = _actions(policy, one, frame.seen, noise, guess)
        taken = clock.now() - began
        answer = rows.float().cpu()[0]
        expected = answer if one is plain else expected
        if not counts:
            continue
        one.seconds.append(taken)
        if one.comparable and expected is not None:
            one.deviation.setdefault(frame.episode, []).append(float((answer - expected).abs().mean()))
        if wanted is not None:
            one.error.setdefault(frame.episode, []).append(float((answer - wanted).abs().mean()))


def _lead_up(
    policy: Any, plain: Variant, variants: Sequence[Variant], before: Sequence[Sequence[Observation]], seed: int
) -> None:
    """Let warm variants decode what comes before, untimed."""
    for link, seen in enumerate(before):
        first = None if link else _rows(policy, plain, seen, noise_of(policy, plain, seed), None)
        for one in variants:
            if one.warm is None:
                continue
            rows = first
            if rows is None:
                one.begin()
                rows = _rows(policy, one, seen, noise_of(policy, one, seed), _guess(one, seen[-1]))
            one.warm.keep(rows, seen[-1].time, seen[-1].instruction)


def _guess(one: Variant, seen: Observation) -> Tensor | None:
    """What a variant begins with; None for noise. ValueError for a chunk before that does not reach so far."""
    if one.warm is None:
        return None
    guess = one.warm.guess(seen.time, seen.instruction)
    if guess is None:
        raise ValueError("warm_start: expected a chunk that reaches into the next, got none; take null")
    return guess


def _actions(
    policy: Any, one: Variant, seen: Sequence[Observation], noise: dict[str, Tensor], guess: Tensor | None,
    mark: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Any]:  # fmt: skip
    rows = _rows(policy, one, seen, noise, guess, mark)
    actions = policy.actions(rows)
    mark()
    return rows, actions


def _rows(
    policy: Any, one: Variant, seen: Sequence[Observation], noise: dict[str, Tensor], guess: Tensor | None,
    mark: Callable[[], None] = lambda: None,
) -> Tensor:  # fmt: skip
    begun = () if guess is None or one.warm is None else (guess, one.warm.first)
    batch = (one.asked or policy).batch([seen])
    mark()
    one.chunks += 1
    if one.whole is not None:
        whole: Tensor = one.whole(batch, None, noise, *begun)
        return whole
    assert one.decoder is not None
    features = one.backbone.features(batch)
    mark()
    context = one.backbone.remember(*features)
    mark()
    rows = one.decoder(context, None, noise, 1, *begun)
    mark()
    return rows


def noise_of(policy: Any, one: Variant, seed: int) -> dict[str, Tensor]:
    """A variant's noise for one chunk, where it takes it from."""
    drawn = one.head.draw(1, torch.Generator().manual_seed(seed))
    device = policy.device if one.asked is None else one.asked.input_device
    return {name: value.to(device) for name, value in drawn.items()}
