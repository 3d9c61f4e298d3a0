"""The kernels of `llama_kernels` in Triton; importing this file needs Triton.

Each takes and gives what the reference lines there do, one program a row, in fp32 inside. They run on CUDA, and on any
device in Triton's interpreter (TRITON_INTERPRET=1), where tests compare the two. Triton's compiler takes no annotation
of a kernel's argument but its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vla_runtime.decoding.llama_kernels import EIGHT_BITS, LARGEST, SMALLEST

# Heads that one program turns, and columns that one program of a product gate by gate takes.
_HEADS, _COLUMNS = 8, 1024


def add_rms_norm(hidden: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """As the reference lines."""
    out = torch.empty_like(hidden)
    _normed(hidden, added, weight, eps, out, None)
    return out


def add_rms_norm_fp8(hidden: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As the reference lines."""
    out, scales = _rows(hidden, hidden.shape[-1])
    _normed(hidden, added, weight, eps, out, scales)
    return out, scales


def rope_write(qkv: Tensor, cos: Tensor, sin: Tensor, memory: Tensor, heads: int, first: int) -> Tensor:
    """As the reference lines."""
    batch, rows, width = qkv.shape
    kept, size = memory.shape[2], memory.shape[4]
    assert qkv.is_contiguous()
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    assert memory.stride(3) == size
    assert memory.stride(4) == 1
    query = qkv.new_empty((batch, rows, heads, size))
    grid = (batch * rows, triton.cdiv(width // size, _HEADS))
    _rope_write[grid](
        qkv, cos, sin, memory, query, rows, first, *memory.stride()[:3],
        QUERIES=heads, KEPT=kept, HALF=size // 2, BLOCK=triton.next_power_of_2(size // 2), HEADS=_HEADS,
    )  # fmt: skip
    return query


def silu_mul(gate_up: Tensor) -> Tensor:
    """As the reference lines."""
    assert gate_up.is_contiguous()
    out = gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))
    width = out.shape[-1]
    grid = (out.numel() // width, triton.cdiv(width, _COLUMNS))
    _silu_mul[grid](gate_up, out, out, width, LARGEST, SMALLEST, QUANTISE=False, BLOCK=_COLUMNS)
    return out


def silu_mul_fp8(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """As the reference lines."""
    assert gate_up.is_contiguous()
    width = gate_up.shape[-1] // 2
    out, scales = _rows(gate_up, width)
    block = triton.next_power_of_2(width)
    _silu_mul[(len(out), 1)](
        gate_up, out, scales, width, LARGEST, SMALLEST, QUANTISE=True, BLOCK=block, num_warps=_warps(block)
    )
    return out, scales


def quantise_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """As the reference lines."""
    values = values.contiguous()
    width = values.shape[-1]
    out, scales = _rows(values, width)
    block = triton.next_power_of_2(width)
    _quantise_rows[(len(out),)](values, out, scales, width, LARGEST, SMALLEST, BLOCK=block, num_warps=_warps(block))
    return out, scales


def _normed(
    hidden: Tensor, added: Tensor | None, weight: Tensor, eps: float, out: Tensor, scales: Tensor | None
) -> None:
    assert hidden.is_contiguous()
    assert added is None or added.is_contiguous()
    width = hidden.shape[-1]
    block = triton.next_power_of_2(width)
    _add_rms_norm[(hidden.numel() // width,)](
        hidden, hidden if added is None else added, weight, out, out if scales is None else scales, width, eps,
        LARGEST, SMALLEST, ADDED=added is not None, QUANTISE=scales is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip


def _rows(values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    rows = values.shape[:-1].numel()
    return values.new_empty((rows, width), dtype=EIGHT_BITS), values.new_empty((rows, 1), dtype=torch.float32)


def _warps(block: int) -> int:
    return min(16, max(1, block // 512))


@triton.jit  # type: ignore[untyped-decorator]
def _add_rms_norm(  # type: ignore[no-untyped-def]
    hidden, added, weight, out, scales, width, eps, largest, smallest,
    ADDED: tl.constexpr, QUANTISE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    values = tl.load(hidden + row * width + at, mask=inside, other=0.0).to(tl.float32)
    if ADDED:
        values += tl.load(added + row * width + at, mask=inside, other=0.0).to(tl.float32)
        # The norm is of what is kept, in its precision.
        kept = values.to(hidden.dtype.element_ty)
        tl.store(hidden + row * width + at, kept, mask=inside)
        values = kept.to(tl.float32)
    normed = values * tl.rsqrt(tl.sum(values * values) / width + eps)
    normed = normed.to(hidden.dtype.element_ty).to(tl.float32)
    normed *= tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    if QUANTISE:
        normed = normed.to(hidden.dtype.element_ty).to(tl.float32)
        scale = tl.maximum(tl.max(tl.abs(normed)), smallest) / largest
        tl.store(scales + row, scale)
        normed = tl.minimum(tl.maximum(normed / scale, -largest), largest)
    tl.store(out + row * width + at, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _rope_write(  # type: ignore[no-untyped-def]
    qkv, cos, sin, memory, query, rows, first, by_kind, by_sample,
    by_head, QUERIES: tl.constexpr, KEPT: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    sample, row = program // rows, program % rows
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    half = tl.arange(0, BLOCK)
    inside = (head < QUERIES + 2 * KEPT)[:, None] & (half < HALF)[None, :]
    source = qkv + program * (QUERIES + 2 * KEPT) * 2 * HALF + head[:, None] * 2 * HALF + half[None, :]
    low = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    cosine = tl.load(cos + row * HALF + half, mask=half < HALF, other=0.0)[None, :]
    sine = tl.load(sin + row * HALF + half, mask=half < HALF, other=0.0)[None, :]
    # Values are not turned.
    turned = (head < QUERIES + KEPT)[:, None]
    new_low = tl.where(turned, low * cosine - high * sine, low)
    new_high = tl.where(turned, high * cosine + low * sine, high)
    asks = (head < QUERIES)[:, None]
    to = query + (program * QUERIES + head[:, None]) * 2 * HALF + half[None, :]
    tl.store(to, new_low.to(query.dtype.element_ty), mask=inside & asks)
    tl.store(to + HALF, new_high.to(query.dtype.element_ty), mask=inside & asks)
    kind = (head >= QUERIES + KEPT).to(tl.int64)
    place = kind * by_kind + sample * by_sample + (head - QUERIES - kind * KEPT) * by_head + (first + row) * 2 * HALF
    to = memory + place[:, None] + half[None, :]
    tl.store(to, new_low.to(memory.dtype.element_ty), mask=inside & (head >= QUERIES)[:, None])
    tl.store(to + HALF, new_high.to(memory.dtype.element_ty), mask=inside & (head >= QUERIES)[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def _silu_mul(  # type: ignore[no-untyped-def]
    gate_up, out, scales, width, largest, smallest, QUANTISE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(gate_up + row * 2 * width + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + at, mask=inside, other=0.0).to(tl.float32)
    gated = (gate * tl.sigmoid(gate)).to(gate_up.dtype.element_ty).to(tl.float32) * up
    if QUANTISE:
        gated = gated.to(gate_up.dtype.element_ty).to(tl.float32)
        scale = tl.maximum(tl.max(tl.abs(gated)), smallest) / largest
        tl.store(scales + row, scale)
        gated = tl.minimum(tl.maximum(gated / scale, -largest), largest)
    tl.store(out + row * width + at, gated.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _quantise_rows(  # type: ignore[no-untyped-def]
    values, out, scales, width, largest, smallest, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    wide = tl.load(values + row * width + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(wide)), smallest) / largest
    tl.store(scales + row, scale)
    wide = tl.minimum(tl.maximum(wide / scale, -largest), largest)
    tl.store(out + row * width + at, wide.to(out.dtype.element_ty), mask=inside)
