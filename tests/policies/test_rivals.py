"""What is measured beside the shared decoder computes what it computes."""

from __future__ import annotations

import pytest
import torch

from policies.rivals import DiffusersCache, TorchDecoder


@pytest.fixture
def policy(make_policy):
    return make_policy("diffusion", denoising={"sampler": "ddpm", "steps": 12, "train_steps": 12})


def decoded(policy, dataset, rival):
    batch = policy.batch([dataset.seen(0, (0,))])
    noise = policy.head.draw(1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = policy.head.decode(policy.backbone, policy.backbone.encode(batch), None, noise)
        if hasattr(rival, "begin"):
            rival.begin()
        found = policy.head.decode(rival, rival.remember(*rival.features(batch)), None, noise)
    return found, wanted


def test_torchs_own_decoder_with_our_weights_gives_our_chunks(policy, dataset):
    found, wanted = decoded(policy, dataset, TorchDecoder(policy.backbone))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_diffusers_caches_that_may_skip_nothing_give_our_chunks(policy, dataset):
    for cache in (
        DiffusersCache(policy.backbone, "first_block", threshold=0.0),
        DiffusersCache(policy.backbone, "taylorseer", interval=1),
    ):
        found, wanted = decoded(policy, dataset, cache)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_diffusers_caches_skip_and_begin_anew_with_each_decode(policy, dataset):
    for cache in (
        DiffusersCache(policy.backbone, "first_block", threshold=10.0),
        DiffusersCache(policy.backbone, "taylorseer", interval=4),
    ):
        first, wanted = decoded(policy, dataset, cache)
        assert not torch.allclose(first, wanted, atol=1e-6)
        again, _ = decoded(policy, dataset, cache)
        assert torch.equal(first, again)
    with pytest.raises(ValueError, match="expected first_block or taylorseer"):
        DiffusersCache(policy.backbone, "tea")
