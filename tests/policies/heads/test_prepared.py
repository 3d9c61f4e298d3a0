"""Prepared decoding against the heads' plain one, and what a caching schedule changes about it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from denoisers import DEPTH, HEADS, STEPS, given_rows, noise, observation, parts, schedule

from policies.backbones.decoder import Context
from policies.heads.prepared import WATCHED, PreparedDecoder
from vla_runtime.decoding.bac import blocks_of, uniform


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("committed", [None, given_rows(1, [0]), given_rows(1, [3])])
def test_what_is_computed_beforehand_changes_nothing(name, committed):
    backbone, head = parts(name)
    decoder = PreparedDecoder(head, backbone)
    for seed in (1, 2):  # buffers of the chunk before must not be seen
        context, drawn = observation(backbone, seed=seed), noise(head, seed=seed)
        plain = head.decode(backbone, context, committed, drawn)
        torch.testing.assert_close(decoder(context, committed, drawn), plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_samples_of_a_batch_and_batches_of_another_size(name):
    backbone, head = parts(name)
    decoder = PreparedDecoder(head, backbone)
    for batch, counts in ((3, [0, 4, 1]), (1, [2]), (2, [0, 0])):
        context, drawn, committed = observation(backbone, batch), noise(head, batch), given_rows(batch, counts)
        plain = head.decode(backbone, context, committed, drawn, batch)
        torch.testing.assert_close(decoder(context, committed, drawn, batch), plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["ddpm", "flow"])
def test_a_schedule_of_all_steps_is_bit_equal_to_none(name):
    backbone, head = parts(name)
    steps = STEPS if name == "ddpm" else 7
    context, drawn = observation(backbone), noise(head)
    plain = PreparedDecoder(head, backbone)(context, None, drawn)
    cached = PreparedDecoder(head, backbone, schedule(steps, steps))(context, None, drawn)
    assert torch.equal(plain, cached)


def test_fewer_updates_compute_less_and_answer_otherwise():
    backbone, head = parts("ddpm")
    context, drawn = observation(backbone), noise(head)
    plain = PreparedDecoder(head, backbone)(context, None, drawn)
    errors = {}
    for updates in (2, 10, 19):
        decoder = PreparedDecoder(head, backbone, schedule(STEPS, updates))
        errors[updates] = float((decoder(context, None, drawn) - plain).abs().mean())
        assert decoder.cache.evaluations == 3 * DEPTH * updates
    assert errors[2] > errors[19] > 0


def test_nothing_is_carried_from_chunk_to_chunk():
    backbone, head = parts("ddpm")
    decoder = PreparedDecoder(head, backbone, schedule(STEPS, 4))
    first = decoder(observation(backbone), given_rows(1, [2]), noise(head))
    decoder(observation(backbone, seed=8), None, noise(head, seed=9))
    again = decoder(observation(backbone), given_rows(1, [2]), noise(head))
    assert torch.equal(first, again)


def test_a_schedule_for_another_decoder_is_refused():
    backbone, head = parts("ddpm")
    with pytest.raises(ValueError, match="expected 6 blocks and 20 steps, got 6 and 10"):
        PreparedDecoder(head, backbone, schedule(10, 4))
    with pytest.raises(ValueError, match="got 9 and 20"):
        PreparedDecoder(head, backbone, schedule(20, 4, blocks=dict.fromkeys(blocks_of(3), (0,))))


@pytest.mark.parametrize("name", ["ddpm", "dpm", "flow"])
def test_a_warm_start_takes_fewer_steps_and_stays_near_its_guess(name):
    backbone, head = parts(name)
    decoder = PreparedDecoder(head, backbone)
    context, drawn = observation(backbone), noise(head)
    cold = decoder(context, None, drawn)
    distances = []
    for share in (0.1, 0.9):
        first = decoder.steps - max(1, round(share * decoder.steps))
        taken, step = [], decoder._prepared.step
        decoder._prepared.step = lambda k, *given, taken=taken, step=step: (taken.append(k), step(k, *given))[1]
        warm = decoder(context, None, drawn, warm=cold, first=first)
        decoder._prepared.step = step
        assert taken == list(range(first, decoder.steps))
        distances.append(float((warm - cold).abs().mean()))
    assert distances[0] < distances[1]


def test_a_warm_start_from_nothing_is_refused():
    backbone, head = parts("ddpm")
    with pytest.raises(ValueError, match="expected a guess to begin with at step 5"):
        PreparedDecoder(head, backbone)(observation(backbone), None, noise(head), first=5)


def test_a_warm_start_composes_with_a_schedule():
    backbone, head = parts("ddpm")
    plan = schedule(STEPS, 4)  # 0, 5, 10, 15
    decoder = PreparedDecoder(head, backbone, plan)
    context, drawn = observation(backbone), noise(head)
    cold = decoder(context, None, drawn)
    before = decoder.cache.evaluations
    decoder(context, None, drawn, warm=cold, first=8)
    # Step 8 computes everything, though the schedule does not, and after it steps 10 and 15.
    assert decoder.cache.evaluations - before == 3 * DEPTH * 3
    assert torch.equal(decoder(context, None, drawn), cold)


def guarded():
    """A schedule that expects every update to be like the one before it."""
    steps = uniform(STEPS, 4)
    blocks = blocks_of(DEPTH)
    return schedule(STEPS, 4, expected=dict.fromkeys(blocks, (1.0,) * (len(steps) - 1)))


def test_it_says_how_far_reused_outputs_are_from_new_ones():
    backbone, head = parts("ddpm")
    decoder = PreparedDecoder(head, backbone, guarded())
    decoder(observation(backbone), None, noise(head))
    kept = {}

    # The same by hand: every update against the one before it.
    recorded = PreparedDecoder(head, backbone, guarded())
    gaps, inner = [], recorded.cache.branch
    assert 3 * DEPTH * 3 < WATCHED  # all of them

    def branch(index, compute):
        output = inner(index, compute)
        if recorded.cache._step in uniform(STEPS, 4):
            if index in kept:
                gaps.append(1 - float(torch.cosine_similarity(kept[index].flatten(), output.flatten(), dim=0)))
            kept[index] = output.clone()
        return output

    recorded.cache.branch = branch
    recorded(observation(backbone), None, noise(head))
    assert len(gaps) == 3 * DEPTH * 3
    assert decoder.facts["cache_gap"] == pytest.approx(sum(gaps) / len(gaps), abs=1e-6)


def test_a_warm_start_compares_with_what_was_calibrated_only():
    backbone, head = parts("ddpm")
    decoder = PreparedDecoder(head, backbone, guarded())
    context, drawn = observation(backbone), noise(head)
    cold = decoder(context, None, drawn)
    decoder(context, None, drawn, warm=cold, first=12)  # step 12, and after it the update at 15
    assert "cache_gap" not in decoder.facts
    decoder(context, None, drawn, warm=cold, first=8)  # 10 follows 8, but 15 follows 10
    assert "cache_gap" in decoder.facts


def test_beyond_its_guard_the_next_chunk_is_decoded_in_full_and_the_one_after_by_plan(caplog):
    backbone, head = parts("ddpm")
    context, drawn = observation(backbone), noise(head)
    exact = PreparedDecoder(head, backbone)(context, None, drawn)
    seen = PreparedDecoder(head, backbone, guarded())
    cached = seen(context, None, drawn)
    gap = seen.facts["cache_gap"]
    assert not torch.allclose(cached, exact, atol=1e-5)

    strict = PreparedDecoder(head, backbone, replace(guarded(), guard={0: gap - 1e-6}))
    chunks = [strict(context, None, drawn) for _ in range(4)]
    assert strict.facts == {"decoded_in_full": 1.0, "hit_rate": 0.0, "guarded": 1.0}
    for chunk, full in zip(chunks, (False, True, False, True), strict=True):
        torch.testing.assert_close(chunk, exact if full else cached, rtol=0, atol=1e-6)
    assert "decoded in full" in caplog.text

    lenient = PreparedDecoder(head, backbone, replace(guarded(), guard={0: gap + 1e-6}))
    assert all(torch.equal(lenient(context, None, drawn), cached) for _ in range(3))
    assert lenient.facts["decoded_in_full"] == 0
    assert lenient.facts["hit_rate"] == 1 - 4 / STEPS
    # A decode that begins at a step without a bound says that nobody watches it.
    lenient(context, None, drawn, warm=cached, first=8)
    assert lenient.facts["guarded"] == 0
    assert lenient.facts["hit_rate"] == pytest.approx(1 - (1 + 2) / 12)  # step 8, then 10 and 15


def test_the_gap_is_one_number_a_sample():
    backbone, head = parts("ddpm")
    both = noise(head, batch=2)
    decoder = PreparedDecoder(head, backbone, guarded())
    context = observation(backbone)
    twice = Context(tuple((key.expand(2, -1, -1, -1), value.expand(2, -1, -1, -1)) for key, value in context.memory))
    decoder(twice, None, both, 2)
    together = decoder.cache.gap()
    for index in range(2):
        decoder(context, None, {"start": both["start"][index:][:1], "steps": both["steps"][:, index:][:, :1]})
        assert float(decoder.cache.gap()) == pytest.approx(float(together[index]), abs=1e-5)
