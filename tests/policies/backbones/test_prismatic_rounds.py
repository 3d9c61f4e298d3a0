"""Rounds of masked diffusion over the prismatic backbone: its prefix kept, refreshed, or neither."""

from __future__ import annotations

import pytest
import torch
from prismatics import INSTRUCTIONS, WIDTH, batch, loud, slots_of, tiny
from rounds import kept_equals_anew

from vla_runtime.decoding.prefix import RefreshedPrefix


def rounds_of(backbone, context, rounds, seed=0):
    """What slots that change from round to round are told."""
    backbone = backbone if hasattr(backbone, "begin") else RefreshedPrefix(backbone, range(rounds))
    backbone.begin()
    return [backbone.step(context, slots_of(1, 5, seed=seed + index)) for index in range(rounds)]


def test_a_prefix_refreshed_in_every_round_is_the_plain_step_bit_for_bit():
    backbone = loud("oft")
    context = backbone.encode(batch("Lift"))
    plain = [backbone.step(context, slots_of(1, 5, seed=index)) for index in range(3)]
    assert all(map(torch.equal, plain, rounds_of(RefreshedPrefix(backbone, range(3)), context, 3)))


def test_a_kept_prefix_is_right_for_the_slots_it_was_made_with_and_not_for_others():
    backbone = loud("oft")
    context = backbone.encode(batch("Lift"))
    slots = slots_of(1, 5, seed=0)
    hidden, kept = backbone.step_keeping(context, slots, None, None)
    again, _ = backbone.step_keeping(context, slots, None, None, kept)
    torch.testing.assert_close(again, hidden, rtol=0, atol=1e-4)
    other = slots_of(1, 5, seed=1)
    full, _ = backbone.step_keeping(context, other, None, None)
    stale, _ = backbone.step_keeping(context, other, None, None, kept)
    assert not torch.allclose(stale, full, atol=1e-3)


def test_rounds_between_refreshes_run_the_slots_alone_and_nothing_is_kept_over_decodes():
    backbone = loud("oft")
    lengths = []
    backbone.llama.layers[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    context = backbone.encode(batch("Lift"))
    whole = context.prefix_BND.shape[1] + 5 + 1
    kept = RefreshedPrefix(backbone, [0, 2])
    first = rounds_of(kept, context, 4)
    assert lengths == [whole, 7, whole, 7]
    assert kept.refreshed == 2
    # Another observation begins anew, also where nobody says so.
    other = backbone.encode(batch("put it down"))
    assert torch.equal(kept.step(other, slots_of(1, 5, seed=9)), backbone.step(other, slots_of(1, 5, seed=9)))
    assert all(map(torch.equal, first, rounds_of(kept, context, 4)))


def test_a_prefix_that_never_sees_slots_needs_no_refreshing():
    backbone = tiny("prefix_lm")
    with pytest.raises(ValueError, match="expected attention oft, got prefix_lm"):
        rounds_of(RefreshedPrefix(backbone, [0]), backbone.encode(batch("Lift")), 1)
    with pytest.raises(ValueError, match="expected rounds from 0 on"):
        RefreshedPrefix(backbone, [-1])


def test_rounds_with_a_kept_prefix_say_what_rounds_without_one_say():
    kept_equals_anew(loud(), batch(*INSTRUCTIONS[:2]), WIDTH)
