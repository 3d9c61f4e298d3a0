"""Caching in other people's transformers: off is theirs, on follows the plan, and nothing stays behind."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from transformers import PI0Config, PI0ForConditionalGeneration

from policies.adapted import Adapted, diffusers_blocks
from policies.pi0 import Pi0
from vla_runtime.decoding.feature_cache import FeatureCache

STEPS = 6


@pytest.fixture(scope="module")
def pi0():
    torch.manual_seed(0)
    text = {
        "model_type": "gemma", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 40,
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
    expert = {**text, "hidden_size": 24, "intermediate_size": 48}
    config = PI0Config(vlm_config=vlm, dit_config=expert, chunk_size=5, max_state_dim=4, max_action_dim=3)
    return Pi0(PI0ForConditionalGeneration(config).requires_grad_(False))


def observation(seed=1):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.cat([torch.full((2, 8), 39), torch.randint(3, 30, (2, 4), generator=draw)], dim=1)
    keep = torch.ones(2, 12, dtype=torch.long)
    keep[1, -1] = 0
    return {
        "state_BS": torch.randn(2, 4, generator=draw), "ids_BN": ids, "keep_BN": keep,
        "pixels_BC3HW": torch.randn(2, 2, 3, 28, 28, generator=draw),
        "cameras_BC": torch.ones(2, 2, dtype=torch.bool),
    }  # fmt: skip


def start():
    return torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2))


def adapted(pi0, plan):
    branches, _ = pi0.branches()
    return Adapted(branches, FeatureCache(plan, len(branches)))


EVERY = frozenset(range(4))


def test_pi0_is_sampled_as_transformers_samples_it(pi0):
    seen = observation()
    wanted = pi0.model.sample_actions(
        state=seen["state_BS"], input_ids=seen["ids_BN"], pixel_values=seen["pixels_BC3HW"], noise=start(),
        attention_mask=seen["keep_BN"], pixel_attention_mask=seen["cameras_BC"], num_steps=STEPS,
    )  # fmt: skip
    context = pi0.encode(seen)
    torch.testing.assert_close(pi0.decode(context, start(), STEPS), wanted, rtol=0, atol=1e-5)
    # The prefix is as it was: a second decode is the same.
    assert torch.equal(pi0.decode(context, start(), STEPS), pi0.decode(context, start(), STEPS))


def test_a_plan_that_computes_everything_changes_no_bit(pi0):
    context = pi0.encode(observation())
    with adapted(pi0, [EVERY] * STEPS) as cached:
        found = pi0.decode(context, start(), STEPS, cached)
    assert cached.cache.evaluations == 4 * STEPS
    assert torch.equal(found, pi0.decode(context, start(), STEPS))


def test_a_plan_is_followed_and_leaves_nothing_behind(pi0):
    context, plan = pi0.encode(observation()), [EVERY, {1}, set(), {0, 3}, set(), EVERY]
    plain = pi0.decode(context, start(), STEPS)
    layer = pi0.model.model.dit.layers[0]
    calls = []
    watch = layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    with adapted(pi0, plan) as cached:
        first = pi0.decode(context, start(), STEPS, cached)
        again = pi0.decode(context, start(), STEPS, cached)
        assert cached.cache.evaluations == 2 * sum(len(one) for one in plan)
        with pytest.raises(RuntimeError, match="not adapted already"):
            cached.__enter__()
    watch.remove()
    assert torch.equal(first, again)
    assert not torch.allclose(first, plain, atol=1e-6)
    assert "forward" not in layer.self_attn.__dict__
    assert "forward" not in layer.input_layernorm.__dict__
    assert torch.equal(pi0.decode(context, start(), STEPS), plain)


def test_a_reused_branch_is_its_last_output_on_the_stream_of_now(pi0):
    """One layer's attention reused once, by hand."""
    context = pi0.encode(observation())
    layer = pi0.model.model.dit.layers[1].self_attn
    kept, original, steps = [], layer.forward, []

    def by_hand(*arguments, **options):
        steps.append(1)
        if len(steps) == 2:
            return kept[0], None
        found = original(*arguments, **options)
        kept[:] = [found[0]]
        return found

    layer.forward = by_hand
    wanted = pi0.decode(context, start(), 3)
    del layer.forward
    with adapted(pi0, [EVERY, EVERY - {2}, EVERY]) as cached:
        found = pi0.decode(context, start(), 3, cached)
    assert torch.equal(found, wanted)


def test_gated_branches_of_diffusers_are_kept_before_their_gate():
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=2, num_layers=2, sample_size=4, patch_size=2,
        num_embeds_ada_norm=10,
    ).eval().requires_grad_(False)  # fmt: skip
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape))
    branches, names = diffusers_blocks(model.transformer_blocks)
    assert [str(name) for name in names] == ["0.self", "0.feed", "1.self", "1.feed"]
    sample, label = torch.randn(1, 2, 4, 4), torch.tensor([3])

    def run(steps, cached=None):
        if cached is not None:
            cached.begin()
        found = []
        for step in steps:
            if cached is not None:
                cached.advance()
            found.append(model(sample, timestep=torch.tensor([step]), class_labels=label).sample)
        return found

    with Adapted(branches, FeatureCache([EVERY, EVERY], 4)) as cached:
        assert all(torch.equal(*pair) for pair in zip(run((9, 2), cached), run((9, 2)), strict=True))
    # By hand: the attention of the first block said the same in both steps, the gate of the second applies.
    block, kept = model.transformer_blocks[0].attn1, []
    hook = block.register_forward_hook(lambda _, __, out: kept.append(out) if not kept else kept[0])
    _, wanted = run((9, 2))
    hook.remove()
    with Adapted(branches, FeatureCache([EVERY, EVERY - {0}], 4)) as cached:
        _, found = run((9, 2), cached)
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, run((9, 2))[1], atol=1e-6)


def test_another_number_of_branches_is_refused(pi0):
    with pytest.raises(ValueError, match="expected one for 4 branches, got one for 3"):
        Adapted(pi0.branches()[0], FeatureCache([{0, 1, 2}], 3))


def test_plain_norms_of_diffusers_are_skipped_with_their_branches(monkeypatch):
    torch.manual_seed(0)
    block = BasicTransformerBlock(16, 2, 8, cross_attention_dim=12).eval().requires_grad_(False)
    branches, names = diffusers_blocks([block])
    assert [name.kind for name in names] == ["self", "cross", "feed"]
    first, second, memory = torch.randn(1, 4, 16), torch.randn(1, 4, 16), torch.randn(1, 5, 12)
    added, normed, norm = block(first, encoder_hidden_states=memory) - first, [], torch.nn.functional.layer_norm
    monkeypatch.setattr(torch.nn.functional, "layer_norm", lambda *given: (normed.append(1), norm(*given))[1])
    with Adapted(branches, FeatureCache([{0, 1, 2}, set()], 3)) as adapted:
        adapted.begin()
        for hidden in (first, second):
            adapted.advance()
            found = block(hidden, encoder_hidden_states=memory)
            torch.testing.assert_close(found, hidden + added, rtol=0, atol=1e-5)
    assert len(normed) == 3
