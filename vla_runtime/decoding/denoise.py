"""Diffusion and flow sampling, plainly: the reference that every faster way is compared with.

Schedules and coefficients are diffusers' own (DDPM, DDIM, DPM-Solver++); flow matching is Euler's method.
All noise is drawn before the loop. It knows neither networks nor actions: `predict` is whatever answers
noise or velocity for a sample at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

SAMPLERS = ("ddpm", "ddim", "dpm")
# What a network may answer, and diffusers' word for it. Velocity: arXiv 2202.00512, section 4.
ANSWERS = {"noise": "epsilon", "velocity": "v_prediction"}
Predict = Callable[[Tensor, Tensor], Tensor]
PredictStep = Callable[[Tensor, int], Tensor]
Step = tuple[Tensor, Tensor]
Row = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Denoising:
    """How to sample: which of diffusers' schedules, over `steps` of the `train_steps` the policy was trained with, and
    what its network answers (`predicts`: noise or velocity).
    """

    sampler: str = "ddpm"
    steps: int = 100
    train_steps: int = 100
    predicts: str = "noise"

    def __post_init__(self) -> None:
        if self.predicts not in ANSWERS:
            raise ValueError(f"denoising.predicts: expected one of {tuple(ANSWERS)}, got {self.predicts!r}")
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
    """diffusers' scheduler with Diffusion Policy's settings: squared-cosine betas, samples cut.

    ValueError for more steps than the sampler can tell apart.
    """
    # Late, and as a module without types: importing diffusers takes a second.
    kinds: Any = import_module("diffusers.schedulers")
    common = {
        "num_train_timesteps": denoising.train_steps,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": ANSWERS[denoising.predicts],
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
    if len(set(schedule.timesteps.tolist())) < denoising.steps:
        raise ValueError(
            f"decode.steps: {denoising.sampler} has no {denoising.steps} different steps of "
            f"{denoising.train_steps}; take fewer"
        )
    return schedule


def draw_noise(shape: tuple[int, ...], denoising: Denoising, generator: torch.Generator) -> dict[str, Tensor]:
    """All randomness of one decode: the sample it begins with, and ddpm's noise of every step [K, *shape]."""
    noise = {"start": torch.randn(shape, generator=generator)}
    if denoising.sampler == "ddpm":
        noise["steps"] = torch.randn((denoising.steps, *shape), generator=generator)
    return noise


def denoise(predict: Predict, noise: dict[str, Tensor], denoising: Denoising) -> Tensor:
    """From noise to a sample. predict(sample, timestep int64 [B]) answers what `predicts` says."""
    schedule = noise_schedule(denoising)
    sample = noise["start"]
    for index, timestep in enumerate(schedule.timesteps):
        # Filled on the device: a tensor of the host would be waited for at every step.
        answer = predict(sample, torch.full((len(sample),), int(timestep), device=sample.device))
        options = {"variance_noise": noise["steps"][index]} if denoising.sampler == "ddpm" else {}
        sample = _step(schedule, answer, timestep, sample, options)
    return sample


@dataclass(frozen=True, slots=True)
class StepTable:
    """What a schedule's steps come to when all that depends on the step alone is computed beforehand.

    At step k the clean sample is guessed as sample_in[k] * sample + answer_in[k] * answer, cut to [-1, 1] if `clip`;
    the next sample is kept[k] * sample + clean[k] * guess + before[k] * (the guess of step k - 1) +
    answer[k] * answer + noise[k] * noise. timesteps: what the network is asked with. signal, level: how much of a
    clean sample and of noise there is in what step k is given.
    """

    timesteps: tuple[int, ...]
    clip: bool
    sample_in: tuple[float, ...]
    answer_in: tuple[float, ...]
    kept: tuple[float, ...]
    clean: tuple[float, ...]
    before: tuple[float, ...]
    answer: tuple[float, ...]
    noise: tuple[float, ...]
    signal: tuple[float, ...]
    level: tuple[float, ...]

    def step(self, k: int, sample: Tensor, answer: Tensor, last: Tensor | None, noise: Tensor | None) -> Step:
        """The next sample, and the guess of the clean one."""
        guess = (sample * self.sample_in[k]).add_(answer, alpha=self.answer_in[k])
        if self.clip:
            guess.clamp_(-1, 1)
        # Without a guess before it a multistep update is one of first order: both shares go to this guess.
        clean = self.clean[k] if last is not None else self.clean[k] + self.before[k]
        found = (sample * self.kept[k]).add_(guess, alpha=clean)
        if self.before[k] and last is not None:
            found.add_(last, alpha=self.before[k])
        if self.answer[k]:
            found.add_(answer, alpha=self.answer[k])
        if self.noise[k]:
            assert noise is not None
            found.add_(noise, alpha=self.noise[k])
        return found, guess


def step_table(denoising: Denoising) -> StepTable:
    """The table of diffusers' schedule: DDPM's equations 15 and 7 (arXiv 2006.11239), DDIM's 12 with eta = 0
    (arXiv 2010.02502), and DPM-Solver++'s second-order multistep update (arXiv 2211.01095, algorithm 2).
    """
    schedule = noise_schedule(denoising)
    steps = [int(one) for one in schedule.timesteps]
    rows = {"ddpm": _ddpm_rows, "ddim": _ddim_rows, "dpm": _dpm_rows}[denoising.sampler](schedule, steps)
    columns = [tuple(column) for column in zip(*rows, strict=True)]
    return StepTable(tuple(steps), denoising.sampler != "dpm", *columns)


