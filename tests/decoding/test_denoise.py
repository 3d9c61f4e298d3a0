"""Sampling is diffusers' own, with its noise given from outside, and stays where a network was trained."""

from __future__ import annotations

import pytest
import torch

from vla_runtime.decoding.denoise import (
    Denoising,
    denoise,
    denoise_exact,
    draw_noise,
    flow,
    noise_schedule,
    step_table,
)

SHAPE = (3, 8, 2)


def oracle(target, alphas, error=0.0, seen=None, predicts="noise"):
    """Answers the noise that separates a sample from `target`, or the velocity, with a constant error."""

    def predict(sample, timestep):
        if seen is not None:
            seen.append(float(sample.abs().max()))
        kept = alphas[timestep].to(sample)[:, None, None]
        noise = (sample - kept.sqrt() * target) / (1 - kept).sqrt()
        return (noise if predicts == "noise" else kept.sqrt() * noise - (1 - kept).sqrt() * target) + error

    return predict


def target():
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(5)) * 1.6 - 0.8


PREDICTS = pytest.mark.parametrize("predicts", ["noise", "velocity"])


@PREDICTS
@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 20), ("ddim", 20), ("ddim", 5), ("dpm", 10)])
def test_a_network_that_knows_the_answer_is_led_there(sampler, steps, predicts):
    denoising = Denoising(sampler, steps, 20, predicts)
    noise = draw_noise(SHAPE, denoising, torch.Generator().manual_seed(1))
    knows = oracle(target(), noise_schedule(denoising).alphas_cumprod, predicts=predicts)
    found = denoise(knows, noise, denoising)
    assert (found - target()).abs().max() < 1e-3


@PREDICTS
def test_ddpm_steps_are_diffusers_with_the_noise_it_drew(predicts):
    """Its scheduler draws from a generator in the same order as ours is given."""
    denoising = Denoising("ddpm", 12, 12, predicts)
    schedule = noise_schedule(denoising)
    predict = oracle(target(), schedule.alphas_cumprod, error=0.3, predicts=predicts)
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    generator, sample = torch.Generator().manual_seed(3), start
    for timestep in schedule.timesteps:
        answer = predict(sample, timestep.expand(3))
        sample = schedule.step(answer, timestep, sample, generator=generator).prev_sample
    drawn = torch.Generator().manual_seed(3)
    steps = torch.stack([torch.randn(SHAPE, generator=drawn) for _ in range(11)] + [torch.zeros(SHAPE)])
    found = denoise(predict, {"start": start, "steps": steps}, denoising)
    assert (found - sample).abs().max() < 1e-5


def test_steps_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="take fewer"):
        noise_schedule(Denoising("dpm", 20, 20))


def test_an_answer_nobody_knows_is_refused():
    with pytest.raises(ValueError, match=r"predicts: expected one of \('noise', 'velocity'\), got 'score'"):
        Denoising(predicts="score")


@PREDICTS
@pytest.mark.parametrize(
    ("sampler", "steps", "train_steps"),
    [("ddpm", 100, 100), ("ddpm", 7, 7), ("ddim", 100, 100), ("ddim", 10, 100), ("ddim", 1, 20), ("dpm", 10, 100),
     ("dpm", 2, 100), ("dpm", 1, 100)],
)  # fmt: skip
def test_precomputed_steps_are_diffusers_own(sampler, steps, train_steps, predicts):
    denoising = Denoising(sampler, steps, train_steps, predicts)
    table, alphas = step_table(denoising), noise_schedule(denoising).alphas_cumprod
    assert table.timesteps == tuple(int(one) for one in noise_schedule(denoising).timesteps)
    noise = draw_noise(SHAPE, denoising, torch.Generator().manual_seed(7))

    def wavering(sample, timestep):
        knows = oracle(target(), alphas, predicts=predicts)
        return knows(sample, timestep) + 0.2 * torch.sin(3 * sample + timestep[:, None, None] / 9)

    plain = denoise(wavering, noise, denoising)
    exact = denoise_exact(lambda sample, k: wavering(sample, torch.full((3,), table.timesteps[k])), noise, table)
    torch.testing.assert_close(exact, plain, rtol=0, atol=2e-5)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm"])
def test_a_network_that_errs_is_asked_with_nothing_it_never_saw(sampler):
    denoising = Denoising(sampler, 100 if sampler == "ddpm" else 10, 100)
    noise = draw_noise(SHAPE, denoising, torch.Generator().manual_seed(1))
    seen = []
    denoise(oracle(target(), noise_schedule(denoising).alphas_cumprod, error=0.05, seen=seen), noise, denoising)
    # The noise itself reaches 3 or 4.
    assert max(seen) < 6


def test_flow_follows_a_straight_line_in_one_step():
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    for steps in (1, 7):
        assert (flow(lambda sample, time: target() - start, start, steps) - target()).abs().max() < 1e-5


@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 100), ("ddim", 20), ("dpm", 10)])
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_a_warm_start_is_noised_as_its_first_step_expects(sampler, steps, share):
    """With a network that knows the answer, a guess that is the answer stays it, and a wrong one is led there."""
    denoising = Denoising(sampler, steps, 100)
    table, alphas = step_table(denoising), noise_schedule(denoising).alphas_cumprod
    noise = draw_noise(SHAPE, denoising, torch.Generator().manual_seed(7))
    asked = []

    def predict(sample, k):
        asked.append(k)
        kept = alphas[table.timesteps[k]]
        if len(asked) == 1:
            wanted = guess * kept.sqrt() + noise["start"] * (1 - kept).sqrt()
            torch.testing.assert_close(sample, wanted, atol=1e-5, rtol=0)
        return (sample - kept.sqrt() * target()) / (1 - kept).sqrt()

    first = round(steps * (1 - share))
    for guess in (target(), target() + 0.1):
        asked.clear()
        found = denoise_exact(predict, noise, table, guess, first)
        assert asked == list(range(first, steps))
        assert (found - target()).abs().max() < 2e-3
