"""What a policy's weights are kept and computed in: fp32, bf16, or a backbone's linear layers in eight bits.

int8 is torchao's, of weights alone, turned into bf16 for every product: it saves memory only, and costs time. fp8
multiplies in eight bits, on a GPU that does (`policies.fp8`): it saves both. Results are near, not equal, as with bf16.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from policies import fp8

# In what the rest of the network is then computed.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16, "fp8": torch.bfloat16}
# What torchao turns weights into.
_INT8 = "Int8Tensor"
# A vocabulary's output layer keeps 16 bits, as is usual; heads that use its tokens pick rows of it, which fp8 has not.
_OUTPUT = "lm_head"
_log = logging.getLogger(__name__)


def set_precision(backbone: nn.Module, others: Sequence[nn.Module], device: torch.device | str, name: str) -> None:
    """Move modules to a device and a precision. ValueError for one that `device` or this environment cannot do.

    others: what is computed in the precision, but keeps its weights in 16 bits or more; a backbone may name parts that
    do so in fp8 (`sixteen_bits`, beginnings of names). Constants that no checkpoint holds (buffers that are not
    persistent: rotary frequencies, a noise schedule) keep the precision they were made in.
    """
    if name == "fp8" and not fp8.multiplies(device):
        raise ValueError(f"decode.precision=fp8: expected a GPU that multiplies fp8, got {device}; take bf16")
    if DTYPES[name] == torch.bfloat16 and torch.device(device).type == "cpu" and not _multiplies_bf16():
        _log.warning(
            "decode.precision=%s: expected a processor with AMX or AVX512-BF16, got one without, where bf16 is several "
            "times slower than fp32; take decode.precision=fp32", name,
        )  # fmt: skip
    if name == "fp32" and torch.device(device).type == "cuda":
        # cuDNN's convolutions take TF32 unless told not to, which moves actions by 1e-5; products do not.
        torch.backends.cudnn.allow_tf32 = False
    for module in (backbone, *others):
        _convert(module, device, DTYPES[name])
    if name == "fp8":
        parts: tuple[str, ...] = getattr(backbone, "sixteen_bits", ())
        fp8.quantise(backbone.requires_grad_(False), lambda name: name.startswith(parts) or name.endswith(_OUTPUT))
    if name == "int8":
        try:
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
        except ImportError as error:
            raise ValueError(
                f"decode.precision=int8: expected torchao, got {error}; run pip install 'vla_runtime[quantise]'"
            ) from error
        quantize_(backbone.requires_grad_(False), Int8WeightOnlyConfig(), _is_kept_in_int8)


def _multiplies_bf16() -> bool:
    """Whether this processor multiplies bf16 itself; of kinds other than x86, and with a PyTorch that does not say,
    it is taken for granted.
    """
    asked = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    if platform.machine().lower() not in ("x86_64", "amd64") or None in asked:
        return True
    return any(one() for one in asked if one is not None)


def precision_of(backbone: nn.Module) -> str:
    """The precision that a backbone's weights have, whatever was asked for."""
    if any(isinstance(module, fp8.Fp8Linear) for module in backbone.modules()):
        return "fp8"
    if any(type(weight).__name__ == _INT8 for weight in backbone.parameters()):
        return "int8"
    dtype = next(backbone.parameters()).dtype
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype).removeprefix("torch."))


def require_speed(precision: str) -> None:
    """ValueError for a precision that saves memory only, where speed is asked for."""
    if precision == "int8":
        raise ValueError(
            "decode.graphs: expected a precision that saves time, got int8, which saves memory only and is slower than "
            "bf16 on a GPU; take decode.precision=bf16, or fp8 where the GPU multiplies it"
        )


def _convert(module: nn.Module, device: torch.device | str, dtype: torch.dtype) -> None:
    constants: list[tuple[nn.Module, str, Any]] = [
        (owner, name, owner._buffers[name])
        for owner in module.modules()
        for name in owner._non_persistent_buffers_set
        if owner._buffers[name] is not None
    ]
    module.to(device, dtype)
    for owner, name, value in constants:
        owner._buffers[name] = value.to(device)


def _is_kept_in_int8(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and not name.endswith(_OUTPUT)
