"""What a backbone reads: observations as tensors, in contract units made ready by the policy's transforms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B times that F observations, one for each of the policy's offsets, oldest first; F is 1 for most policies.

    images: {camera: uint8 [B, H, W, 3 F]}; state_BS: float [B, F S], normalised; instructions: B texts.
    """

    images: Mapping[str, Tensor]
    state_BS: Tensor
    instructions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.instructions)

    def to(self, device: torch.device | str) -> Batch:
        """The same observations on a device."""
        images = {name: image.to(device, non_blocking=True) for name, image in self.images.items()}
        return replace(self, images=images, state_BS=self.state_BS.to(device, non_blocking=True))


@dataclass(frozen=True, slots=True, eq=False)
class Committed:
    """Leading rows that are given. rows_BPA: normalised actions, P the most there can be; counts_B: how many hold."""

    rows_BPA: Tensor
    counts_B: Tensor

    def to(self, device: torch.device | str) -> Committed:
        """The same rows on a device."""
        return Committed(self.rows_BPA.to(device, non_blocking=True), self.counts_B.to(device, non_blocking=True))

    def known_BP(self) -> Tensor:
        """Which of the rows are given, bool [B, P]."""
        places = torch.arange(self.rows_BPA.shape[1], device=self.rows_BPA.device)
        return places[None] < self.counts_B[:, None]
