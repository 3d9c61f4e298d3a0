"""Where fused kernels run: on CUDA with Triton, which is large and imported when the first of them is launched."""

from __future__ import annotations

import importlib.util
import logging
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


def fused(device: torch.device | str) -> bool:
    """Whether operators of this package are single kernels on this device: CUDA with Triton installed."""
    return torch.device(device).type == "cuda" and _has_triton()


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Inside, Triton launches on this tensor's device; it takes the current one otherwise."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


@cache
def announce(device: torch.device | str) -> None:
    """Log a warning, once, where a CUDA device runs the reference lines, several kernels each, for want of Triton."""
    if torch.device(device).type == "cuda" and not fused(device):
        _log.warning(
            "fused kernels: expected Triton on %s, got none; the reference lines run instead, several times slower; "
            "run pip install triton",
            device,
        )
