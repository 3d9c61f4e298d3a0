"""Linear layers that multiply in eight bits: weights and inputs as float8 e4m3, a scale for every row of both (W8A8).

Stands where a `torch.nn.Linear` was. Unlike weights that are only kept in eight bits, this saves time, on GPUs that
multiply them (`multiplies`); elsewhere the product is computed from the numbers that the eight bits stand for, which is
the reference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vla_runtime.decoding.llama_kernels import quantise_lines, quantise_rows

# Of NVIDIA GPUs that multiply fp8: Ada, Hopper and later.
_FROM = (8, 9)
# Both sizes of a weight must be multiples of it.
_MULTIPLE = 16


def multiplies(device: torch.device | str) -> bool:
    """Whether this device multiplies fp8."""
    device = torch.device(device)
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FROM


def fits(linear: nn.Linear) -> bool:
    """Whether its sizes are such that a GPU multiplies it in eight bits."""
    return linear.in_features % _MULTIPLE == 0 and linear.out_features % _MULTIPLE == 0


class Fp8Linear(nn.Linear):
    """The linear layer in eight bits. weight: e4m3 [out, in]; scale: of its rows, float [out, 1]; the bias stays.

    For inference: nothing has a gradient. ValueError for sizes that do not fit.
    """

    scale: Tensor

    def __init__(self, linear: nn.Linear):
        if not fits(linear):
            raise ValueError(
                f"fp8: expected a linear layer whose sizes are multiples of {_MULTIPLE}, got "
                f"{linear.out_features} x {linear.in_features}; leave it in bf16"
            )
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        values, scale = quantise_lines(linear.weight.detach())
        self.weight = nn.Parameter(values, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, values: Tensor) -> Tensor:
        rows, scale = quantise_rows(values)
        found = fp8_product(rows, scale, self.weight, self.scale, self.bias, values.dtype)
        return found.view(*values.shape[:-1], self.out_features)


def fp8_product(
    rows: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """(rows * scale) @ (weight * weight_scale).T + bias, in `dtype` [rows, out]; rows and weight e4m3.

    On CUDA one kernel of the GPU's own, which answers in bf16 alone.
    """
    if rows.device.type == "cuda":
        return torch._scaled_mm(
            rows, weight.t(), scale_a=scale, scale_b=weight_scale.t(), bias=bias, out_dtype=dtype, use_fast_accum=True
        )
    found = (rows.float() * scale) @ (weight.float() * weight_scale).t()
    return (found if bias is None else found + bias.float()).to(dtype)


def quantise(module: nn.Module, kept: Callable[[str], bool]) -> None:
    """Replace the linear layers in `module` that fit, all but those whose names `kept` says yes to."""
    for owner_name, owner in list(module.named_modules()):
        for name, child in list(owner.named_children()):
            full = f"{owner_name}.{name}" if owner_name else name
            if type(child) is nn.Linear and fits(child) and not kept(full):
                setattr(owner, name, Fp8Linear(child))
