"""What lies between a Llama's matrix products, each step of it in one kernel.

A custom operator of namespace `vla` for each: on CUDA a Triton kernel (`llama_triton`), on every other device the torch
lines here, which are the kernel's reference. An operator counts as one launch in whatever counts launches. Inference
only: none has a gradient. Eight-bit operators give float8 e4m3 with one scale a row, so that a product of rows and
weights is `(values * scale) @ (weights * scales)`. Knows tensors, no network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vla_runtime.decoding.triton_kernels import fused, on_device_of

EIGHT_BITS = torch.float8_e4m3fn
LARGEST = 448.0
# A row of zeros has a scale, too.
SMALLEST = 1e-12


def rms_norm_lines(hidden: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Reference of `add_rms_norm`."""
    if added is not None:
        hidden.add_(added)
    wide = hidden.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(hidden.dtype)


def rope_lines(qkv: Tensor, cos: Tensor, sin: Tensor, memory: Tensor, heads: int, first: int) -> Tensor:
    """Reference of `rope_write`."""
    batch, rows, _ = qkv.shape
    kept, size = memory.shape[2], memory.shape[4]
    query, key, value = torch.split(qkv.view(batch, rows, -1, size), [heads, kept, kept], dim=2)
    memory[0, :, :, first : first + rows] = _turned(key, cos, sin).transpose(1, 2)
    memory[1, :, :, first : first + rows] = value.transpose(1, 2)
    return _turned(query, cos, sin)


def _turned(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = values.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(values.dtype)


def silu_mul_lines(gate_up: Tensor) -> Tensor:
    """Reference of `silu_mul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def quantise_lines(values: Tensor) -> tuple[Tensor, Tensor]:
    """Reference of `quantise_rows`."""
    wide = values.flatten(0, -2).float()
    scales = wide.abs().amax(-1, keepdim=True).clamp_min(SMALLEST) / LARGEST
    return (wide / scales).clamp(-LARGEST, LARGEST).to(EIGHT_BITS), scales


def _add_rms_norm(hidden: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    return rms_norm_lines(hidden, added, weight, eps)


def _add_rms_norm_fp8(hidden: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return quantise_lines(rms_norm_lines(hidden, added, weight, eps))


def _rope_write(qkv: Tensor, cos: Tensor, sin: Tensor, memory: Tensor, heads: int, first: int) -> Tensor:
    return rope_lines(qkv, cos, sin, memory, heads, first)


def _silu_mul(gate_up: Tensor) -> Tensor:
    return silu_mul_lines(gate_up)


def _silu_mul_fp8(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    return quantise_lines(silu_mul_lines(gate_up))


def _quantise_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    return quantise_lines(values)


add_rms_norm = torch.library.custom_op("vla::add_rms_norm", _add_rms_norm, mutates_args=("hidden",))
add_rms_norm_fp8 = torch.library.custom_op("vla::add_rms_norm_fp8", _add_rms_norm_fp8, mutates_args=("hidden",))
rope_write = torch.library.custom_op("vla::rope_write", _rope_write, mutates_args=("memory",))
silu_mul = torch.library.custom_op("vla::silu_mul", _silu_mul, mutates_args=())
silu_mul_fp8 = torch.library.custom_op("vla::silu_mul_fp8", _silu_mul_fp8, mutates_args=())
quantise_rows = torch.library.custom_op("vla::quantise_rows", _quantise_rows, mutates_args=())
add_rms_norm.__doc__ = """hidden [B, R, D] += added, in place, and its root-mean-square norm, in hidden's precision."""
add_rms_norm_fp8.__doc__ = """As `add_rms_norm`, the norm in eight bits [B R, D] with its rows' scales [B R, 1]."""
rope_write.__doc__ = """Queries [B, R, H, E] of qkv [B, R, (H + 2 K) E], turned; keys, turned, and values go to memory.

memory [2, B, K, P, E], written in place at its places first to first + R; cos, sin: float [R, E / 2] of the rows.
"""
silu_mul.__doc__ = """silu(first half) * second half of the last dimension: [..., 2 F] -> [..., F]."""
silu_mul_fp8.__doc__ = """As `silu_mul`, in eight bits [rows, F] with the rows' scales [rows, 1]."""
quantise_rows.__doc__ = """[..., D] in eight bits [rows, D], with the rows' scales float [rows, 1]."""


@add_rms_norm.register_fake
def _(hidden: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    return torch.empty_like(hidden)


@add_rms_norm_fp8.register_fake
def _(hidden: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _empty_rows(hidden, hidden.shape[-1])


@rope_write.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor, memory: Tensor, heads: int, first: int) -> Tensor:
    return qkv.new_empty((*qkv.shape[:2], heads, memory.shape[4]))


@silu_mul.register_fake
def _(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


@silu_mul_fp8.register_fake
def _(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_rows(gate_up, gate_up.shape[-1] // 2)


@quantise_rows.register_fake
def _(values: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_rows(values, values.shape[-1])


def _empty_rows(values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    rows = values.shape[:-1].numel()
    return values.new_empty((rows, width), dtype=EIGHT_BITS), values.new_empty((rows, 1), dtype=torch.float32)


# Without Triton the reference lines run on CUDA as well, and `announce` says so.
@add_rms_norm.register_kernel("cuda")
def _(hidden: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    if not fused("cuda"):
        return rms_norm_lines(hidden, added, weight, eps)
    from vla_runtime.decoding import llama_triton

    with on_device_of(hidden):
        return llama_triton.add_rms_norm(hidden, added, weight, eps)


@add_rms_norm_fp8.register_kernel("cuda")
def _(hidden: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if not fused("cuda"):
        return _add_rms_norm_fp8(hidden, added, weight, eps)
    from vla_runtime.decoding import llama_triton

    with on_device_of(hidden):
        return llama_triton.add_rms_norm_fp8(hidden, added, weight, eps)


@rope_write.register_kernel("cuda")
def _(qkv: Tensor, cos: Tensor, sin: Tensor, memory: Tensor, heads: int, first: int) -> Tensor:
    if not fused("cuda"):
        return rope_lines(qkv, cos, sin, memory, heads, first)
    from vla_runtime.decoding import llama_triton

    with on_device_of(qkv):
        return llama_triton.rope_write(qkv, cos, sin, memory, heads, first)


@silu_mul.register_kernel("cuda")
def _(gate_up: Tensor) -> Tensor:
    if not fused("cuda"):
        return silu_mul_lines(gate_up)
    from vla_runtime.decoding import llama_triton

    with on_device_of(gate_up):
        return llama_triton.silu_mul(gate_up)


@silu_mul_fp8.register_kernel("cuda")
def _(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    if not fused("cuda"):
        return _silu_mul_fp8(gate_up)
    from vla_runtime.decoding import llama_triton

    with on_device_of(gate_up):
        return llama_triton.silu_mul_fp8(gate_up)


@quantise_rows.register_kernel("cuda")
def _(values: Tensor) -> tuple[Tensor, Tensor]:
    if not fused("cuda"):
        return quantise_lines(values)
    from vla_runtime.decoding import llama_triton

    with on_device_of(values):
        return llama_triton.quantise_rows(values)
