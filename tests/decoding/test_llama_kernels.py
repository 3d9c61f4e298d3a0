"""Fused kernels of a Llama: the reference lines are transformers' own, operators are described as they behave."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb

from vla_runtime.decoding import llama_kernels

SUPPORT = Path(__file__).parent.parent / "support"


def drawn(*sizes, dtype=torch.float32, seed=0):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed)).to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_lines_are_transformers_own(dtype):
    norm = LlamaRMSNorm(24, eps=1e-5).to(dtype)
    norm.weight.copy_(drawn(24, dtype=dtype))
    hidden, added = drawn(2, 3, 24, dtype=dtype), drawn(2, 3, 24, dtype=dtype, seed=1)
    kept = hidden.clone()
    assert torch.equal(llama_kernels.add_rms_norm(kept, None, norm.weight, 1e-5), norm(hidden))
    assert torch.equal(kept, hidden)
    assert torch.equal(llama_kernels.add_rms_norm(kept, added, norm.weight, 1e-5), norm(hidden + added))
    assert torch.equal(kept, hidden + added)
    config = LlamaConfig(hidden_size=24, intermediate_size=40, num_attention_heads=2, hidden_act="silu")
    torch.manual_seed(0)
    feed = LlamaMLP(config).to(dtype)
    both = torch.cat([feed.gate_proj(hidden), feed.up_proj(hidden)], dim=-1)
    # The processor's exponentials depend on where in memory a number lies.
    torch.testing.assert_close(feed.down_proj(llama_kernels.silu_mul(both)), feed(hidden))


@pytest.mark.parametrize(("heads", "kept"), [(4, 4), (4, 2)])
def test_keys_and_values_are_turned_and_written_where_they_belong(heads, kept):
    size, rows, first = 6, 3, 2
    qkv = drawn(2, rows, (heads + 2 * kept) * size)
    angles = drawn(rows, size // 2, seed=1)
    memory = torch.full((2, 2, kept, 7, size), 9.0)
    found = llama_kernels.rope_write(qkv, angles.cos(), angles.sin(), memory, heads, first)
    query, key, value = qkv.view(2, rows, -1, size).split([heads, kept, kept], dim=2)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    whole = torch.cat([angles, angles], dim=-1)[None]
    query, key = apply_rotary_pos_emb(query, key, whole.cos(), whole.sin())
    torch.testing.assert_close(found.transpose(1, 2), query)
    torch.testing.assert_close(memory[0, :, :, first : first + rows], key)
    assert torch.equal(memory[1, :, :, first : first + rows], value)
    untouched = torch.cat([memory[:, :, :, :first], memory[:, :, :, first + rows :]], dim=3)
    assert (untouched == 9.0).all()


def test_rows_in_eight_bits_stand_for_nearly_the_same_numbers():
    values = drawn(4, 5, 64) * torch.logspace(-6, 6, 5)[:, None]
    values[0, 1] = 0
    rows, scale = llama_kernels.quantise_rows(values)
    assert (rows.dtype, rows.shape, scale.shape) == (torch.float8_e4m3fn, (20, 64), (20, 1))
    again = (rows.float() * scale).view(values.shape)
    # Three bits of mantissa, or the smallest step of the row.
    step = values.abs().amax(-1, keepdim=True) * 2**-9 / 448
    assert ((again - values).abs() <= values.abs() / 16 + step).all()
    # The largest of a row is met exactly but for its scale's own rounding.
    torch.testing.assert_close(again.abs().amax(-1), values.abs().amax(-1))


EXAMPLES = {
    "add_rms_norm": lambda: (drawn(2, 3, 16), drawn(2, 3, 16, seed=1), drawn(16), 1e-6),
    "add_rms_norm_fp8": lambda: (drawn(2, 3, 16), None, drawn(16), 1e-6),
    "rope_write": lambda: (drawn(2, 3, 32), drawn(3, 2), drawn(3, 2), torch.zeros(2, 2, 2, 5, 4), 4, 1),
    "silu_mul": lambda: (drawn(2, 3, 16),),
    "silu_mul_fp8": lambda: (drawn(2, 3, 16),),
    "quantise_rows": lambda: (drawn(2, 3, 16),),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_operators_change_and_give_what_they_say(name):
    """What they write to, and the shapes that captures and counts of launches are made with."""
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(getattr(llama_kernels, name), EXAMPLES[name](), test_utils=checks)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EXAMPLES)
def test_kernels_are_their_reference_lines_on_a_gpu(name, dtype):
    def example():
        cast = [one.to(dtype) if isinstance(one, torch.Tensor) else one for one in EXAMPLES[name]()]
        if name == "rope_write":
            cast[1:3] = [one.float() for one in cast[1:3]]
        return cast

    here, there = example(), [one.cuda() if isinstance(one, torch.Tensor) else one for one in example()]
    operator = getattr(llama_kernels, name)
    wanted, found = operator(*here), operator(*there)
    pairs = list(zip(here, there, strict=True))
    if isinstance(wanted, tuple):
        pairs.append((wanted[0].float() * wanted[1], found[0].float() * found[1]))
    else:
        pairs.append((wanted, found))
    tolerance = 0.15 if name.endswith(("fp8", "rows")) else 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in pairs:
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(other.cpu().float(), one.float(), rtol=tolerance, atol=tolerance)
