"""What a recording says, and the schedules made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies.calibration import METHODS, record, schedule
from policies.heads.prepared import PreparedDecoder
from vla_runtime.decoding.bac import Schedule


@pytest.fixture
def policy(make_policy):
    return make_policy("diffusion", denoising={"sampler": "ddpm", "steps": 12, "train_steps": 12})


@pytest.fixture
def observations(dataset):
    return [dataset.seen(index, (0,)) for index in (0, 5)]


def test_a_recording_repeats_itself_and_depends_on_what_it_saw(policy, observations):
    one, other = record(policy, observations), record(policy, observations)
    assert one.calibration == other.calibration
    assert one.calibration != record(policy, observations[:1]).calibration
    assert one.calibration != record(policy, observations, seed=1).calibration
    assert list(one.similarity) == list(policy.backbone.blocks())
    for block, matrix in one.similarity.items():
        np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-9)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-9)
        assert (matrix == other.similarity[block]).all()
        assert one.reuse_error[block] > 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_schedule_that_runs(policy, observations, method):
    found = schedule(record(policy, observations), method, 4, bubble=2 if method == "bac" else 0, force_last=False)
    assert isinstance(found, Schedule)
    sizes = {len(steps) for steps in found.blocks.values()}
    assert min(sizes) == 4
    assert sizes == {4} or method == "bac"
    decoder = PreparedDecoder(policy.head, policy.backbone, found)
    context = policy.backbone.encode(policy.batch(observations[:1]))
    noise = policy.head.draw(1, torch.Generator().manual_seed(0))
    decoder(context, None, noise)
    assert decoder.cache.evaluations == found.evaluations()


def test_the_last_step_is_computed_unless_told_otherwise(policy, observations):
    found = schedule(record(policy, observations), "blockwise", 2)
    assert all(steps[-1] == 11 for steps in found.blocks.values())


def test_what_cannot_be_is_named(policy, make_policy, observations):
    recording = record(policy, observations[:1])
    for arguments, message in (
        (("tea", 4), "calibrate.method"),
        (("bac", 13), "expected 1 to 12"),
        (("bac", 4, 7), "expected 0 to 6"),
        (("uniform", 4, 1), "expected 0 with method=uniform"),
    ):
        with pytest.raises(ValueError, match=message):
            schedule(recording, *arguments)
    with pytest.raises(ValueError, match="expected observations"):
        record(policy, [])
    with pytest.raises(ValueError, match="expected a diffusion or flow head, got beast"):
        record(make_policy("beast"), observations)
