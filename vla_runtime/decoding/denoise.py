"""Diffusion and flow sampling, plainly: the reference that every faster way is compared with.

Schedules and coefficients are diffusers' own (DDPM, DDIM, DPM-Solver++); flow matching is Euler's method.
All noise is drawn before the loop. It knows neither networks nor actions: `predict` is whatever answers
noise or velocity for a sample at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

SAMPLERS = ("ddpm", "ddim", "dpm")
Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Denoising:
    """How to sample: which of diffusers' schedules, over `steps` of the `train_steps` the policy was trained with."""

    sampler: str = "ddpm"
    steps: int = 100
    train_steps: int = 100

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"decode.sampler: expected one of {SAMPLERS}, got {self.sampler!r}")
        if not 1 <= self.steps <= self.train_steps:
            raise ValueError(f"decode.steps: expected 1 to {self.train_steps}, got {self.steps}")
        if self.sampler == "ddpm" and self.steps != self.train_steps:
            raise ValueError(
                f"decode.steps: ddpm walks all {self.train_steps} steps it was trained with, got {self.steps}; "
                "take decode.sampler=ddim or dpm for fewer"
            )


def noise_schedule(denoising: Denoising) -> Any:
    """diffusers' scheduler with Diffusion Policy's settings: squared-cosine betas, noise predicted, samples cut."""
    # Late, and as a module without types: importing diffusers takes a second.
    kinds: Any = import_module("diffusers.schedulers")
    common = {
        "num_train_timesteps": denoising.train_steps,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "epsilon",
    }
    if denoising.sampler == "ddpm":
        schedule = kinds.DDPMScheduler(variance_type="fixed_small", clip_sample=True, **common)
    elif denoising.sampler == "ddim":
        schedule = kinds.DDIMScheduler(clip_sample=True, set_alpha_to_one=True, steps_offset=0, **common)
    else:
        # Squared-cosine betas leave next to no signal in the first step; without the bound on its logarithm, samples
        # go far beyond what a network was trained on (diffusers' documentation of the option).
        schedule = kinds.DPMSolverMultistepScheduler(
            algorithm_type="dpmsolver++", solver_order=2, lambda_min_clipped=-5.1, **common
        )
    schedule.set_timesteps(denoising.steps)
    return schedule


def draw_noise(shape: tuple[int, ...], denoising: Denoising, generator: torch.Generator) -> dict[str, Tensor]:
    """All randomness of one decode: the sample it begins with, and ddpm's noise of every step [K, *shape]."""
    noise = {"start": torch.randn(shape, generator=generator)}
    if denoising.sampler == "ddpm":
        noise["steps"] = torch.randn((denoising.steps, *shape), generator=generator)
    return noise


def denoise(predict: Predict, noise: dict[str, Tensor], denoising: Denoising) -> Tensor:
    """From noise to a sample. predict(sample, timestep int64 [B]) answers the noise in the sample."""
    schedule = noise_schedule(denoising)
    sample = noise["start"]
    for index, timestep in enumerate(schedule.timesteps):
        answer = predict(sample, timestep.expand(len(sample)).to(sample.device))
        options = {"variance_noise": noise["steps"][index]} if denoising.sampler == "ddpm" else {}
        sample = _step(schedule, answer, timestep, sample, options)
    return sample


def flow(predict: Predict, start: Tensor, steps: int) -> Tensor:
    """Euler's method from noise at t = 0 to a sample at t = 1. predict(sample, t float [B]) answers the velocity."""
    if steps < 1:
        raise ValueError(f"decode.steps: expected at least 1, got {steps}")
    sample = start
    for index in range(steps):
        time = torch.full((len(sample),), index / steps, device=sample.device, dtype=sample.dtype)
        sample = sample + predict(sample, time) / steps
    return sample


def _step(schedule: Any, answer: Tensor, timestep: Tensor, sample: Tensor, options: dict[str, Tensor]) -> Tensor:
    if "variance_noise" in options:
        # DDPMScheduler draws its own noise from a generator; ours is given, so its variance is added here.
        noise = options["variance_noise"]
        mean = _ddpm_mean(schedule, answer, timestep, sample)
        if int(timestep) == 0:
            return mean
        deviation = schedule._get_variance(int(timestep)).clamp_min(1e-20).sqrt().to(sample)
        noisy: Tensor = mean + deviation * noise
        return noisy
    result: Tensor = schedule.step(answer, timestep, sample).prev_sample
    return result


def _ddpm_mean(schedule: Any, answer: Tensor, timestep: Tensor, sample: Tensor) -> Tensor:
    """Equations 15 and 7 of DDPM (arXiv 2006.11239), with the predicted sample cut to [-1, 1]."""
    t = int(timestep)
    before = t - 1
    alpha_bar = schedule.alphas_cumprod[t].to(sample)
    alpha_bar_before = (
        schedule.alphas_cumprod[before].to(sample) if before >= 0 else torch.ones((), device=sample.device)
    )
    alpha = alpha_bar / alpha_bar_before
    clean = ((sample - (1 - alpha_bar).sqrt() * answer) / alpha_bar.sqrt()).clamp(-1, 1)
    keep = alpha.sqrt() * (1 - alpha_bar_before) / (1 - alpha_bar)
    mean: Tensor = alpha_bar_before.sqrt() * (1 - alpha) / (1 - alpha_bar) * clean + keep * sample
    return mean
