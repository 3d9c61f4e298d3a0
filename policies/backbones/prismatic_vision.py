"""Two vision transformers side by side, as Prismatic joins them (arXiv 2402.07865) and OpenVLA uses them (2406.09246).

DINOv2 with registers tells where things are, SigLIP what they are. Both see the same picture, each normalised
its own way; the patch features of the last block but one are joined channel by channel. A tower's last block,
its final norm and its pooling are therefore not built at all. It knows neither words nor actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, SiglipVisionConfig, SiglipVisionModel

_REGISTERS = 4


@dataclass(frozen=True, slots=True)
class TowerConfig:
    """Sizes of a published vision transformer.

    depth: its blocks, the last of which is not built; feed: width inside a block's feed-forward network; mean,
    deviation: of each channel of the pictures it was trained with, between 0 and 1.
    """

    width: int
    depth: int
    heads: int
    feed: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    deviation: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.depth < 2:
            raise ValueError(f"vision tower: expected a depth of at least 2, got {self.depth}; the last is left out")
        if self.width % self.heads:
            raise ValueError(f"vision tower: expected a width in {self.heads} equal heads, got {self.width}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TowerConfig:
        """From plain values, whose sequences may be lists."""
        parts: dict[str, Any] = {key: tuple(part) if isinstance(part, list) else part for key, part in values.items()}
        return cls(**parts)


class FusedVision(nn.Module):
    """DINOv2 beside SigLIP. width: of both together; num_patches: of one picture."""

    dino_mean: Tensor
    dino_deviation: Tensor
    siglip_mean: Tensor
    siglip_deviation: Tensor

    def __init__(self, dino: TowerConfig, siglip: TowerConfig, image_size: int, patch: int):
        super().__init__()
        if image_size % patch:
            raise ValueError(f"image_size: expected a multiple of the patch of {patch} pixels, got {image_size}")
        if dino.feed % dino.width:
            raise ValueError(f"DINOv2: expected feed a multiple of its width {dino.width}, got {dino.feed}")
        self.width = dino.width + siglip.width
        self.num_patches = (image_size // patch) ** 2
        self.dino = _dino(dino, image_size, patch)
        self.siglip = _siglip(siglip, image_size, patch)
        for name, tower in (("dino", dino), ("siglip", siglip)):
            self.register_buffer(f"{name}_mean", torch.tensor(tower.mean)[:, None, None], persistent=False)
            self.register_buffer(f"{name}_deviation", torch.tensor(tower.deviation)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> patch features [B, P, D], row by row, DINOv2's channels first."""
        pixels = images.permute(0, 3, 1, 2).to(self.siglip.embeddings.patch_embedding.weight.dtype) / 255
        where = self.dino(_normalised(pixels, self.dino_mean, self.dino_deviation)).last_hidden_state
        what = self.siglip(_normalised(pixels, self.siglip_mean, self.siglip_deviation)).last_hidden_state
        return torch.cat([where[:, 1 + _REGISTERS :], what], dim=-1)


def _normalised(pixels: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    # These constants stay in fp32 whatever the network is in.
    return (pixels - mean.to(pixels.dtype)) / deviation.to(pixels.dtype)


class Projector(nn.Module):
    """Patch features to the language model's width: three linear layers, GELU between, four times as wide inside."""

    def __init__(self, vision_width: int, width: int):
        super().__init__()
        self.fc1 = nn.Linear(vision_width, 4 * vision_width)
        self.fc2 = nn.Linear(4 * vision_width, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, patches: Tensor) -> Tensor:
        """float [B, P, vision width] -> [B, P, D]."""
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(patches)))))  # type: ignore[no-any-return]


class Proprio(nn.Module):
    """A robot's state to one token: two linear layers with GELU between, as OpenVLA-OFT has them."""

    def __init__(self, state_size: int, width: int):
        super().__init__()
        self.fc1 = nn.Linear(state_size, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, state_BS: Tensor) -> Tensor:
        """float [B, S] -> [B, D]."""
        return self.fc2(F.gelu(self.fc1(state_BS)))  # type: ignore[no-any-return]


# What the read-out never reaches is taken out of both towers, so that every parameter in them is used.
def _dino(tower: TowerConfig, image_size: int, patch: int) -> Any:
    config = Dinov2WithRegistersConfig(
        hidden_size=tower.width,
        num_hidden_layers=tower.depth - 1,
        num_attention_heads=tower.heads,
        mlp_ratio=tower.feed // tower.width,
        image_size=image_size,
        patch_size=patch,
        num_register_tokens=_REGISTERS,
    )
    model: Any = Dinov2WithRegistersModel(config)
    model.layernorm = nn.Identity()
    model.embeddings.register_parameter("mask_token", None)
    return model


def _siglip(tower: TowerConfig, image_size: int, patch: int) -> Any:
    config = SiglipVisionConfig(
        hidden_size=tower.width,
        num_hidden_layers=tower.depth - 1,
        num_attention_heads=tower.heads,
        intermediate_size=tower.feed,
        image_size=image_size,
        patch_size=patch,
        # The language model was trained behind timm's tower, whose GELU is the exact one.
        hidden_act="gelu",
        vision_use_head=False,
    )
    model: Any = SiglipVisionModel(config)
    model.post_layernorm = nn.Identity()
    return model
