"""Adapters: they alone learn, and a checkpoint is the same with and without them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from envs.reach import Reach
from policies.checkpoint import load_policy, save_policy
from policies.lora import Lora, add_adapters, plain_state
from policies.recipe import Recipe
from policies.samples import read_samples
from policies.training import train

RECIPE = Recipe(steps=4, batch_size=4, warmup=2, validate_every=4, save_every=4, validate_samples=4, max_committed=2)


def spread(module):
    """Adapters begin as zeros; as if they had learned something."""
    torch.manual_seed(3)
    for name, value in module.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value, std=0.2)


def test_added_in_they_say_the_same(make_policy, tmp_path):
    policy = make_policy("regression")
    names = list(policy.backbone.state_dict())
    add_adapters(policy.backbone, Lora(rank=2, alpha=4))
    spread(policy.backbone)
    plain = plain_state(policy.backbone)
    assert sorted(plain) == sorted(names)
    save_policy(tmp_path / "a", policy, {}, {})
    again = load_policy(tmp_path / "a")
    env = Reach(size=16)
    env.reset(0, 0, 0)
    observation = env.observe(("overhead", "hand"))
    adapted, merged, untouched = (
        one.begin(0).predict([observation]).actions for one in (policy, again, make_policy("regression"))
    )
    assert np.abs(adapted - merged).max() < 2e-2  # fp16 in the folder
    assert np.abs(adapted - untouched).max() > 5 * np.abs(adapted - merged).max()


def test_only_adapters_and_the_head_learn(make_policy, dataset, tmp_path):
    policy = make_policy("regression")
    samples = read_samples(dataset, 16, policy.state, policy.action)
    add_adapters(policy.backbone, Lora(rank=2))
    before = {key: value.clone() for key, value in policy.backbone.state_dict().items()}
    head = {key: value.clone() for key, value in policy.head.state_dict().items()}
    train(policy, samples, replace(RECIPE, learning_rate=1e-2), tmp_path / "a", {}, resume=False)
    changed = {key for key, value in policy.backbone.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all("lora_" in key for key in changed)
    assert not all(torch.equal(value, head[key]) for key, value in policy.head.state_dict().items())


def test_none_is_untouched(make_policy):
    policy = make_policy("regression")
    add_adapters(policy.backbone, Lora())
    assert all(value.requires_grad for value in policy.backbone.parameters())
    state = policy.backbone.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain_state(policy.backbone).items())


@pytest.mark.parametrize("values", [{"rank": -1}, {"rank": 2, "dropout": 1.0}])
def test_adapters_that_cannot_be(values):
    with pytest.raises(ValueError, match="lora"):
        Lora(**values)
