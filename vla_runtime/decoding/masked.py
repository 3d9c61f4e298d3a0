"""Discrete-diffusion rounds: commit the tokens one is sure of, mask the rest again, finish.

Discrete Diffusion VLA (arXiv 2508.20072, section 3), both as its code was released and as its paper says.
All slots begin masked; each round scores every slot in one pass, and a cosine schedule says how many stay
masked. Shapes and counts do not depend on the data, and the device is asked nothing within the loop, unless
rounds may end early. It knows neither networks nor actions: `logits_of` is whatever turns ids into logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LogitsOf = Callable[[Tensor, Tensor], Tensor]
ORDERS = ("released", "confidence", "gap", "random")


@dataclass(frozen=True, slots=True)
class MaskedDecoding:
    """How to decode.

    rounds: T; 1 is one-shot parallel decoding. order: "released" (sample, then rank the samples' probabilities,
    perturbed by Gumbel noise that fades), "confidence" or "gap" (the paper: rank by the highest probability,
    or by its distance to the second), or "random", which shows what the others are worth. temperature: of the choices,
    fading linearly to 0 in the last round; 0 is greedy. remask_threshold: highest eta of the rising threshold below
    which a committed token is masked again. remask_drop: how far a committed token's confidence may fall before it is.
    confident: as soon as every masked token's highest probability is at least this, all are committed and no more
    rounds are made. None: off.
    """

    rounds: int = 12
    order: str = "confidence"
    temperature: float = 0.0
    remask_threshold: float | None = None
    remask_drop: float | None = None
    confident: float | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"decode.rounds: expected at least 1, got {self.rounds}")
        if self.order not in ORDERS:
            raise ValueError(f"decode.order: expected one of {ORDERS}, got {self.order!r}")
        if self.temperature < 0:
            raise ValueError(f"decode.temperature: expected at least 0, got {self.temperature}")
        if self.order == "released" and (self.remask_threshold, self.remask_drop) != (None, None):
            raise ValueError("decode: the released rule has no secondary re-masking; take order=confidence or gap")
        if self.confident is not None and not 0 < self.confident <= 1:
            raise ValueError(f"decode.confident: expected a probability in (0, 1], got {self.confident}")


@dataclass(frozen=True, slots=True, eq=False)
class MaskedResult:
    """ids int64 [B, L]; confidence float [B, L] of each token when it was committed; remasked int64 [B]: how often
    a committed token was masked again; forced int64 [B]: tokens of the last round that nothing had settled before.
    rounds: how many were made.
    """

    ids_BL: Tensor
    confidence_BL: Tensor
    remasked_B: Tensor
    forced_B: Tensor
    rounds: int


def mask_counts(length: int, rounds: int) -> list[int]:
    """How many of `length` slots stay masked after each round: the cosine schedule, 0 after the last."""
    return [int(_stay_masked(torch.tensor([length]), k, rounds)) for k in range(rounds)]


def _stay_masked(free_B: Tensor, k: int, rounds: int) -> Tensor:
    """Of `free_B` slots in each sample, how many stay masked after round k: at least one before the last round."""
    if k == rounds - 1:
        return torch.zeros_like(free_B)
    count = (free_B.double() * math.cos(math.pi * (k + 1) / rounds / 2)).long()
    return torch.minimum(count.clamp_min(1), free_B - 1).clamp_min(0)


def draw_noise(
    decoding: MaskedDecoding, batch: int, length: int, vocabulary: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """All randomness of one decode, drawn before its loop: Gumbel noise for the ids and for the ranking."""
    shape = (decoding.rounds, batch, length)
    noise = {"ids": _gumbel((*shape, vocabulary), generator)} if decoding.temperature else {}
    if decoding.temperature or decoding.order == "random":
        noise["ranks"] = _gumbel(shape, generator)
    return noise


def decode_masked(
    logits_of: LogitsOf,
    length: int,
    batch: int,
    decoding: MaskedDecoding,
    noise: dict[str, Tensor],
    device: torch.device | str = "cpu",
    pinned_BL: Tensor | None = None,
    late: Callable[[], bool] = lambda: False,
) -> MaskedResult:
    """Fill `length` slots in `decoding.rounds` rounds.

    logits_of(ids_BL, masked_BL) -> float [B, L, V]: ids of masked slots are meaningless. noise: from
    `draw_noise`. pinned_BL: int64 ids that are fixed from the start, -1 where free; the schedule counts free
    slots only (training-time real-time chunking over tokens, arXiv 2512.05964). late: asked before every round; once
    it says yes, that round commits everything left. The first round is always made.
    """
    ids = torch.zeros(batch, length, dtype=torch.long, device=device)
    pinned = torch.zeros(batch, length, dtype=torch.bool, device=device)
    if pinned_BL is not None:
        pinned = pinned_BL >= 0
        ids = torch.where(pinned, pinned_BL, ids)
    masked = ~pinned
    confidence = torch.ones(batch, length, device=device)
    remasked = torch.zeros(batch, dtype=torch.long, device=device)
    forced = remasked
    infinity = torch.full((), torch.inf, device=device)
    free_B = (~pinned).sum(1)
    # Samples that need no more rounds: a batch goes on until its last one is sure.
    sure = torch.zeros(batch, 1, dtype=torch.bool, device=device)
    for k in range(decoding.rounds):
        count_B1 = _stay_masked(free_B, k, decoding.rounds)[:, None]
        fade = 1 - (k + 1) / decoding.rounds
        last = k == decoding.rounds - 1 or late()
        probability = logits_of(ids, masked).float().softmax(-1)
        if decoding.confident is not None and not last:
            sure = ((probability.amax(-1) >= decoding.confident) | ~masked).all(1, keepdim=True)
        if last:
            fade = 0.0  # also where the last round came early
        tau = decoding.temperature if decoding.order == "released" else decoding.temperature * fade
        chosen = _choose(probability, tau, noise["ids"][k] if "ids" in noise else None)
        chosen = torch.where(sure, probability.argmax(-1), chosen)
        now = probability.gather(-1, chosen[..., None])[..., 0]
        current = probability.gather(-1, ids[..., None])[..., 0]
        if last:
            forced = masked.sum(1)
        again = torch.zeros_like(masked)
        if not last and decoding.remask_threshold is not None:
            again |= current < decoding.remask_threshold * k / decoding.rounds
        if not last and decoding.remask_drop is not None:
            again |= confidence - current > decoding.remask_drop
        again &= ~masked & ~pinned & ~sure
        ids = torch.where(masked, chosen, ids)
        confidence = torch.where(masked, now, confidence)
        if decoding.order == "random":
            score = noise["ranks"][k]
        elif decoding.order == "gap":
            score = _gap(probability).log()
        else:
            score = (confidence if decoding.order == "released" else probability.amax(-1)).log()
        if noise and decoding.order == "released":
            score = score + decoding.temperature * fade * noise["ranks"][k]
        # What is committed stays, what is to be looked at again goes first; then the least certain.
        score = torch.where(masked, score, infinity)
        score = torch.where(again, -infinity, score)
        rank = score.argsort(dim=1, stable=True).argsort(dim=1)
        masked = ((rank < count_B1) & (masked | again)) | again
        masked = torch.zeros_like(masked) if last else masked & ~sure
        remasked = remasked + again.sum(1)
        # The device is asked only where rounds may end early; that is what it costs.
        if last or (decoding.confident is not None and bool(sure.all())):
            break
    return MaskedResult(ids, confidence, remasked, forced, k + 1)


def _choose(probability: Tensor, temperature: float, gumbel: Tensor | None) -> Tensor:
    if temperature == 0 or gumbel is None:
        return probability.argmax(-1)
    return (probability.clamp_min(1e-20).log() / temperature + gumbel).argmax(-1)


def _gap(probability: Tensor) -> Tensor:
    best = probability.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


def _gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    uniform = torch.rand(shape, generator=generator).clamp(1e-10, 1 - 1e-7)
    return -(-uniform.log()).log()
