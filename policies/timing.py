"""Time that is measured on a device which works on while the program goes on."""

from __future__ import annotations

import torch


def finish(device: torch.device) -> None:
    """Wait until everything that was asked of the device is done; a processor already is."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
