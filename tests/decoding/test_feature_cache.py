"""Reused branches against recomputed ones: what a plan computes, what it serves, and that nothing survives a reset."""

from __future__ import annotations

import pytest
import torch

from policies.backbones.decoder import ActionDecoder
from vla_runtime.decoding.bac import blocks_of
from vla_runtime.decoding.feature_cache import CachedSteps, FeatureCache

BLOCKS = 6
ALL = frozenset(range(BLOCKS))


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return ActionDecoder(32, 2, 4).eval().requires_grad_(False)


def inputs(steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    memory = torch.randn(1, 5, 32, generator=generator)
    # Like denoising: what goes in drifts from step to step.
    drift = torch.randn(1, 7, 32, generator=generator)
    slots = [torch.randn(1, 7, 32, generator=generator) * 0.1 + drift * k / steps for k in range(steps)]
    times = [torch.randn(1, 32, generator=generator) for _ in range(steps)]
    return memory, slots, times


def decoded(decoder, step, steps, seed=0):
    memory, slots, times = inputs(steps, seed)
    context = decoder.remember(memory)
    return [step(context, one, None, time) for one, time in zip(slots, times, strict=True)]


def test_computing_everything_at_every_step_is_bit_equal_to_no_cache(decoder):
    cached = CachedSteps(decoder, FeatureCache([ALL] * 5, BLOCKS))
    for one, other in zip(decoded(decoder, decoder.step, 5), decoded(decoder, cached.step, 5), strict=True):
        assert torch.equal(one, other)


def by_hand(decoder, plan, steps):
    """The algorithm as it is told: per layer and branch, computed or as it was kept (methods 1b)."""
    memory, slots, times = inputs(steps)
    context = decoder.remember(memory)
    kept, answers = {}, []
    for k in range(steps):
        x = slots[k]
        for index, layer in enumerate(decoder.layers):
            key, value = layer.cross_attention.keys_values(times[k][:, None])
            old = context.memory[index]
            seen = (torch.cat([old[0], key], 2), torch.cat([old[1], value], 2))
            for kind in range(3):
                block = 3 * index + kind
                if block in plan[k]:
                    if kind == 0:
                        normed = layer.self_norm(x)
                        kept[block] = layer.self_attention(normed, layer.self_attention.keys_values(normed))
                    elif kind == 1:
                        kept[block] = layer.cross_attention(layer.cross_norm(x), seen)
                    else:
                        kept[block] = layer.feed_forward(layer.feed_norm(x))
                x = x + kept[block]
        answers.append(decoder.norm(x))
    return answers


PLANS = [
    [ALL, set(), set(), ALL, set()],
    [ALL, {0, 3}, {5}, set(), {1, 2, 4}],
    [ALL, {2}, set(), {2, 5}, set()],
]


@pytest.mark.parametrize("plan", PLANS)
def test_branches_are_reused_as_the_algorithm_says(decoder, plan):
    cached = CachedSteps(decoder, FeatureCache(plan, BLOCKS))
    found, wanted = decoded(decoder, cached.step, 5), by_hand(decoder, plan, 5)
    for k in range(5):
        if plan[k]:
            assert torch.equal(found[k], wanted[k])
        else:  # the kept outputs are summed before they are added
            torch.testing.assert_close(found[k], wanted[k], rtol=0, atol=1e-6)


@pytest.mark.parametrize("plan", PLANS)
def test_only_what_the_plan_says_is_computed(decoder, plan):
    counts = [0] * BLOCKS

    def count(block):
        counts[block] += 1

    for index, layer in enumerate(decoder.layers):
        for kind, module in enumerate((layer.self_attention, layer.cross_attention, layer.feed_forward)):
            module.register_forward_hook(lambda *_, block=3 * index + kind: count(block))
    cache = FeatureCache(plan, BLOCKS)
    decoded(decoder, CachedSteps(decoder, cache).step, 5)
    assert counts == [sum(block in step for step in plan) for block in range(BLOCKS)]
    assert cache.evaluations == sum(map(len, plan))


def test_nothing_survives_a_reset(decoder):
    cached = CachedSteps(decoder, FeatureCache(PLANS[1], BLOCKS))
    first = decoded(decoder, cached.step, 5, seed=1)
    cached.begin()
    decoded(decoder, cached.step, 5, seed=2)
    cached.begin()
    again = decoded(decoder, cached.step, 5, seed=1)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_buffers_stay_where_they_are(decoder):
    cache = FeatureCache(PLANS[1], BLOCKS)
    cached = CachedSteps(decoder, cache)
    decoded(decoder, cached.step, 5)
    places = [kept.data_ptr() for kept in [*cache._kept, cache.total()]]
    cached.begin()
    decoded(decoder, cached.step, 5, seed=1)
    assert [kept.data_ptr() for kept in [*cache._kept, cache.total()]] == places


def test_a_plan_that_cannot_be_is_refused(decoder):
    with pytest.raises(ValueError, match="expected a first step that computes all"):
        FeatureCache([{0}, ALL], BLOCKS)
    with pytest.raises(ValueError, match="expected branches 0 to 5"):
        FeatureCache([ALL, {6}], BLOCKS)
    with pytest.raises(RuntimeError, match="expected 4 steps"):
        decoded(decoder, CachedSteps(decoder, FeatureCache([ALL] * 4, BLOCKS)).step, 5)


def test_blocks_are_named_in_the_order_in_which_they_run(decoder):
    assert decoder.blocks() == blocks_of(2)
    assert [str(block) for block in decoder.blocks()][:4] == ["0.self", "0.cross", "0.feed", "1.self"]
