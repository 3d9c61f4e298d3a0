"""What a policy's weights are kept and computed in: fp32, bf16, or bf16 with a backbone's linear layers in eight bits.

Eight bits are torchao's, weights alone: what they save is memory. Results are near, not equal, as with bf16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

# In what the rest of the network is then computed.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16, "fp8": torch.bfloat16}
# What torchao turns weights into.
_QUANTISED = {"Int8Tensor": "int8", "Float8Tensor": "fp8"}
# Of NVIDIA GPUs that multiply fp8: Ada, Hopper and later.
_FP8_FROM = (8, 9)


def set_precision(backbone: nn.Module, others: Sequence[nn.Module], device: torch.device | str, name: str) -> None:
    """Move modules to a device and a precision. ValueError for one that `device` or this environment cannot do.

    others: what is computed in the precision, but keeps its weights in 16 bits or more.
    """
    for module in (backbone, *others):
        module.to(device, DTYPES[name])
    if name not in _QUANTISED.values():
        return
    device = torch.device(device)
    if name == "fp8" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < _FP8_FROM):
        raise ValueError(f"decode.precision=fp8: expected a GPU that multiplies fp8, got {device}; take int8 or bf16")
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise ValueError(
            f"decode.precision={name}: expected torchao, got {error}; run pip install 'vla_runtime[quantise]'"
        ) from error
    config: Any = Int8WeightOnlyConfig() if name == "int8" else Float8WeightOnlyConfig()
    quantize_(backbone.requires_grad_(False), config, _fits_eight_bits)


def _fits_eight_bits(module: nn.Module, name: str) -> bool:
    # A vocabulary's output layer keeps 16 bits, as is usual; heads that speak in words pick rows of it, which torchao's
    # fp8 has not.
    return isinstance(module, nn.Linear) and not name.endswith("lm_head")


def precision_of(backbone: nn.Module) -> str:
    """The precision that a backbone's weights have, whatever was asked for."""
    found = {_QUANTISED[kind] for weight in backbone.parameters() if (kind := type(weight).__name__) in _QUANTISED}
    if found:
        return "+".join(sorted(found))
    dtype = next(backbone.parameters()).dtype
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype).removeprefix("torch."))
