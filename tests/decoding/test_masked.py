"""Criteria D2 to D5 of Discrete Diffusion VLA's decoding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_runtime.decoding.masked import MaskedDecoding, decode_masked, draw_noise, mask_counts

TABLE = {
    (56, 12): [55, 54, 51, 48, 44, 39, 34, 28, 21, 14, 7, 0],
    (56, 8): [54, 51, 46, 39, 31, 21, 10, 0],
    (56, 6): [54, 48, 39, 28, 14, 0],
    (56, 4): [51, 39, 21, 0],
    (56, 1): [0],
}


@pytest.mark.parametrize(("shape", "counts"), TABLE.items())
def test_mask_counts_are_the_published_ones(shape, counts):
    assert mask_counts(*shape) == counts


class Network:
    """Random logits that depend on what is committed, and remember how they were asked."""

    def __init__(self, batch=3, length=20, vocabulary=16, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.base = 3 * torch.randn(batch, length, vocabulary, generator=generator)
        self.mix = torch.randn(length, length, generator=generator) / length
        self.embed = torch.randn(vocabulary, vocabulary, generator=generator)
        self.seen = []

    def __call__(self, ids, masked):
        self.seen.append((ids.clone(), masked.clone()))
        known = self.embed[ids] * (~masked)[..., None]
        self.said = self.base + 4 * torch.einsum("ij,bjv->biv", self.mix, known)
        return self.said


def decode(network, seed=0, pinned=None, late=lambda: False, **options):
    batch, length, vocabulary = network.base.shape
    decoding = MaskedDecoding(**options)
    noise = draw_noise(decoding, batch, length, vocabulary, torch.Generator().manual_seed(seed))
    return decode_masked(network, length, batch, decoding, noise, pinned_BL=pinned, late=late)


@pytest.mark.parametrize("order", ["released", "confidence", "gap"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_equal_seeds_give_equal_tokens_and_rounds_follow_the_schedule(order, temperature):
    network = Network()
    one, two = (decode(network, order=order, temperature=temperature) for _ in range(2))
    assert torch.equal(one.ids_BL, two.ids_BL)
    masked = [int(asked[1][0].sum()) for asked in network.seen[:12]]
    assert masked == [20, *mask_counts(20, 12)[:-1]]


def test_batch_does_not_matter_when_greedy():
    network = Network(batch=4)
    together = decode(network).ids_BL
    for index in range(4):
        alone = Network(batch=4)
        alone.base = network.base[index : index + 1]
        assert torch.equal(decode(alone).ids_BL[0], together[index])


def test_one_round_is_one_shot_argmax():
    network = Network()
    everything = torch.ones(3, 20, dtype=torch.bool)
    logits = network(torch.zeros(3, 20, dtype=torch.long), everything)
    for order in ("released", "confidence", "gap"):
        assert torch.equal(decode(network, rounds=1, order=order).ids_BL, logits.argmax(-1))


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**31), st.integers(1, 14), st.sampled_from(["released", "confidence", "gap"]), st.booleans())
def test_committed_tokens_never_change_without_remasking(seed, rounds, order, warm):
    network = Network(seed=seed)
    result = decode(network, seed, rounds=rounds, order=order, temperature=float(warm))
    for (ids, masked), (later, still) in zip(network.seen, network.seen[1:], strict=False):
        assert not (still & ~masked).any()
        assert torch.equal(torch.where(masked, ids, later), ids)
    last_ids, last_masked = network.seen[-1]
    assert torch.equal(torch.where(last_masked, last_ids, result.ids_BL), last_ids)
    assert int(result.remasked_B.sum()) == 0


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**31), st.integers(2, 14), st.booleans())
def test_with_remasking_every_slot_is_filled_at_the_end(seed, rounds, drop):
    network = Network(seed=seed)
    options = {"remask_drop": 0.05} if drop else {"remask_threshold": 0.9}
    result = decode(network, rounds=rounds, **options)
    assert len(network.seen) == rounds
    ids, masked = network.seen[-1]
    assert torch.equal(result.ids_BL, torch.where(masked, network.said.argmax(-1), ids))
    assert torch.equal(result.forced_B, network.seen[-1][1].sum(1))


def test_remasking_happens_and_is_counted():
    total = sum(int(decode(Network(seed=seed), remask_drop=0.02).remasked_B.sum()) for seed in range(20))
    assert total > 0


def test_pinned_tokens_stay():
    network = Network()
    pinned = torch.full((3, 20), -1)
    pinned[:, :6] = torch.arange(6)
    for options in ({}, {"remask_threshold": 1.0}, {"order": "released", "temperature": 1.0}):
        result = decode(network, pinned=pinned, **options)
        assert torch.equal(result.ids_BL[:, :6], pinned[:, :6])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds"),
        ({"order": "best"}, "order"),
        ({"temperature": -1.0}, "temperature"),
        ({"order": "released", "remask_drop": 0.1}, "no secondary"),
    ],
)
def test_what_cannot_be_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        MaskedDecoding(**options)


def test_a_threshold_nobody_reaches_changes_nothing_and_one_everybody_reaches_is_one_shot():
    full = decode(Network(), rounds=8)
    never = decode(Network(), rounds=8, confident=1.0)
    assert torch.equal(full.ids_BL, never.ids_BL)
    assert never.rounds == 8
    network = Network()
    once = decode(network, rounds=8, confident=1e-6)
    assert once.rounds == len(network.seen) == 1
    assert torch.equal(once.ids_BL, decode(Network(), rounds=1).ids_BL)
    assert once.forced_B.tolist() == [0, 0, 0]


def test_confident_samples_stop_alone_and_in_a_batch_alike():
    sharp = Network()
    sharp.base[1] *= 9  # this one is sure at once
    together = decode(sharp, rounds=8, confident=0.9)
    for index in range(3):
        alone = Network(batch=3)
        alone.base = sharp.base[index : index + 1]
        one = decode(alone, rounds=8, confident=0.9)
        assert torch.equal(one.ids_BL[0], together.ids_BL[index])
        assert one.rounds <= together.rounds
    assert together.rounds <= 8


@given(st.integers(0, 1000), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_a_deadline_commits_everything_left_in_one_pass(seed, after):
    """`late` is asked once before every round; the first is made in any case."""
    asked = []

    def late():
        asked.append(1)
        return len(asked) > after

    network = Network(seed=seed)
    found = decode(network, late=late, rounds=8)
    assert found.rounds == len(network.seen) == min(after + 1, 8)
    full = Network(seed=seed)
    decode(full, rounds=8)
    # Until the deadline it was the same decode, and what was committed then has stayed.
    ids, masked = full.seen[found.rounds - 1]
    assert torch.equal(found.ids_BL[~masked], ids[~masked])
    assert found.forced_B.tolist() == masked.sum(1).tolist()


def test_a_random_order_fills_every_slot_and_knows_nothing_of_certainty():
    decoding = MaskedDecoding(rounds=4, order="random")
    noise = draw_noise(decoding, 2, 12, 5, torch.Generator().manual_seed(0))
    logits = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(1))
    masks = []

    def logits_of(ids, masked):
        masks.append(masked)
        return logits

    found = decode_masked(logits_of, 12, 2, decoding, noise)
    assert torch.equal(found.ids_BL, logits.argmax(-1))
    assert [int(one.sum(1)[0]) for one in masks] == [12, *mask_counts(12, 4)[:-1]]
    sure = decode_masked(logits_of, 12, 2, MaskedDecoding(rounds=4), {})
    assert torch.equal(sure.ids_BL, found.ids_BL)
    assert not torch.equal(masks[1], masks[5])
