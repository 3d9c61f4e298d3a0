"""Fused decodes against prepared ones: cached and not, cold and warm, with rows given, in full, in batches."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import denoisers
import pytest
import torch

from policies.heads.fused import FusedDecoder
from policies.heads.prepared import PreparedDecoder
from vla_runtime.decoding.bac import blocks_of
from vla_runtime.decoding.guidance import Guide


def planned(name, steps):
    """A schedule that reuses branches and knows how alike they were."""
    made = denoisers.schedule(steps, 4, sampler=name)
    alike = {block: tuple(0.9 for _ in made.blocks[block][1:]) for block in blocks_of(denoisers.DEPTH)}
    return replace(made, expected=alike)


@pytest.mark.parametrize("name", denoisers.HEADS)
@pytest.mark.parametrize("caching", [False, True])
def test_a_fused_decode_answers_as_a_prepared_one(name, caching):
    backbone, head = denoisers.parts(name)
    made = planned(name, PreparedDecoder(head, backbone).steps) if caching else None
    reference, fused = PreparedDecoder(head, backbone, made), FusedDecoder(head, backbone, made)
    for turn, (batch, rows, first, full) in enumerate(product((1, 2), (False, True), (0, 3), (False, True))):
        given = denoisers.given_rows(batch, [2] * batch) if rows else None
        warm = torch.zeros(batch, denoisers.ROWS, denoisers.SIZE) if first else None
        context, noise = denoisers.observation(backbone, batch, turn), denoisers.noise(head, batch, turn)
        arguments = (context, given, noise, batch, warm, first, None, full)
        torch.testing.assert_close(fused.run(*arguments), reference.run(*arguments), rtol=0, atol=1e-5)
        if caching and not full:
            torch.testing.assert_close(fused.gap(), reference.gap(), rtol=0, atol=1e-5)


def test_twins_share_weights_and_no_buffers():
    backbone, head = denoisers.parts("ddim")
    one = FusedDecoder(head, backbone)
    other = one.twin()
    assert other._fused._layers is one._fused._layers
    found = [
        decoder(denoisers.observation(backbone, seed=seed), None, denoisers.noise(head, seed=seed))
        for seed in (1, 2)
        for decoder in (one, other)
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[3])
    assert not torch.equal(found[0], found[2])


def test_a_guided_chunk_is_that_of_the_reference():
    backbone, head = denoisers.parts("ddim")
    target = torch.zeros(1, denoisers.ROWS, denoisers.SIZE)
    guide = Guide(target, torch.linspace(1, 0, denoisers.ROWS))
    arguments = (denoisers.observation(backbone), None, denoisers.noise(head), 1, None, 0, guide)
    found, wanted = (kind(head, backbone)(*arguments) for kind in (FusedDecoder, PreparedDecoder))
    assert torch.equal(found, wanted)


def test_memory_that_is_too_large_has_one_lane(monkeypatch):
    backbone, head = denoisers.parts("ddpm")
    wanted = FusedDecoder(head, backbone)(denoisers.observation(backbone), None, denoisers.noise(head))
    monkeypatch.setattr("policies.backbones.fused_steps._MOST", 0)
    narrow = FusedDecoder(head, backbone)
    found = narrow(denoisers.observation(backbone), None, denoisers.noise(head))
    assert len(narrow._fused._memory) == 1
    assert torch.equal(found, wanted)
