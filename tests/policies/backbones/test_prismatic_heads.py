"""Heads on the prismatic backbone: learned by heart, and speaking in its own words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prismatics import ATTENTION, INSTRUCTIONS, ROWS, SIZE, WIDTH, batch, loud, slots_of, tiny
from torch import nn

from policies.heads.beast import Beast
from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.precision import precision_of, set_precision
from policies.tokenizers.bins import Bins
from policies.tokenizers.bspline import BSpline
from vla_runtime.decoding.masked import MaskedDecoding


def chunks():
    generator = np.random.default_rng(0)
    phase = generator.uniform(0, 6, (8, 1, SIZE))
    return torch.tensor(0.8 * np.sin(phase + np.linspace(0, 2, ROWS)[None, :, None]), dtype=torch.float32)


SPLINE = BSpline(ROWS, SIZE, num_basis=6, degree=3).with_bounds_of(chunks().numpy())


class Remembered(torch.nn.Module):
    """A backbone whose trunk is frozen and has been asked already."""

    def __init__(self, backbone, observations):
        super().__init__()
        self.backbone, self.step = backbone, backbone.step
        self.kept = [values.detach() for values in backbone.features(observations)]

    def encode(self, observations):
        return self.backbone.remember(*self.kept)


@pytest.mark.parametrize(
    ("attention", "kind"),
    [("prefix_lm", Beast), ("prefix_lm", DiscreteDiffusion), ("oft", DiscreteDiffusion)],
)
def test_heads_learn_eight_chunks_by_heart(attention, kind):
    """Decoded: what remains is the tokenizer's own rounding. The same answer for all eight is off by 0.5."""
    observations = batch(*INSTRUCTIONS[-8:], cameras="a")
    backbone, head = Remembered(tiny(attention, cameras=("a",)), observations), kind(SPLINE, WIDTH, 2)
    modules, steps = torch.nn.ModuleList([backbone, head]), 120
    optimiser = torch.optim.AdamW(modules.parameters(), lr=5e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        losses.append(head.loss(backbone, observations, chunks(), None))
        losses[-1].backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    assert losses[-1] < 0.1 * losses[0]
    with torch.no_grad():
        noise = head.draw(8, torch.Generator().manual_seed(3))
        decoded = head.decode(backbone, backbone.encode(observations), None, noise, 8)
    assert (decoded - chunks()).abs().mean() < 0.02


@pytest.mark.parametrize("attention", ATTENTION)
def test_actions_may_be_words_of_the_vocabulary(attention):
    """As in weights that exist: the backbone embeds the bins and says their logits, the head brings nothing."""
    backbone, bins = loud(attention), Bins(ROWS, SIZE)
    head = DiscreteDiffusion(bins, WIDTH, 0, MaskedDecoding(rounds=1), words="backbone")
    assert all(name.startswith("prefix.") for name in head.state_dict())
    sample = batch("lift", "put it down")
    masks = backbone.embed(torch.full((2, ROWS * SIZE), backbone.config.mask_id))
    said = backbone.logits(backbone(sample, masks))[..., backbone.action_ids].argmax(-1)
    actions, ids = head.decode_tokens(backbone, backbone.encode(sample), None, {}, 2)
    assert torch.equal(ids, said)
    # Bin d of OpenVLA is the id `action_end - d`; its first bin is our id 0.
    assert torch.equal(backbone.action_ids[ids], backbone.config.action_end - 1 - ids)
    assert torch.equal(actions, bins.decode(ids))
    head.loss(backbone, sample, actions.roll(1, 0), None).backward()
    assert backbone.language_model.lm_head.weight.grad[backbone.action_ids].abs().sum() > 0
    with pytest.raises(ValueError, match="expected tokenizer=bins and max_committed=0"):
        DiscreteDiffusion(bins, WIDTH, 2, words="backbone")


def test_in_eight_bits_words_can_still_be_picked():
    backbone = tiny()
    set_precision(backbone, [], "cpu", "int8")
    assert precision_of(backbone) == "int8"
    # Of quantised weights, those in fp8 have no rows to pick.
    assert type(backbone.language_model.lm_head.weight) is nn.Parameter
    hidden = slots_of(1, 4).bfloat16()
    picked = backbone.logits(hidden, backbone.action_ids)
    torch.testing.assert_close(picked, backbone.logits(hidden)[..., backbone.action_ids])
