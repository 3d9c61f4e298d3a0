"""Weights in fewer bits: what is cast, what keeps its precision, and products in eight bits."""

from __future__ import annotations

import florences
import prismatics
import pytest
import torch
from torch import nn
from transformers import PI0Config, PI0ForConditionalGeneration

from policies import fp8, precision
from policies.heads.diffusion import Diffusion
from policies.precision import precision_of, require_speed, set_precision


def pi0():
    text = {
        "model_type": "gemma", "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 40,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "patch_size": 14, "image_size": 28, "vision_use_head": False,
    }  # fmt: skip
    vlm = {
        "model_type": "paligemma", "text_config": text, "vision_config": vision, "projection_dim": 32,
        "image_token_id": 39,
    }  # fmt: skip
    return PI0ForConditionalGeneration(PI0Config(vlm_config=vlm, dit_config=text, max_state_dim=4, max_action_dim=3))


MADE = {
    "prismatic": (prismatics.tiny, 2),
    "florence2": (florences.made, 0),
    "pi0": (pi0, 4),
    "diffusion": (lambda: Diffusion(4, 2, 16, 0), 0),
}


def constants(module):
    return {
        f"{name}.{leaf}": owner.get_buffer(leaf)
        for name, owner in module.named_modules()
        for leaf in sorted(owner._non_persistent_buffers_set)
        if owner.get_buffer(leaf).is_floating_point()
    }


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_constants_keep_the_precision_they_were_made_in(name, precision):
    """Rotary frequencies in bf16 would turn a far place by another angle, a noise schedule begin elsewhere."""
    make, frequencies = MADE[name]
    torch.manual_seed(0)
    module = make()
    before = {name: value.clone() for name, value in constants(module).items()}
    set_precision(module, [], "cpu", precision)
    after = constants(module)
    assert len(after) > 0
    assert sum("inv_freq" in name for name in after) == frequencies
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {value.dtype for value in after.values()} == {torch.float32}
    whole = {value.dtype for value in module.parameters() if value.is_floating_point()}
    assert whole == {torch.bfloat16}
    if precision == "bf16":
        set_precision(module, [], "cpu", "fp32")
    assert all(torch.equal(constants(module)[name], before[name]) for name in before)


@torch.no_grad()
@pytest.mark.parametrize("support", [prismatics, florences])
def test_a_backbone_in_half_precision_runs_and_is_near(support):
    backbone = prismatics.tiny() if support is prismatics else florences.made()
    sample = support.batch("lift")
    wanted, _ = backbone.features(sample)
    set_precision(backbone, [], "cpu", "bf16")
    found, _ = backbone.features(sample)
    assert found.dtype == torch.bfloat16
    assert 0 < (found.float() - wanted).norm() < 0.05 * wanted.norm()


def linear(inner=64, outer=48, bias=True, dtype=torch.float32):
    torch.manual_seed(1)
    return nn.Linear(inner, outer, bias=bias).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_in_eight_bits_is_that_of_the_numbers_they_stand_for(bias, dtype):
    plain = linear(bias=bias, dtype=dtype)
    # Rows of very different size, as of a weight with outliers: one scale for all would lose most of them.
    plain.weight.mul_(torch.logspace(-4, 1, 48)[:, None])
    eight = fp8.Fp8Linear(plain)
    assert (eight.weight.dtype, eight.scale.shape) == (torch.float8_e4m3fn, (48, 1))
    values = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    values[0, 1] *= 1000
    found, wanted = eight(values), plain(values)
    assert (found.dtype, found.shape) == (dtype, wanted.shape)
    # Of what each row and each output are worth: rounding of three bits of mantissa, averaged over 64 products.
    sizes = values.float().norm(dim=-1, keepdim=True) * plain.weight.float().norm(dim=1)
    room = 0.02 * sizes + (0.01 * wanted.float().abs() if dtype == torch.bfloat16 else 0)
    assert ((found.float() - wanted.float()).abs() < room).all()
    assert not torch.equal(found, wanted)
    stands_for = eight.weight.float() * eight.scale
    assert ((stands_for - plain.weight.float()).abs() <= plain.weight.float().abs().amax(1, keepdim=True) / 16).all()
    assert not any(value.requires_grad for value in eight.parameters())


def test_what_a_gpu_cannot_multiply_and_what_is_named_stays_as_it_was():
    backbone = prismatics.tiny()
    fp8.quantise(backbone, lambda name: name.startswith("vision.") or name.endswith("lm_head"))
    kinds = {name: type(one) for name, one in backbone.named_modules() if isinstance(one, nn.Linear)}
    assert {kind for name, kind in kinds.items() if name.startswith(("vision.", "language_model.lm_head"))} == {
        nn.Linear
    }
    # A state of three numbers is no multiple of 16.
    assert kinds["proprio.fc1"] is nn.Linear
    assert kinds["proprio.fc2"] is kinds["language_model.model.layers.0.mlp.down_proj"] is fp8.Fp8Linear
    assert precision_of(backbone) == "fp8"
    with pytest.raises(ValueError, match="sizes are multiples of 16, got 48 x 60; leave it in bf16"):
        fp8.Fp8Linear(linear(60, 48))


def test_a_precision_that_saves_memory_only_is_refused_where_speed_is_asked_for():
    for name in ("fp32", "bf16", "fp8"):
        require_speed(name)
    with pytest.raises(ValueError, match=r"int8, which saves memory only.* take decode\.precision=bf16"):
        require_speed("int8")
    with pytest.raises(ValueError, match="fp8: expected a GPU that multiplies fp8, got cpu; take bf16"):
        set_precision(prismatics.tiny(), [], "cpu", "fp8")


@pytest.mark.gpu
def test_a_gpu_multiplies_in_eight_bits():
    if not fp8.multiplies("cuda"):
        pytest.skip("needs a GPU that multiplies fp8")
    plain = linear(4096, 11008, dtype=torch.bfloat16)
    eight = fp8.Fp8Linear(plain)
    values = torch.randn(56, 4096, generator=torch.Generator().manual_seed(2)).bfloat16()
    wanted = eight(values).float()
    found = eight.cuda()(values.cuda()).cpu().float()
    assert (found - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("multiplies", [False, True])
def test_bf16_on_a_processor_that_does_not_multiply_it_is_announced(monkeypatch, caplog, multiplies):
    monkeypatch.setattr(precision, "_multiplies_bf16", lambda: multiplies)
    for name in ("fp32", "bf16"):
        precision.set_precision(torch.nn.Linear(2, 2), [], "cpu", name)
    assert ["decode.precision=bf16: expected a processor with AMX" in line for line in caplog.messages] == (
        [] if multiplies else [True]
    )
