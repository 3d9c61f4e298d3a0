"""A chunk drawn towards what is being executed while it is made: real-time chunking without having trained for it.

For flows the velocity is corrected by the gradient of the guessed clean chunk (pseudo-inverse guidance; Black, Galliker
and Levine, "Real-time execution of action chunking flow policies", arXiv 2506.07339, section 4). For diffusion the rows
are mixed with the noised target at every step, softly (RePaint's idea, arXiv 2201.09865, with the weights of the
former): no gradient is taken, so that whatever computes the noise may be cached. It knows neither networks nor robots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_runtime.decoding.denoise import Predict, StepTable

# The largest weight of a correction, beta of the paper's section 4.2.
STRONGEST = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Guide:
    """target float [B, T, A]: the chunk to be drawn to, in [-1, 1]; weights float [T]: how much, 1 entirely."""

    target: Tensor
    weights: Tensor

    def mixed(self, sample: Tensor, clean: Tensor) -> Tensor:
        """`sample` with as much of `clean` as the weights say."""
        return torch.lerp(sample, clean.to(sample), self.weights.to(sample)[:, None])


def soft_weights(rows: int, given: int, passed: int) -> Tensor:
    """float [T]: 1 for the `given` first rows, falling to 0 at the `passed` last, which the chunk before did not cover.

    In between c (e^c - 1) / (e - 1) of a c that falls evenly (section 4.3). ValueError for more rows than there are.
    """
    end = rows - passed
    if not 0 <= given <= rows or not 0 <= passed <= rows:
        raise ValueError(f"guide: expected given and passed rows within {rows}, got {given} and {passed}")
    weights = torch.zeros(rows)
    weights[:given] = 1.0
    for index in range(given, end):
        share = (end - index) / (end - given + 1)
        weights[index] = share * math.expm1(share) / math.expm1(1.0)
    return weights


def guided_flow(predict: Predict, start: Tensor, steps: int, guide: Guide) -> Tensor:
    """As `denoise.flow`, every velocity corrected towards the guide. `predict` must be differentiable in its sample."""
    sample = start.detach()
    for index in range(steps):
        time = index / steps
        with torch.enable_grad():
            known = sample.requires_grad_()
            velocity = predict(known, torch.full((len(known),), time, device=known.device, dtype=known.dtype))
            clean = known + (1 - time) * velocity
            error = (guide.target.to(clean) - clean.detach()) * guide.weights.to(clean)[:, None]
            (correction,) = torch.autograd.grad(clean, known, error)
        left = (1 - time) ** 2
        weight = STRONGEST if time == 0 else min(STRONGEST, (1 - time) / time * (time**2 + left) / left)
        sample = (known + (velocity + weight * correction) / steps).detach()
    return sample


def mixed_in(sample: Tensor, guide: Guide | None, table: StepTable, start: Tensor, k: int) -> Tensor:
    """What the k-th step of a diffusion is given: the guided rows as noisy as the step expects them."""
    if guide is None:
        return sample
    return guide.mixed(sample, guide.target * table.signal[k] + start * table.level[k])
