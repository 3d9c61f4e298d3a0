"""Denoising diffusion and flow matching over the rows of a chunk, with the shared decoder as the network.

Diffusion is Diffusion Policy's objective (arXiv 2303.04137): predict the noise at a random step of a squared-cosine
schedule; or the velocity of the mixture (arXiv 2202.00512, section 4).
Flow is rectified flow (arXiv 2209.03003): predict the velocity from noise to action. In both the time is one more
memory token, so that the context's keys and values never change over the steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from policies.batch import Batch, Committed
from policies.heads.slots import PrefixSlots, free_rows, keep_committed, weighted_mean
from vla_runtime.decoding.denoise import Denoising, denoise, draw_noise, flow, noise_schedule
from vla_runtime.decoding.guidance import Guide, guided_flow


class _Rows(nn.Module):
    """The network both share: noisy rows and a time in, one vector a row out."""

    def __init__(self, rows: int, size: int, width: int, max_committed: int):
        super().__init__()
        self.rows, self.size = rows, size
        self.prefix = PrefixSlots(size, width, max_committed)
        self.embed = nn.Linear(size, width)
        self.places = nn.Parameter(torch.randn(rows, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.out = nn.Linear(width, size)

    def forward(self, backbone: Any, context: Any, committed: Committed | None, sample: Tensor, time: Tensor) -> Tensor:
        """sample float [B, T, A], time float [B] in [0, 1] -> float [B, T, A].

        The sample and the answer are in the sample's precision, whatever the network's: errors of a sample add up.
        """
        embedded = self.embed(sample.to(self.places.dtype)) + self.places
        slots = torch.cat([self.prefix(committed, len(sample)), embedded], dim=1)
        hidden = backbone.step(context, slots, cond_BD=self.time(self.waves(time)))
        return self.out(hidden[:, -self.rows :]).to(sample.dtype)  # type: ignore[no-any-return]

    def waves(self, time: Tensor) -> Tensor:
        """Sines and cosines of the time at frequencies from 1 to 1000: [B, D]."""
        half = self.places.shape[1] // 2
        angles = time[:, None].float() * torch.logspace(0, 3, half, device=time.device)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.places.dtype)


class Diffusion(nn.Module):
    """ActionHead. rows: T; size: A; denoising: the checkpoint's own sampler and steps."""

    name = "diffusion"

    def __init__(self, rows: int, size: int, width: int, max_committed: int = 8, denoising: Denoising | None = None):
        super().__init__()
        self.denoising = denoising or Denoising()
        self.network = _Rows(rows, size, width, max_committed)
        self.register_buffer("alphas", noise_schedule(self.denoising).alphas_cumprod, persistent=False)

    def loss(self, backbone: Any, batch: Batch, actions_BTA: Tensor, committed: Committed | None) -> Tensor:
        """Mean squared error of the predicted noise or velocity over the rows that are not given."""
        noise = torch.randn_like(actions_BTA)
        steps = torch.randint(self.denoising.train_steps, (len(batch),), device=actions_BTA.device)
        kept = self.get_buffer("alphas")[steps].to(actions_BTA)[:, None, None]
        signal, level = kept.sqrt(), (1 - kept).sqrt()
        sample = signal * actions_BTA + level * noise
        wanted = noise if self.denoising.predicts == "noise" else signal * noise - level * actions_BTA
        predicted = self.network(backbone, backbone.encode(batch), committed, sample, self._time(steps))
        return weighted_mean((predicted - wanted) ** 2, free_rows(actions_BTA, committed))

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The sample to begin with and, for ddpm, the noise of every step."""
        return draw_noise((batch, self.network.rows, self.network.size), self.denoising, generator)

    def decode(
        self, backbone: Any, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int = 1
    ) -> Tensor:
        """A chunk float [B, T, A] in [-1, 1]."""

        def predict(sample: Tensor, steps: Tensor) -> Tensor:
            return self.network(backbone, context, committed, sample, self._time(steps))  # type: ignore[no-any-return]

        return keep_committed(denoise(predict, noise, self.denoising).clamp(-1, 1), committed)

    def _time(self, steps: Tensor) -> Tensor:
        return steps.float() / self.denoising.train_steps


class Flow(nn.Module):
    """ActionHead. rows: T; size: A; steps: of Euler's method."""

    name = "flow"

    def __init__(self, rows: int, size: int, width: int, max_committed: int = 8, steps: int = 10):
        super().__init__()
        if steps < 1:
            raise ValueError(f"decode.steps: expected at least 1, got {steps}")
        self.steps = steps
        self.network = _Rows(rows, size, width, max_committed)

    def loss(self, backbone: Any, batch: Batch, actions_BTA: Tensor, committed: Committed | None) -> Tensor:
        """Mean squared error of the velocity over the rows that are not given; early times weigh more (pi0)."""
        noise = torch.randn_like(actions_BTA)
        # Beta(1, 1.5): pi0's choice (arXiv 2410.24164, appendix B), most of the work is near the noise.
        time = 1 - torch.rand(len(batch), device=actions_BTA.device).pow(1 / 1.5)
        mix = time[:, None, None].to(actions_BTA)
        sample = mix * actions_BTA + (1 - mix) * noise
        velocity = self.network(backbone, backbone.encode(batch), committed, sample, time)
        return weighted_mean((velocity - (actions_BTA - noise)) ** 2, free_rows(actions_BTA, committed))

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The sample to begin with."""
        return {"start": torch.randn((batch, self.network.rows, self.network.size), generator=generator)}

    def decode(
        self, backbone: Any, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int = 1
    ) -> Tensor:
        """A chunk float [B, T, A] in [-1, 1]."""

        def predict(sample: Tensor, time: Tensor) -> Tensor:
            return self.network(backbone, context, committed, sample, time)  # type: ignore[no-any-return]

        return keep_committed(flow(predict, noise["start"], self.steps).clamp(-1, 1), committed)

    def decode_guided(self, backbone: Any, context: Any, noise: dict[str, Tensor], guide: Guide) -> Tensor:
        """A chunk float [B, T, A] in [-1, 1], drawn to what the guide says; costs a backward pass a step."""

        def predict(sample: Tensor, time: Tensor) -> Tensor:
            return self.network(backbone, context, None, sample, time)  # type: ignore[no-any-return]

        return guided_flow(predict, noise["start"], self.steps, guide).clamp(-1, 1)
