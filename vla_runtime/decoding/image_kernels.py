"""What lies between the products of a convolution stem, as one kernel each: norms with activations, pixels to units.

Each exists as torch lines, which are the reference and run on every device, and as a Triton kernel, an operator of its
own (`vla::`) on CUDA. Knows tensors only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vla_runtime.decoding.triton_kernels import announce, fused, on_device_of


def group_norm_gelu(
    values: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, rows: bool
) -> Tensor:
    """A convolution's bias, group norm and GELU.

    Args:
        values: [B, C, H, W], a convolution's output without its bias.
        shift: [C], the bias.
        weight: [C], of the norm.
        bias: [C], of the norm.
        groups: into which the channels are divided.
        eps: of the norm.
        rows: whether the answer is [B, H W, C], one row a cell, instead of [B, C, H, W].
    """
    found = F.gelu(F.group_norm(values + shift[:, None, None], groups, weight, bias, eps))
    return found.flatten(2).transpose(1, 2).contiguous() if rows else found


def pixels_to_unit(planes: Tensor, dtype: torch.dtype) -> Tensor:
    """Pixels float [B, C, H, W] to [-1, 1], rounded to whole numbers from 0 to 255 first."""
    return (planes.round().clamp(0, 255) / 127.5 - 1).to(dtype)


class TorchImages:
    """The operations as torch lines."""

    group_norm_gelu = staticmethod(group_norm_gelu)
    pixels_to_unit = staticmethod(pixels_to_unit)


class TritonImages:
    """The operations as Triton kernels, computed in float32."""

    @staticmethod
    def group_norm_gelu(
        values: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, rows: bool
    ) -> Tensor:
        """As `image_kernels.group_norm_gelu`."""
        found: Tensor = torch.ops.vla.group_norm_gelu(values.contiguous(), shift, weight, bias, groups, eps, rows)
        return found

    @staticmethod
    def pixels_to_unit(planes: Tensor, dtype: torch.dtype) -> Tensor:
        """As `image_kernels.pixels_to_unit`."""
        found: Tensor = torch.ops.vla.pixels_to_unit(planes.contiguous(), dtype)
        return found


def image_operations(device: torch.device) -> type[TorchImages] | type[TritonImages]:
    """Triton's where there is a CUDA device and Triton, else torch's."""
    announce(device)
    return TritonImages if fused(device) else TorchImages


def _launch_group_norm_gelu(
    values: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, rows: bool
) -> Tensor:
    from vla_runtime.decoding.image_kernels_triton import BLOCK, group_norm_gelu_kernel

    batch, channels, height, width = values.shape
    answer = _fake_group_norm_gelu(values, shift, weight, bias, groups, eps, rows)
    with on_device_of(values):
        group_norm_gelu_kernel[(batch * groups,)](
            values, shift, weight, bias, answer, eps, channels, channels // groups, height * width, groups, BLOCK,
            ROWS=rows,
        )  # fmt: skip
    return answer


def _fake_group_norm_gelu(
    values: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, rows: bool
) -> Tensor:
    batch, channels, height, width = values.shape
    return values.new_empty((batch, height * width, channels) if rows else values.shape)


def _launch_pixels_to_unit(planes: Tensor, dtype: torch.dtype) -> Tensor:
    from vla_runtime.decoding.image_kernels_triton import BLOCK, pixels_to_unit_kernel

    answer = torch.empty_like(planes, dtype=dtype)
    with on_device_of(planes):
        pixels_to_unit_kernel[(-(-planes.numel() // BLOCK),)](planes, answer, planes.numel(), BLOCK)
    return answer


def _fake_pixels_to_unit(planes: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(planes, dtype=dtype)


_group_norm_gelu = torch.library.custom_op(
    "vla::group_norm_gelu", _launch_group_norm_gelu, mutates_args=(), device_types="cuda"
)
_group_norm_gelu.register_fake(_fake_group_norm_gelu)
_pixels_to_unit = torch.library.custom_op(
    "vla::pixels_to_unit", _launch_pixels_to_unit, mutates_args=(), device_types="cuda"
)
_pixels_to_unit.register_fake(_fake_pixels_to_unit)
