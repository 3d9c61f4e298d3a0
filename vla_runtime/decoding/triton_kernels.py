"""Where fused kernels run: on CUDA with Triton, which is large and imported when the first of them is launched."""

from __future__ import annotations

import importlib.util
import logging
from functools import cache

import torch

_log = logging.getLogger(__name__)


def fused(device: torch.device | str) -> bool:
    """Whether operators of this package are single kernels on this device: CUDA with Triton installed."""
    return torch.device(device).type == "cuda" and _has_triton()


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def announce(device: torch.device | str) -> None:
    """Log a warning, once, where a CUDA device runs the reference lines, several kernels each, for want of Triton."""
    if torch.device(device).type == "cuda" and not fused(device):
        _log.warning(
            "fused kernels: expected Triton on %s, got none; the reference lines run instead, several times slower; "
            "run pip install triton",
            device,
        )
