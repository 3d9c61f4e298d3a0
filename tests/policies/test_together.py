"""Sessions that are answered in one pass say what they would say alone."""

from __future__ import annotations

import numpy as np
import pytest

from envs.reach import Reach
from policies.checkpoint import HEADS
from policies.decoding import Decode
from vla_runtime.types import SpecMismatch

# Noise would be multiplied on the way: the first of its steps has next to no signal.
SHORT = {"denoising": {"sampler": "ddpm", "steps": 5, "train_steps": 5, "predicts": "velocity"}}


def observations(count):
    env = Reach(size=16)
    for episode in range(count):
        env.reset(0, 0, episode)
        yield env.observe(("overhead", "hand"))


def both(policy, committed):
    """Two chunks of each session, alone and together."""
    seen = list(observations(len(committed)))
    alone = [policy.begin(seed) for seed in range(len(seen))]
    sessions = [policy.begin(seed) for seed in range(len(seen))]
    together = policy.together()
    for _ in range(2):
        one = [a.predict([o], rows) for a, o, rows in zip(alone, seen, committed, strict=True)]
        yield from zip(one, together(sessions, [[o] for o in seen], committed), strict=True)


@pytest.mark.parametrize(
    ("head", "decode"), [*((head, Decode("plain")) for head in sorted(HEADS)), ("diffusion", Decode("exact")),
                         ("flow", Decode("exact"))],
)  # fmt: skip
def test_answers_are_those_of_each_alone(make_policy, head, decode):
    policy = make_policy(head, **(SHORT if head == "diffusion" else {})).decoding(decode)
    given = policy.begin(9).predict([next(observations(1))]).actions
    for committed in ([None] * 3, [given[:2], None, given[:1]]):
        for one, other in both(policy, committed):
            # In normalised units, as errors are told everywhere.
            normalised = [policy.action.forward(chunk.actions) for chunk in (one, other)]
            assert np.abs(normalised[0] - normalised[1]).max() < 1e-5
            assert (one.start, one.observed) == (other.start, other.observed)
            assert (one.curve is None) == (other.curve is None)
            assert other.facts["together"] == 3.0
            assert {"rounds", "forced", "confidence"} <= set(other.facts) or head != "discrete_diffusion"


@pytest.mark.parametrize("wrong", ["observation", "rows", "instruction"])
def test_a_wrong_question_costs_no_noise(make_policy, wrong):
    policy = make_policy("flow")
    (seen,) = observations(1)
    sessions = [policy.begin(0), policy.begin(1)]
    bad = np.zeros((3, policy.spec.action.size), np.float32)
    blind = type(seen)(seen.state, {}, seen.instruction, seen.time)
    mute = type(seen)(seen.state, seen.images, "", seen.time, seen.image_times)
    questions = {
        "observation": ([[seen], [blind]], [None, None]), "rows": ([[seen], [seen]], [None, bad]),
        "instruction": ([[seen], [mute]], [None, None]),
    }[wrong]  # fmt: skip
    with pytest.raises((SpecMismatch, ValueError)):
        policy.together()(sessions, *questions)
    assert (sessions[0].predict([seen]).actions == policy.begin(0).predict([seen]).actions).all()


def test_ways_that_remember_are_refused(make_policy):
    policy = make_policy("diffusion", **SHORT).decoding(Decode("exact", warm_start=0.5))
    with pytest.raises(ValueError, match=r"got decode.warm_start, which sessions use one by one; take batch=1"):
        policy.together()
