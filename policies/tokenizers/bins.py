"""256 uniform bins a dimension, as OpenVLA and Discrete Diffusion VLA cut actions (arXiv 2508.20072, section 3).

Sees normalised chunks only: what 1.0 means is the transforms' business.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Bins:
    """ActionTokenizer: one token a number, row after row (all dimensions of row 0 first).

    Ids 0 to 255 count the edges of linspace(-1, 1, 256) at or below the value, less one; OpenVLA's
    vocabulary holds them reversed, as `vocabulary_end - 1 - id`. Decoding gives the middle of a bin: 255 values.
    """

    name = "bins"
    vocab_size = 256

    def __init__(self, rows: int, size: int):
        """rows: T of a chunk; size: A."""
        if rows < 1 or size < 1:
            raise ValueError(f"bins: expected at least one row and one dimension, got {rows} and {size}")
        self.rows, self.size = rows, size
        self.num_tokens = rows * size
        # In float64: which side of an edge a value falls on must not depend on rounding of the edges.
        self._edges = OnDevices(torch.linspace(-1, 1, self.vocab_size, dtype=torch.float64))

    def encode(self, actions_BTA: Tensor) -> Tensor:
        """float [B, T, A] in [-1, 1] -> int64 [B, T * A]; values outside are cut to the range."""
        _check_chunk(actions_BTA, self.rows, self.size)
        return self._ids(actions_BTA)

    def decode(self, ids_BL: Tensor, checked: bool = True) -> Tensor:
        """int64 [B, T * A] -> float32 [B, T, A]; ValueError for ids outside 0 to 255, unless they are known to be
        inside (checked=False), where a GPU is not asked for them.
        """
        check_ids(ids_BL, self.num_tokens, self.vocab_size, checked)
        low = ids_BL.clamp(max=self.vocab_size - 2)
        values = (low.double() + 0.5) * (2 / (self.vocab_size - 1)) - 1
        return values.float().reshape(-1, self.rows, self.size)

    def pinned(self, rows_BPA: Tensor, known_BP: Tensor) -> Tensor:
        """Ids int64 [B, T * A] that leading rows which are given decide, -1 where nothing does."""
        batch, most, _ = rows_BPA.shape
        chunk = torch.zeros(batch, self.rows, self.size, device=rows_BPA.device)
        chunk[:, :most] = torch.where(known_BP[..., None], rows_BPA.float(), chunk[:, :most])
        known = torch.zeros(batch, self.rows, dtype=torch.bool, device=rows_BPA.device)
        known[:, :most] = known_BP
        ids = self._ids(chunk)
        return torch.where(known.repeat_interleave(self.size, dim=1), ids, torch.full_like(ids, -1))

    def _ids(self, actions_BTA: Tensor) -> Tensor:
        values = actions_BTA.double().clamp(-1, 1)
        return (torch.bucketize(values, self._edges.on(values.device), right=True) - 1).flatten(1)

    def influence(self) -> NDArray[np.float64]:
        """How much token (row, dimension) [T, A] weighs in row t: [T, T, A], the identity here."""
        return np.repeat(np.eye(self.rows)[..., None], self.size, axis=2)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; the constructor takes it back."""
        return {"rows": self.rows, "size": self.size}


def _check_chunk(actions_BTA: Tensor, rows: int, size: int) -> None:
    if actions_BTA.ndim != 3 or actions_BTA.shape[1:] != (rows, size):
        raise ValueError(f"tokenizer: expected actions [B, {rows}, {size}], got {list(actions_BTA.shape)}")
    if not torch.isfinite(actions_BTA).all():
        raise ValueError("tokenizer: expected finite actions, got NaN or infinity")


class OnDevices:
    """A constant tensor, copied once to every device that asks for it."""

    def __init__(self, value: Tensor):
        self._value = value
        self._copies: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """The tensor on a device."""
        if device.type == "cpu":
            return self._value
        if device not in self._copies:
            self._copies[device] = self._value.to(device)
        return self._copies[device]


def check_ids(ids_BL: Tensor, num_tokens: int, vocab_size: int, values: bool = True) -> None:
    """ValueError unless ids are integers [B, num_tokens] and, with `values`, in [0, vocab_size)."""
    if ids_BL.ndim != 2 or ids_BL.shape[1] != num_tokens or ids_BL.is_floating_point():
        raise ValueError(f"tokenizer: expected integer ids [B, {num_tokens}], got {ids_BL.dtype} {list(ids_BL.shape)}")
    if values and ids_BL.numel() and not (int(ids_BL.min()) >= 0 and int(ids_BL.max()) < vocab_size):
        raise ValueError(
            f"tokenizer: expected ids in [0, {vocab_size}), got {int(ids_BL.min())} to {int(ids_BL.max())}"
        )