def denoise_exact(
    predict: PredictStep,
    noise: dict[str, Tensor],
    table: StepTable,
    warm: Tensor | None = None,
    first: int = 0,
    touch: Callable[[Tensor, int], Tensor] = lambda sample, k: sample,
) -> Tensor:
    """As `denoise`, with the table. predict(sample, k) answers for the sample of the k-th step.

    warm: a guess of the clean sample to begin with instead of noise alone, noised as step `first` expects it. touch:
    what the k-th step is given instead of the sample.
    """
    sample, last = noise["start"], None
    if warm is not None:
        sample = warm * table.signal[first] + noise["start"] * table.level[first]
    for k in range(first, len(table.timesteps)):
        drawn = noise["steps"][k] if "steps" in noise else None
        sample = touch(sample, k)
        sample, last = table.step(k, sample, predict(sample, k), last, drawn)
    return sample


def _ddpm_rows(schedule: Any, steps: list[int]) -> list[Row]:
    kept = [float(one) for one in schedule.alphas_cumprod.double()]
    rows: list[Row] = []
    for t in steps:
        now, before = kept[t], kept[t - 1] if t else 1.0
        step = now / before
        noise = math.sqrt(max((1 - before) / (1 - now) * (1 - step), 1e-20)) if t else 0.0
        clean, sample = math.sqrt(before) * (1 - step) / (1 - now), math.sqrt(step) * (1 - before) / (1 - now)
        rows.append((*_clean_shares(schedule, now), sample, clean, 0.0, 0.0, noise, *_mixed(now)))
    return rows


def _ddim_rows(schedule: Any, steps: list[int]) -> list[Row]:
    kept = [float(one) for one in schedule.alphas_cumprod.double()]
    stride = schedule.config.num_train_timesteps // len(steps)
    rows: list[Row] = []
    for t in steps:
        before = kept[t - stride] if t >= stride else 1.0
        left = math.sqrt(1 - before)
        sample, answer = (left * share for share in _noise_shares(schedule, kept[t]))
        rows.append((*_clean_shares(schedule, kept[t]), sample, math.sqrt(before), 0.0, answer, 0.0, *_mixed(kept[t])))
    return rows


def _dpm_rows(schedule: Any, steps: list[int]) -> list[Row]:
    # Noise levels in the form sigma / alpha; the last is 0.
    levels = [float(one) for one in schedule.sigmas.double()]
    alphas = [1 / math.sqrt(1 + level**2) for level in levels]
    logs = [-math.log(level) if level else math.inf for level in levels]
    rows: list[Row] = []
    for k in range(len(steps)):
        grown = math.expm1(-(logs[k + 1] - logs[k])) * -alphas[k + 1]
        kept = levels[k + 1] * alphas[k + 1] / (levels[k] * alphas[k])
        clean, before = grown, 0.0
        if 0 < k < len(steps) - 1:
            ratio = (logs[k] - logs[k - 1]) / (logs[k + 1] - logs[k])
            clean, before = grown * (1 + 0.5 / ratio), -grown * 0.5 / ratio
        mixed = alphas[k], levels[k] * alphas[k]
        rows.append((*_clean_shares(schedule, alphas[k] ** 2), kept, clean, before, 0.0, 0.0, *mixed))
    return rows


def _mixed(kept: float) -> tuple[float, float]:
    return math.sqrt(kept), math.sqrt(1 - kept)


def _velocity(schedule: Any) -> bool:
    return bool(schedule.config.prediction_type == ANSWERS["velocity"])


def _clean_shares(schedule: Any, kept: float) -> tuple[float, float]:
    """How much of the sample and of the network's answer the guess of the clean sample is."""
    signal, level = _mixed(kept)
    return (signal, -level) if _velocity(schedule) else (1 / signal, -level / signal)


def _noise_shares(schedule: Any, kept: float) -> tuple[float, float]:
    """How much of the sample and of the network's answer the guess of the noise is."""
    signal, level = _mixed(kept)
    return (level, signal) if _velocity(schedule) else (0.0, 1.0)


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
        deviation = schedule._get_variance(int(timestep)).clamp_min(1e-20).sqrt()
        noisy: Tensor = mean + deviation * noise
        return noisy
    result: Tensor = schedule.step(answer, timestep, sample).prev_sample
    return result


def _ddpm_mean(schedule: Any, answer: Tensor, timestep: Tensor, sample: Tensor) -> Tensor:
    """Equations 15 and 7 of DDPM (arXiv 2006.11239), with the predicted sample cut to [-1, 1]."""
    t = int(timestep)
    before = t - 1
    # Numbers of the host: they go to a kernel as its arguments, and nothing is copied.
    alpha_bar = schedule.alphas_cumprod[t]
    alpha_bar_before = schedule.alphas_cumprod[before] if before >= 0 else torch.ones(())
    alpha = alpha_bar / alpha_bar_before
    if _velocity(schedule):
        clean = (alpha_bar.sqrt() * sample - (1 - alpha_bar).sqrt() * answer).clamp(-1, 1)
    else:
        clean = ((sample - (1 - alpha_bar).sqrt() * answer) / alpha_bar.sqrt()).clamp(-1, 1)
    keep = alpha.sqrt() * (1 - alpha_bar_before) / (1 - alpha_bar)
    mean: Tensor = alpha_bar_before.sqrt() * (1 - alpha) / (1 - alpha_bar) * clean + keep * sample
    return mean
