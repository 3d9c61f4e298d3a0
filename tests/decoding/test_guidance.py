"""Drawing a sample to a target: where weights say so, by the paper's formula, and not at all without weights."""

from __future__ import annotations

import math

import pytest
import torch

from vla_runtime.decoding.denoise import Denoising, denoise_exact, draw_noise, flow, step_table
from vla_runtime.decoding.guidance import Guide, guided_flow, mixed_in, soft_weights

ROWS, SIZE = 8, 3


def linear(scale=0.7):
    """A velocity that is linear in the sample, whose gradient is known."""
    return lambda sample, time: scale * sample + time[:, None, None]


def test_weights_fall_from_what_is_given_to_what_is_not_covered():
    weights = soft_weights(16, 3, 8)
    assert weights[:3].tolist() == [1.0] * 3
    assert weights[8:].tolist() == [0.0] * 8
    middle = weights[3:8]
    assert (middle.diff() < 0).all()
    share = 5 / 6
    assert float(middle[0]) == pytest.approx(share * (math.e**share - 1) / (math.e - 1), rel=1e-6)
    assert soft_weights(4, 4, 0).tolist() == [1.0] * 4
    assert soft_weights(4, 3, 2).tolist() == [1.0, 1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="within 4"):
        soft_weights(4, 5, 0)


def test_without_weights_a_flow_is_a_flow():
    start = torch.randn(2, ROWS, SIZE, generator=torch.Generator().manual_seed(0))
    guide = Guide(torch.ones(2, ROWS, SIZE), torch.zeros(ROWS))
    assert torch.equal(guided_flow(linear(), start, 10, guide), flow(linear(), start, 10))


def test_a_guided_step_is_the_papers():
    """x + dt (v + min(beta, ...) J^T e), with J of a linear velocity written down."""
    start = torch.randn(1, ROWS, SIZE, generator=torch.Generator().manual_seed(1))
    guide = Guide(torch.full((1, ROWS, SIZE), 0.4), soft_weights(ROWS, 2, 3))
    sample, steps, scale = start.clone(), 5, 0.7
    for index in range(steps):
        t = index / steps
        velocity = scale * sample + t
        error = guide.weights[:, None] * (guide.target - (sample + (1 - t) * velocity))
        jacobian = 1 + (1 - t) * scale
        weight = 5.0 if t == 0 else min(5.0, (1 - t) / t * (t**2 + (1 - t) ** 2) / (1 - t) ** 2)
        sample = sample + (velocity + weight * jacobian * error) / steps
    torch.testing.assert_close(guided_flow(linear(scale), start, steps, guide), sample)


def test_what_is_drawn_comes_nearer():
    start = torch.randn(1, ROWS, SIZE, generator=torch.Generator().manual_seed(2))
    guide = Guide(torch.full((1, ROWS, SIZE), -0.5), soft_weights(ROWS, 2, 3))
    far, near = (
        (found - guide.target).abs() for found in (flow(linear(), start, 10), guided_flow(linear(), start, 10, guide))
    )
    assert near[:, :2].mean() < 0.3 * far[:, :2].mean()
    assert torch.allclose(near[:, 5:], far[:, 5:])  # this network mixes no rows


@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 20), ("ddim", 5), ("dpm", 5)])
def test_rows_of_a_diffusion_that_are_given_are_met_and_others_left_alone(sampler, steps):
    denoising = Denoising(sampler, steps, 20)
    table = step_table(denoising)
    noise = draw_noise((1, ROWS, SIZE), denoising, torch.Generator().manual_seed(3))
    seen = []

    def predict(sample, k):
        seen.append(sample)
        return 0.9 * sample

    weights = torch.zeros(ROWS)
    weights[:2] = 1.0
    guide = Guide(torch.full((1, ROWS, SIZE), 0.25), weights)
    plain = denoise_exact(predict, noise, table)
    seen.clear()
    found = denoise_exact(
        predict, noise, table, touch=lambda sample, k: mixed_in(sample, guide, table, noise["start"], k)
    )
    assert torch.allclose(guide.mixed(found, guide.target)[:, :2], guide.target[:, :2])
    assert torch.equal(found[:, 2:], plain[:, 2:])
    # As noisy as every step expects it.
    for k, sample in enumerate(seen):
        expected = 0.25 * table.signal[k] + noise["start"][:, :2] * table.level[k]
        torch.testing.assert_close(sample[:, :2], expected)
    assert mixed_in(found, None, table, noise["start"], 0) is found
