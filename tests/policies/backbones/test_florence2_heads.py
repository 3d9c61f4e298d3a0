"""Heads that learn on Florence-2, and rounds over what it keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from florences import batch, made
from rounds import kept_equals_anew

from policies.features import Features, FrozenTrunk
from policies.heads.beast import Beast
from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.tokenizers.bspline import BSpline


@pytest.fixture(params=["bidirectional", "uniform"])
def either(request):
    return made(slot_attention=request.param)


ROWS, SIZE = 8, 3


def chunks():
    """Eight smooth ones, so that a spline of few points is near all of them."""
    phase = np.random.default_rng(0).uniform(0, 6, (8, 1, SIZE))
    return torch.from_numpy((0.8 * np.sin(phase + np.linspace(0, 2, ROWS)[None, :, None])).astype(np.float32))


SPLINE = BSpline(ROWS, SIZE, num_basis=5, degree=3).with_bounds_of(chunks().numpy())


@pytest.mark.parametrize(
    ("head", "attention"), [(Beast, "bidirectional"), (DiscreteDiffusion, "bidirectional"), (Beast, "uniform")]
)
def test_heads_of_tokens_learn_eight_chunks_by_heart(head, attention):
    """Decoded, to a mean L1 below 0.02, of which 256 levels and five points take at most 0.001."""
    assert (SPLINE.decode(SPLINE.encode(chunks())) - chunks()).abs().mean() < 0.001
    backbone, observations = made(slot_attention=attention), batch(*(f"do {number}" for number in range(8)))
    torch.manual_seed(0)
    policy = head(SPLINE, backbone.width, max_committed=2)
    with torch.no_grad():
        features = Features(backbone.features(observations))
    for value in backbone.trunk_parameters():
        value.requires_grad_(False)
    frozen, steps = FrozenTrunk(backbone), 160
    learning = [value for value in (*backbone.parameters(), *policy.parameters()) if value.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=3e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(steps):
        optimiser.zero_grad()
        policy.loss(frozen, features, chunks(), None).backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        noise = policy.draw(8, torch.Generator().manual_seed(3))
        decoded = policy.decode(backbone, backbone.encode(observations), None, noise, 8)
    error = (decoded - chunks()).abs().mean()
    assert error < 0.02, float(error)


def test_rounds_with_a_kept_prefix_say_what_rounds_without_one_say(either):
    kept_equals_anew(either, batch("lift it", "put it down"), either.width)
