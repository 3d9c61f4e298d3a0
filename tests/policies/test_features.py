"""A frozen trunk: asked once per sample, left as it is, and the same to a head as asking every time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from policies.features import CachedFeatures
from policies.recipe import Recipe
from policies.samples import read_samples
from policies.training import Learner, train

RECIPE = Recipe(
    steps=6, batch_size=4, warmup=2, validate_every=6, save_every=2, validate_samples=4, max_committed=2,
    freeze_trunk=True, feature_copies=2,
)  # fmt: skip


@pytest.fixture
def policy(make_policy):
    return make_policy("regression")


@pytest.fixture
def samples(dataset, policy):
    return read_samples(dataset, 16, policy.state, policy.action)


def test_cached_features_give_the_loss_of_the_observations(policy, samples):
    indices = [3, 5, 8, 13, 21]
    cached = CachedFeatures(policy.backbone, samples, indices, 1, 0, lambda batch, generator: batch)
    generator = torch.Generator().manual_seed(7)
    drawn = torch.randint(len(indices), (4,), generator=generator)
    features, actions = cached.draw(4, torch.Generator().manual_seed(7))
    batch, expected = samples.batch([indices[i] for i in drawn])
    assert torch.equal(actions, expected)
    with torch.no_grad():
        whole = float(Learner(policy.backbone, policy.head)(batch, actions, None))
        frozen = float(Learner(policy.backbone, policy.head, frozen_trunk=True)(features, actions, None))
    # fp16 is what features are kept in.
    assert abs(whole - frozen) < 1e-3 * whole


def test_versions_differ_and_repeat(policy, samples):
    one, two = (CachedFeatures(policy.backbone, samples, [0, 1], 3, 5, RECIPE.augmented) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one._kept, two._kept, strict=True))
    assert not torch.equal(one._kept[0][0], one._kept[0][1])
    assert one.num_bytes() == 3 * 2 * one._kept[0][0, 0].numel() * 2


def test_the_trunk_stays_and_the_rest_learns(policy, samples, tmp_path):
    trunk = [value.clone() for value in policy.backbone.trunk_parameters()]
    decoder = [value.clone() for value in policy.backbone.decoder.parameters()]
    train(policy, samples, RECIPE, tmp_path / "a", {}, resume=False)
    assert all(torch.equal(a, b) for a, b in zip(trunk, policy.backbone.trunk_parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(decoder, policy.backbone.decoder.parameters(), strict=True))
    assert len(trunk) + len(decoder) == len(list(policy.backbone.parameters()))


def test_it_resumes_exactly(make_policy, samples, tmp_path):
    whole = train(make_policy("regression"), samples, RECIPE, tmp_path / "whole", {}, resume=False)

    def stop(step, loss):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make_policy("regression"), samples, RECIPE, tmp_path / "cut", {}, resume=False, on_step=stop)
    resumed = train(make_policy("regression"), samples, RECIPE, tmp_path / "cut", {}, resume=True)
    assert resumed.losses == whole.losses


def test_computing_activations_again_changes_nothing(make_policy, samples, tmp_path):
    recipe = replace(RECIPE, freeze_trunk=False)
    plain = train(make_policy("beast"), samples, recipe, tmp_path / "a", {}, resume=False)
    policy = make_policy("beast")
    again = train(policy, samples, replace(recipe, gradient_checkpointing=True), tmp_path / "b", {}, resume=False)
    assert again.losses == plain.losses
    assert not any("forward" in vars(layer) for layer in policy.backbone.checkpointed_layers())


def test_features_that_are_kept_are_taken_by_the_next_run_and_by_no_other(policy, samples, tmp_path, monkeypatch):
    def made(seed=5, augmentation="a"):
        return CachedFeatures(
            policy.backbone, samples, [0, 1], 2, seed, RECIPE.augmented, keep=tmp_path, augmentation=augmentation
        )

    one = made()
    assert len(list(tmp_path.iterdir())) == 1
    asked = []
    features = policy.backbone.features
    monkeypatch.setattr(policy.backbone, "features", lambda batch: asked.append(1) or features(batch))
    two = made()
    assert not asked
    assert all(torch.equal(a, b) for a, b in zip(one._kept, two._kept, strict=True))
    assert torch.equal(one.draw(4, torch.Generator().manual_seed(0))[0].tensors[0],
                       two.draw(4, torch.Generator().manual_seed(0))[0].tensors[0])  # fmt: skip
    made(seed=6)
    made(augmentation="b")
    next(iter(policy.backbone.trunk_parameters())).data.add_(1)
    made()
    assert len(list(tmp_path.iterdir())) == 4
    assert len(asked) == 3 * 2


def test_training_with_kept_features_is_training(make_policy, samples, tmp_path):
    losses = [
        train(make_policy("regression"), samples, RECIPE, tmp_path / name, {}, resume=False, features=keep).losses
        for name, keep in (("a", None), ("b", tmp_path / "kept"), ("c", tmp_path / "kept"))
    ]
    assert losses[0] == losses[1] == losses[2]
