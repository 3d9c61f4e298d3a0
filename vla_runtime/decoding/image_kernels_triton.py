"""The Triton kernels of `image_kernels`; imported when the first of them is launched, since Triton is large."""

from __future__ import annotations

import triton
import triton.language as tl

# Values a program works on at once.
BLOCK = 1024
# Added to a number below 2^22 and taken away again it leaves the nearest whole number, halves to even.
_WHOLE = tl.constexpr(12582912.0)


@triton.jit
def group_norm_gelu_kernel(
    values, shift, weight, bias, answer, eps, channels, size, cells, groups, block: tl.constexpr, ROWS: tl.constexpr
):
    """`image_kernels.group_norm_gelu`: one program a group of a sample. size: channels of a group; cells: H W."""
    sample, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    first = group * size
    count = size * cells
    start = values + (sample * channels + first) * cells
    total = tl.zeros([block], tl.float32)
    for offset in range(0, count, block):
        place = offset + tl.arange(0, block)
        inside = place < count
        moved = tl.load(shift + first + place // cells, inside, 0.0).to(tl.float32)
        total += tl.where(inside, tl.load(start + place, inside, 0.0).to(tl.float32) + moved, 0.0)
    mean = tl.sum(total) / count
    squares = tl.zeros([block], tl.float32)
    for offset in range(0, count, block):
        place = offset + tl.arange(0, block)
        inside = place < count
        moved = tl.load(shift + first + place // cells, inside, 0.0).to(tl.float32)
        apart = tl.where(inside, tl.load(start + place, inside, 0.0).to(tl.float32) + moved - mean, 0.0)
        squares += apart * apart
    scale = 1 / tl.sqrt(tl.sum(squares) / count + eps)
    for offset in range(0, count, block):
        place = offset + tl.arange(0, block)
        inside = place < count
        channel = first + place // cells
        value = tl.load(start + place, inside, 0.0).to(tl.float32)
        value += tl.load(shift + channel, inside, 0.0).to(tl.float32)
        value = (value - mean) * scale * tl.load(weight + channel, inside, 0.0).to(tl.float32)
        value += tl.load(bias + channel, inside, 0.0).to(tl.float32)
        value = 0.5 * value * (1 + tl.erf(value * 0.7071067811865476))
        if ROWS:
            goal = (sample * cells + place % cells) * channels + channel
        else:
            goal = (sample * channels + first) * cells + place
        tl.store(answer + goal, value, inside)


@triton.jit
def pixels_to_unit_kernel(planes, answer, count, block: tl.constexpr):
    """`image_kernels.pixels_to_unit`."""
    place = tl.program_id(0) * block + tl.arange(0, block)
    inside = place < count
    value = tl.load(planes + place, inside, 0.0) + _WHOLE - _WHOLE
    tl.store(answer + place, tl.minimum(tl.maximum(value, 0.0), 255.0) / 127.5 - 1, inside)
