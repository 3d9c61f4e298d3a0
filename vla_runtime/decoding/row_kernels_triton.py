"""The Triton kernels of `row_kernels`; imported when the first of them is launched, since Triton is large.

One program a row of [B, L]. Everything is computed in float32 and stored in the type of what it is stored to. Loops
over places and steps have bounds of run time, so that one compiled kernel serves every plan.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Not specialised on their values: a plan has many, and each would be compiled apart.
_COUNTS = ["step", "end", "after_count", "kept_count", "before_count", "all_rows", "chunk_rows"]


def power_of_two(size: int) -> int:
    """The width of a block that holds `size` values, at least 16."""
    return max(16, int(triton.next_power_of_2(size)))


@triton.jit
def _normed(values, weight, bias, eps, columns, inside, width: tl.constexpr):
    mean = tl.sum(values) / width
    apart = tl.where(inside, values - mean, 0.0)
    scale = 1 / tl.sqrt(tl.sum(apart * apart) / width + eps)
    weights = tl.load(weight + columns, inside, 0.0).to(tl.float32)
    return apart * scale * weights + tl.load(bias + columns, inside, 0.0).to(tl.float32)


@triton.jit
def _summed(values, outputs, places, count, row, rows, columns, inside, width: tl.constexpr):  # fmt: skip
    for index in range(count):
        place = tl.load(places + index)
        values += tl.load(outputs + (place * rows + row) * width + columns, inside, 0.0).to(tl.float32)
    return values


@triton.jit(do_not_specialize=["count", "rows"])
def add_and_norm_kernel(
    slots, outputs, places, weight, bias, normed, eps, count, rows,
    width: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """`row_kernels.add_and_norm`."""
    row, columns = tl.program_id(0), tl.arange(0, block)
    inside = columns < width
    values = tl.load(slots + row * width + columns, inside, 0.0).to(tl.float32)
    values = _summed(values, outputs, places, count, row, rows, columns, inside, width)
    tl.store(slots + row * width + columns, values, inside)
    tl.store(normed + row * width + columns, _normed(values, weight, bias, eps, columns, inside, width), inside)


@triton.jit(do_not_specialize=_COUNTS)
def denoise_rows_kernel(
    sample, last, noise, table, outputs, embed, embed_bias, positions,
    weight, bias, out, out_bias, slots, after, kept, before,
    begun_weight, begun_bias, given, begun, normed, eps, begun_eps, step,
    end, after_count, kept_count, before_count, all_rows, chunk_rows,
    length: tl.constexpr, rows: tl.constexpr, size: tl.constexpr, width: tl.constexpr, size_block: tl.constexpr,
    block: tl.constexpr, CLIP: tl.constexpr, DRAWS: tl.constexpr, FINISHES: tl.constexpr, BEGINS: tl.constexpr,
):  # fmt: skip
    """`row_kernels.denoise_rows`."""
    row, columns, numbers = tl.program_id(0), tl.arange(0, block), tl.arange(0, size_block)
    inside, some = columns < width, numbers < size
    sample_index, place = row // length, row % length
    ahead = length - rows
    if place < ahead:
        if BEGINS:
            # The slot of a given row: the same at every step.
            start = tl.load(given + (sample_index * ahead + place) * width + columns, inside, 0.0).to(tl.float32)
            start = _summed(start, outputs, before, before_count, row, all_rows, columns, inside, width)
            tl.store(begun + row * width + columns, start, inside)
            tl.store(
                normed + row * width + columns,
                _normed(start, begun_weight, begun_bias, begun_eps, columns, inside, width), inside,
            )  # fmt: skip
    else:
        mine = (sample_index * rows + place - ahead) * size + numbers
        value = tl.load(sample + mine, some, 0.0)
        both = inside[:, None] & some[None, :]
        into = tl.load(embed + columns[:, None] * size + numbers[None, :], both, 0.0).to(tl.float32)
        base = tl.load(embed_bias + columns, inside, 0.0).to(tl.float32)
        base += tl.load(positions + (place - ahead) * width + columns, inside, 0.0).to(tl.float32)
        if FINISHES:
            turned = some[:, None] & inside[None, :]
            back = tl.load(out + numbers[:, None] * width + columns[None, :], turned, 0.0).to(tl.float32)
            back_bias = tl.load(out_bias + numbers, some, 0.0).to(tl.float32)
            guess_before = tl.load(last + mine, some, 0.0)
            hidden = tl.load(slots + row * width + columns, inside, 0.0).to(tl.float32)
            hidden = _summed(hidden, outputs, after, after_count, row, all_rows, columns, inside, width)
            total = _summed(base, outputs, kept, kept_count, row, all_rows, columns, inside, width)
            for k in range(step, end):
                normal = _normed(hidden, weight, bias, eps, columns, inside, width)
                answer = back_bias + tl.sum(back * normal[None, :], 1)
                line = table + k * 7
                guess = value * tl.load(line) + answer * tl.load(line + 1)
                if CLIP:
                    guess = tl.minimum(tl.maximum(guess, -1.0), 1.0)
                value = (
                    value * tl.load(line + 2) + guess * tl.load(line + 3) + guess_before * tl.load(line + 4)
                    + answer * tl.load(line + 5)
                )  # fmt: skip
                if DRAWS:
                    value += tl.load(noise + k * chunk_rows * size + mine, some, 0.0) * tl.load(line + 6)
                guess_before = guess
                hidden = total + tl.sum(into * value[None, :], 1)
            tl.store(sample + mine, value, some)
            tl.store(last + mine, guess_before, some)
        if BEGINS:
            start = base + tl.sum(into * value[None, :], 1)
            start = _summed(start, outputs, before, before_count, row, all_rows, columns, inside, width)
            tl.store(begun + row * width + columns, start, inside)
            tl.store(
                normed + row * width + columns,
                _normed(start, begun_weight, begun_bias, begun_eps, columns, inside, width), inside,
            )  # fmt: skip
