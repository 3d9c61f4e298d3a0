"""Training repeats itself, resumes exactly, and holds out whole episodes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from policies.checkpoint import load_policy
from policies.recipe import Recipe
from policies.samples import augmented, drawn_committed, read_samples
from policies.training import train

RECIPE = Recipe(steps=12, batch_size=4, warmup=2, validate_every=6, save_every=4, validate_samples=4, max_committed=2)


@pytest.fixture
def samples(dataset, make_policy):
    policy = make_policy()
    return read_samples(dataset, 16, policy.state, policy.action)


def test_samples_are_the_data_sets(dataset, samples, make_policy):
    policy = make_policy()
    assert len(samples) == len(dataset)
    for index in (0, len(dataset) - 1):
        observation, chunk = dataset[index]
        batch, actions = samples.batch([index])
        np.testing.assert_array_equal(actions[0], policy.action.forward(chunk.actions))
        np.testing.assert_array_equal(batch.images["hand"][0], observation.images["hand"])
        assert batch.instructions == (observation.instruction,)
    kept, held = samples.split(0.25, 0)
    assert not set(samples.episode_F[kept]) & set(samples.episode_F[held])
    assert len(kept) + len(held) == len(samples)


def test_an_episode_that_was_held_out_is_so_in_a_joined_set(samples):
    """What a trunk was never shown must not be shown to the heads that are judged on it."""
    _, held = samples.split(0.5, 3)
    names = {samples.episodes[episode] for episode in samples.episode_F[held]}
    more = replace(
        samples,
        images={name: values.repeat(2, 1, 1, 1) for name, values in samples.images.items()},
        states_FS=samples.states_FS.repeat(2, 1),
        chunks_FTA=samples.chunks_FTA.repeat(2, 1, 1),
        episode_F=np.concatenate([samples.episode_F + 2, samples.episode_F % 2]),
        episodes=("another", "one more", *samples.episodes),
        instructions=samples.instructions * 2,
    )
    _, again = more.split(0.5, 3)
    joined = {more.episodes[episode] for episode in more.episode_F[again]}
    assert joined & set(samples.episodes) == names
    assert samples.split(0.5, 3)[1].tolist() == held.tolist()


@pytest.mark.parametrize("what", ["state", "action"])
def test_data_that_is_not_finite_is_refused(dataset, make_policy, what):
    policy, row = make_policy(), dataset.row(3)
    dataset._columns["observation.state" if what == "state" else "action"][row] = np.nan
    with pytest.raises(ValueError, match=f"expected a finite {what}, got NaN or infinity"):
        read_samples(dataset, 16, policy.state, policy.action)


@pytest.mark.parametrize("head", ["beast", "diffusion"])
def test_killed_and_resumed_equals_uninterrupted(samples, make_policy, tmp_path, head):
    options = {"denoising": {"sampler": "ddim", "steps": 2, "train_steps": 10}} if head == "diffusion" else {}
    whole = train(make_policy(head, **options), samples, RECIPE, tmp_path / "whole", options, resume=False)

    def stop(step, loss):
        if step == 9:
            raise KeyboardInterrupt

    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        train(make_policy(head, **options), samples, RECIPE, folder, options, resume=False, on_step=stop)
    resumed = train(make_policy(head, **options), samples, RECIPE, folder, options, resume=True)
    assert resumed.losses == whole.losses
    assert resumed.validations == whole.validations
    one, two = (load_policy(path).head.state_dict() for path in (tmp_path / "whole", folder))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_it_learns(samples, make_policy, tmp_path):
    recipe = replace(RECIPE, steps=60, batch_size=16, learning_rate=3e-3, validate_every=60, augment=False)
    progress = train(make_policy("regression"), samples, recipe, tmp_path / "a", {}, resume=False)
    assert np.mean(progress.losses[-5:]) < 0.6 * np.mean(progress.losses[:5])


def test_resume_without_a_state_is_an_error(samples, make_policy, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        train(make_policy(), samples, RECIPE, tmp_path / "none", {}, resume=True)


def test_augmentation_and_prefixes_follow_their_generator(samples):
    batch, actions = samples.batch([0, 1, 2, 3])
    one, two = (augmented(batch, torch.Generator().manual_seed(4), 0.1, 0.5) for _ in range(2))
    assert torch.equal(one.images["hand"], two.images["hand"])
    assert torch.equal(one.state_BS, two.state_BS)
    assert one.images["hand"].shape == batch.images["hand"].shape
    counts = torch.cat([drawn_committed(actions, 5, torch.Generator().manual_seed(s)).counts_B for s in range(200)])
    assert set(counts.tolist()) == set(range(6))


@pytest.mark.parametrize("values", [{"steps": 0}, {"batch_size": 0}, {"ema": 1.0}])
def test_recipes_that_cannot_be(values):
    with pytest.raises(ValueError, match="expected"):
        Recipe(**values)
