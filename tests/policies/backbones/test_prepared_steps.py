"""Prepared steps against the decoder's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from policies.backbones.decoder import ActionDecoder
from policies.backbones.prepared_steps import PreparedSteps
from policies.lora import Lora, add_adapters
from policies.precision import set_precision
from vla_runtime.decoding.feature_cache import CachedSteps, FeatureCache

WIDTH, DEPTH, SLOTS, ROWS, STEPS = 32, 2, 10, 6, 5


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.decoder = ActionDecoder(WIDTH, DEPTH, 4)
        self.eval().requires_grad_(False)


def drawn(*shape, seed=1, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def difference(decoder, steps, batch=1, seed=3, dtype=torch.float32):
    """The largest over all steps to what the decoder says with the same token."""
    context = decoder.remember(drawn(batch, 7, WIDTH, seed=seed, dtype=dtype))
    cond = drawn(STEPS, WIDTH, seed=2, dtype=dtype)
    steps.begin(context)
    found = []
    for k in range(STEPS):
        slots = drawn(batch, SLOTS, WIDTH, seed=10 + k, dtype=dtype)
        wanted = decoder.step(context, slots, None, cond[k].expand(batch, -1))[:, -ROWS:]
        got = steps.step(k, slots, ROWS)
        assert got.shape == wanted.shape
        found.append(float((got - wanted).abs().max()))
    return max(found)


def test_every_step_says_what_the_decoder_says_with_its_token():
    decoder = Backbone().decoder
    steps = PreparedSteps(decoder, drawn(STEPS, WIDTH, seed=2))
    for batch, seed in ((1, 3), (3, 4), (1, 5)):  # buffers of another batch must not be seen
        assert difference(decoder, steps, batch, seed) < 1e-5


def silently(decoder):
    """As torch's fused optimisers do: no tensor counts it."""
    for parameter in decoder.parameters():
        parameter.data.mul_(1.1)


def loaded(decoder):
    decoder.load_state_dict({name: value.roll(1, 0) for name, value in decoder.state_dict().items()})


@pytest.mark.parametrize("change", [silently, loaded])
def test_weights_that_changed_are_laid_out_anew_and_otherwise_shared(change):
    decoder, cond = Backbone().decoder, drawn(STEPS, WIDTH, seed=2)
    one, other = PreparedSteps(decoder, cond), PreparedSteps(decoder, cond)
    assert one._branches[2].__self__ is other._branches[2].__self__
    change(decoder)
    assert difference(decoder, PreparedSteps(decoder, cond)) < 1e-5


def test_adapters_count():
    backbone = Backbone()
    add_adapters(backbone, Lora(rank=2))
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "lora" in name:
                parameter.add_(0.2)
    # They make what is said large, and so what rounding does.
    with torch.no_grad():
        assert difference(backbone.decoder, PreparedSteps(backbone.decoder, drawn(STEPS, WIDTH, seed=2))) < 1e-3


def test_a_cache_has_the_same_say():
    """Reused where its plan says so, summed where nothing is computed: as the decoder's own cached step."""
    backbone, cond = Backbone(), drawn(STEPS, WIDTH, seed=2)
    decoder = backbone.decoder
    plan = [set(range(3 * DEPTH)), {1, 5}, set(), {0, 2, 3}, set()]
    steps = PreparedSteps(decoder, cond, FeatureCache(plan, 3 * DEPTH))
    plain = CachedSteps(decoder, FeatureCache(plan, 3 * DEPTH))
    context = decoder.remember(drawn(1, 7, WIDTH))
    steps.begin(context)
    plain.begin()
    for k in range(STEPS):
        slots = drawn(1, SLOTS, WIDTH, seed=10 + k)
        wanted = plain.step(context, slots, None, cond[k][None])[:, -ROWS:]
        torch.testing.assert_close(steps.step(k, slots, ROWS), wanted, rtol=0, atol=1e-5)
    assert steps.cache.evaluations == plain.cache.evaluations == 3 * DEPTH + 5


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_in_fewer_bits(precision):
    backbone = Backbone()
    set_precision(backbone, [], "cpu", precision)
    steps = PreparedSteps(backbone.decoder, drawn(STEPS, WIDTH, seed=2, dtype=torch.bfloat16))
    assert difference(backbone.decoder, steps, dtype=torch.bfloat16) < 0.1
