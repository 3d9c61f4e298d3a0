"""Every Triton kernel of a Llama beside its reference lines, in Triton's interpreter: run with TRITON_INTERPRET=1."""

from __future__ import annotations

import torch

from vla_runtime.decoding import llama_kernels as lines
from vla_runtime.decoding import llama_triton as kernels

_generator = torch.Generator().manual_seed(0)


def drawn(*sizes, dtype=torch.float32):
    return torch.randn(*sizes, generator=_generator).to(dtype)


def near(found, wanted, dtype):
    # The interpreter cuts what it turns into bf16, where a GPU rounds: a unit in the last place, of a sum of two.
    tolerance = 1e-6 if dtype == torch.float32 else 2**-6
    torch.testing.assert_close(found.float(), wanted.float(), rtol=tolerance, atol=tolerance)


def same_rows(found, wanted, dtype):
    (rows, scale), (wanted_rows, wanted_scale) = found, wanted
    near(scale, wanted_scale, dtype)
    rows, wanted_rows = rows.float(), wanted_rows.float()
    # The interpreter loses the carry where a mantissa is rounded up to the next power of two: half is left.
    carried = 2 * rows == wanted_rows
    assert (carried & (rows != 0)).float().mean() < 0.1
    # What was cut before may be rounded to the next step; the smallest numbers are cut.
    steps = 0 if dtype == torch.float32 else 0.13
    torch.testing.assert_close(rows[~carried], wanted_rows[~carried], rtol=steps, atol=max(steps, 2**-9))


def norms(dtype, width):
    hidden, added, weight = drawn(2, 3, width, dtype=dtype), drawn(2, 3, width, dtype=dtype), drawn(width, dtype=dtype)
    for more in (None, added):
        mine, wanted = hidden.clone(), hidden.clone()
        near(kernels.add_rms_norm(mine, more, weight, 1e-6), lines.rms_norm_lines(wanted, more, weight, 1e-6), dtype)
        near(mine, wanted, dtype)
        assert torch.equal(mine, hidden) == (more is None)
    mine, wanted = hidden.clone(), hidden.clone()
    rows = kernels.add_rms_norm_fp8(mine, added, weight, 1e-6)
    same_rows(rows, lines.quantise_lines(lines.rms_norm_lines(wanted, added, weight, 1e-6)), dtype)
    near(mine, wanted, dtype)


def turns(dtype, heads, kept, size):
    qkv = drawn(2, 3, (heads + 2 * kept) * size, dtype=dtype)
    cos, sin = drawn(3, size // 2), drawn(3, size // 2)
    mine = drawn(2, 2, 2, kept, 9, size, dtype=dtype)
    wanted = mine.clone()
    query = kernels.rope_write(qkv, cos, sin, mine[1], heads, 4)
    near(query, lines.rope_lines(qkv, cos, sin, wanted[1], heads, 4), dtype)
    near(mine, wanted, dtype)


def gates(dtype, width):
    both = drawn(2, 3, 2 * width, dtype=dtype)
    near(kernels.silu_mul(both), lines.silu_mul_lines(both), dtype)
    same_rows(kernels.silu_mul_fp8(both), lines.quantise_lines(lines.silu_mul_lines(both)), dtype)
    both[1, 2] = 0
    same_rows(kernels.quantise_rows(both), lines.quantise_lines(both), dtype)


if __name__ == "__main__":
    for kind in (torch.float32, torch.bfloat16):
        for columns in (32, 100):
            norms(kind, columns)
            gates(kind, columns)
        # More heads than one program takes; a size that is no power of two.
        turns(kind, 8, 3, 8)
        turns(kind, 3, 3, 12)
    gates(torch.float32, 1100)
    print("equal")  # noqa: T201
