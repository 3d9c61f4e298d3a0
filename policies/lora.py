"""Low-rank adapters (LoRA, arXiv 2106.09685) in a pretrained backbone, through peft.

The backbone's own weights stay as they are; small matrices beside its linear layers learn, and are added
into the weights when a checkpoint is written, so that a checkpoint is the same with and without them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class Lora:
    """rank: of the added matrices, 0 for none; alpha: their product is scaled by alpha / rank; dropout: a share."""

    rank: int = 0
    alpha: int = 16
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 0:
            raise ValueError(f"lora.rank: expected a whole number of at least 0 (0: no adapters), got {self.rank!r}")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"lora.alpha: expected a number above 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout: expected a share in [0, 1), got {self.dropout}")


def add_adapters(backbone: nn.Module, lora: Lora) -> None:
    """Freeze `backbone` and put adapters beside its linear layers, in place. Nothing for rank 0.

    Parts that no published weights have (the backbone's `new_parts`, by the beginnings of their names) learn whole.
    """
    if lora.rank == 0:
        return
    from peft import LoraConfig, inject_adapter_in_model

    new: tuple[str, ...] = getattr(backbone, "new_parts", ())
    linear = [
        name for name, module in backbone.named_modules() if isinstance(module, nn.Linear) and not name.startswith(new)
    ]
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=linear, bias="none"
    )
    for value in backbone.parameters():
        value.requires_grad_(False)
    # It makes the adapters' own parameters learn, and no others.
    inject_adapter_in_model(config, backbone, adapter_name=_ADAPTER)
    for name, value in backbone.named_parameters():
        if name.startswith(new):
            value.requires_grad_(True)


@torch.no_grad()
def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's weights with adapters added in, under the names they have without adapters."""
    layers: dict[str, Any] = {name: one for name, one in module.named_modules() if hasattr(one, "get_delta_weight")}
    found = {}
    for key, value in module.state_dict().items():
        owner, _, leaf = key.rpartition(".base_layer.")
        if owner in layers:
            delta = layers[owner].get_delta_weight(_ADAPTER) if leaf == "weight" else 0
            found[f"{owner}.{leaf}"] = value + delta
        elif not any(key.startswith(f"{name}.lora_") for name in layers):
            found[key] = value
    return found
