"""How much memory training will take at its peak, told before it begins.

Weights, gradients, optimiser and average are counted; what the forward pass keeps for the backward pass is
measured on two small batches and extended to the whole one. It knows modules, not what they mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes. average: the running average of the weights; activations: what a batch keeps for its backward pass."""

    weights: int
    gradients: int
    optimiser: int
    average: int
    activations: int
    data: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimiser + self.average + self.activations + self.data

    def text(self) -> str:
        """One line, in MB."""
        names = ("weights", "gradients", "optimiser", "average", "activations", "data")
        return f"about {self.total / 1e6:.0f} MB at the peak: " + ", ".join(
            f"{name} {getattr(self, name) / 1e6:.0f}" for name in names
        )


def estimate(module: nn.Module, loss_of: Callable[[int], Tensor], batch_size: int, data: int) -> Estimate:
    """The peak of training `module` with AdamW and an average of its weights.

    loss_of(count): the loss of a batch of `count` samples, 1 and 2 of which are tried; data: bytes of samples
    in memory.
    """
    weights = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    learning = sum(value.numel() * value.element_size() for value in module.parameters() if value.requires_grad)
    one, two = (kept_for_backward(module, partial(loss_of, count)) for count in (1, 2))
    activations = one + (two - one) * (batch_size - 1)
    return Estimate(weights, learning, 2 * learning, weights, activations, data)


def kept_for_backward(module: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Bytes that the graph of `loss()` holds on to, beside the module's own parameters and buffers."""
    own = {value.untyped_storage().data_ptr() for value in module.state_dict().values()}
    sizes: dict[int, int] = {}
    held = []

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            # Kept alive, or the next tensor may take its address and be counted as the same.
            held.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        result = loss()
    del result
    return sum(sizes.values())
