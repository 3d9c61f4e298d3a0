"""Frames and what is judged on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from policies.decoding import Decode
from policies.frames import EARLIER, Frame
from policies.judging import judge
from vla_runtime.control.clock import VirtualClock

STEPS = 12


@pytest.fixture
def policy(make_policy):
    return make_policy("diffusion", denoising={"sampler": "ddpm", "steps": STEPS, "train_steps": STEPS})


@pytest.fixture
def frame(dataset, policy):
    period = policy.spec.period
    shown = [replace(dataset[index][0], time=4 * index * period) for index in range(EARLIER + 1)]
    return Frame((shown[-1],), dataset[EARLIER][1], tuple((one,) for one in shown[:-1]))


def test_a_warm_start_begins_with_what_it_would_in_the_loop(policy, frame, monkeypatch):
    drawn, draw = [], policy.head.draw

    def remembered(count, generator):
        drawn.append(draw(count, generator))
        return drawn[-1]

    monkeypatch.setattr(policy.head, "draw", remembered)
    way = Decode("exact", warm_start=0.5)
    found = judge(policy, {"warm": way}, [frame], VirtualClock(), noises=1)["warm"]
    # The first says whether noise is drawn at all.
    del drawn[0]
    # The same by hand: a plain chunk, a warm one after it, and another.
    decoding = policy.decoding(way)
    decoder, warm = decoding.decoder(), decoding.warm_start()
    for noise, (seen,) in zip(drawn[:EARLIER], frame.before, strict=True):
        context = policy.backbone.encode(policy.batch([[seen]]))
        guess = warm.guess(seen.time, seen.instruction)
        assert (guess is None) == (seen is frame.before[0][0])
        with torch.no_grad():
            rows = decoder(context, None, noise, 1, *(() if guess is None else (guess, warm.first)))
        warm.keep(rows, seen.time, seen.instruction)
    context = policy.backbone.encode(policy.batch([frame.seen]))
    wanted = torch.from_numpy(policy.action.forward(frame.chunk.actions))
    errors = []
    for noise in drawn[EARLIER:]:
        with torch.no_grad():
            guess = warm.guess(frame.observation.time, frame.observation.instruction)
            errors.append(float((decoder(context, None, noise, 1, guess, warm.first) - wanted).abs().mean()))
    assert np.isclose(errors, float(found.expert_error[0, 0]), atol=1e-6).any()


def test_a_warm_start_needs_observations_before(policy, frame):
    with pytest.raises(ValueError, match="expected an observation before every frame for a warm start"):
        judge(policy, {"warm": Decode("exact", warm_start=0.5)}, [replace(frame, before=())], VirtualClock(), 1)


def test_what_is_captured_is_judged_as_what_it_captures(policy, frame, graphs_made):
    """One noise is timed and several are judged, with graphs of their own for each."""
    ways = {
        f"{name}{', captured' if graphs else ''}": Decode(mode, warm_start=share, graphs=graphs)
        for name, mode, share in (("exact", "exact", None), ("warm", "exact", 0.5))
        for graphs in (None, True)
    }
    found = judge(policy, ways, [frame], VirtualClock(), noises=2)
    for name in ("exact", "warm"):
        errors = [found[each].expert_error for each in (name, f"{name}, captured")]
        np.testing.assert_allclose(*errors, atol=1e-5)
    assert graphs_made
