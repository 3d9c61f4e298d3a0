"""How to train: the numbers of a run, checked before anything is read, and what follows from them alone.

It knows samples by their indices, and neither networks nor files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from policies.batch import Batch
from policies.samples import Samples, augmented

_WHOLE = {
    **dict.fromkeys(("steps", "batch_size", "accumulate", "validate_every", "validate_samples", "save_every"), 1),
    **dict.fromkeys(("warmup", "seed", "max_committed"), 0),
    "feature_copies": 1,
}
# Lowest and highest, and whether the lowest is allowed itself.
_NUMBERS = {
    "learning_rate": (0.0, math.inf, False),
    "weight_decay": (0.0, math.inf, True),
    "clip": (0.0, math.inf, False),
    "state_noise": (0.0, math.inf, True),
    "state_dropout": (0.0, 1.0, True),
}
_SWITCHES = ("augment", "freeze_trunk", "gradient_checkpointing")
_PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. Steps are updates; warmup and the EMA's horizon are in updates, too; rates are shares.

    freeze_trunk: leave the trunk as it is and train the rest on its features, computed once for `feature_copies`
    augmented versions of every sample. gradient_checkpointing: compute activations again in the backward pass
    instead of keeping them. overfit: learn this many samples by heart, as they are, and validate on the same; None: no.
    """

    steps: int = 6000
    batch_size: int = 64
    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    warmup: int = 300
    clip: float = 1.0
    ema: float = 0.999
    accumulate: int = 1
    precision: str = "no"
    seed: int = 0
    held_out: float = 0.05
    validate_every: int = 500
    validate_samples: int = 128
    save_every: int = 500
    state_noise: float = 0.02
    state_dropout: float = 0.2
    augment: bool = True
    max_committed: int = 8
    freeze_trunk: bool = False
    feature_copies: int = 4
    gradient_checkpointing: bool = False
    overfit: int | None = None

    def __post_init__(self) -> None:
        for name, least in _WHOLE.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value < 2**63:
                raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
        for name, (low, high, included) in _NUMBERS.items():
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not (low <= value if included else low < value) or value > high:
                side = f"{'of at least' if included else 'above'} {low:g}"
                bound = side if high == math.inf else f"in [{low:g}, {high:g}]"
                raise ValueError(f"{name}: expected a number {bound}, got {value!r}")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: expected true or false, got {getattr(self, name)!r}")
        if self.precision not in _PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(_PRECISIONS)}, got {self.precision!r}")
        if self.overfit is not None and (type(self.overfit) is not int or self.overfit < 1):
            raise ValueError(f"overfit: expected a whole number of at least 1, or null, got {self.overfit!r}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema: expected a share in [0, 1), got {self.ema}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out: expected a share in (0, 1), got {self.held_out}")

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to a hundredth; a factor of the learning rate."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, done))) / 2

    def augmented(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch as training sees it."""
        if not self.augment or self.overfit:
            return batch
        return augmented(batch, generator, self.state_noise, self.state_dropout)

    def chosen(self, samples: Samples) -> tuple[list[int], list[int]]:
        """Indices of the samples to learn from, and of those to validate on. ValueError for a set that has too few."""
        if self.overfit:
            if self.overfit > len(samples):
                raise ValueError(f"overfit: expected at most the data's {len(samples)} samples, got {self.overfit}")
            few = spread(range(len(samples)), self.overfit)
            return few, few
        training, held_out = samples.split(self.held_out, self.seed)
        return training.tolist(), spread(held_out.tolist(), self.validate_samples)


def spread(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of the values, at even distances."""
    return [values[i] for i in np.linspace(0, len(values) - 1, min(len(values), count)).round().astype(int)]
