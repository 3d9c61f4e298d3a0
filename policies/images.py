"""Camera images made ready for a network: the same tensor code in training and in the loop."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 [B, H, W, 3 F] -> uint8 [B, size, size, 3 F], bilinear with antialiasing, rounded.

    F images lie on top of each other. Rounded, because training keeps resized images in memory as bytes: what the loop
    sees must be the same.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] % 3:
        raise ValueError(f"images: expected uint8 [B, H, W, 3 F], got {images.dtype} {list(images.shape)}")
    if images.shape[1:3] == (size, size):
        return images
    planes = images.permute(0, 3, 1, 2).float()
    small = F.interpolate(planes, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return small.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8)


def to_unit(images: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [B, H, W, 3 F] -> [B, 3 F, H, W] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).to(dtype) / 127.5 - 1
