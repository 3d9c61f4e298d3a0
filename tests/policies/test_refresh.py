"""Masked diffusion over a prefix that sees the slots: when it is computed anew, and what that changes (D7)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies.calibration import prefix_similarity
from policies.decoding import Decode
from policies.frames import Frame
from policies.presets import preset_policy, random_observations
from policies.ways import rounds_ways
from vla_runtime.decoding.bac import adaptive

ROUNDS = 6
TOWER = {"width": 16, "depth": 2, "heads": 2, "feed": 32}
TINY = {
    "name": "tiny", "cameras": ["agentview"], "camera_pixels": 32, "state": 3, "action": 2, "horizon": 4,
    "max_committed": 0, "executed": 4, "tokenizer": {"name": "bins"},
    "head": {"name": "discrete_diffusion", "decoding": {"rounds": ROUNDS}},
}  # fmt: skip


def made(attention):
    language = {"width": 32, "feed": 48, "depth": 2, "heads": 4, "key_value_heads": 2, "vocabulary": 320}
    backbone = {
        "name": "prismatic", "dino": TOWER, "siglip": TOWER, "image_size": 28, "max_text_tokens": 40,
        "attention": attention, "extra_token": 310, "action_end": 300, "mask_id": 301, "language": language,
    }  # fmt: skip
    policy = preset_policy({**TINY, "backbone": backbone})
    # From chance, slots hardly reach the prefix: make what is said loud.
    draw = torch.Generator().manual_seed(1)
    for value in policy.backbone.parameters():
        value.copy_(torch.randn(value.shape, generator=draw) * (value.shape[-1] ** -0.5 if value.ndim > 1 else 1))
    return policy


@pytest.fixture(scope="module")
def oft():
    return made("oft")


def chunk(policy, decode, observation):
    return policy.decoding(decode).begin(0).predict([observation]).actions


def test_a_prefix_computed_anew_in_every_round_is_the_plain_decode(oft):
    for observation in random_observations(oft.spec, 3):
        wanted = chunk(oft, Decode("plain"), observation)
        np.testing.assert_array_equal(chunk(oft, Decode("bac", refresh=range(ROUNDS)), observation), wanted)


def test_fewer_refreshes_cost_less_are_told_and_change_something(oft):
    lengths, seen = [], random_observations(oft.spec, 4)
    hook = oft.backbone.llama.layers[0].register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    work, agree = {}, {}
    for refresh in ((0,), (0, 2, 4), tuple(range(ROUNDS))):
        lengths.clear()
        one = oft.decoding(Decode("bac", refresh=refresh))
        assert one.spec.decode["refresh"] == list(refresh)
        session = one.begin(0)
        rows = [session.predict([observation]).actions for observation in seen]
        wanted = [chunk(oft, Decode("plain"), observation) for observation in seen]
        agree[refresh] = np.mean([np.isclose(*pair).mean() for pair in zip(rows, wanted, strict=True)])
        # Of these decodes; the plain ones came after.
        work[refresh] = sum(lengths[: len(seen) * ROUNDS])
    hook.remove()
    assert work[(0,)] < work[(0, 2, 4)] < work[tuple(range(ROUNDS))]
    assert agree[(0,)] < 1 == agree[tuple(range(ROUNDS))]


def test_the_scheduler_says_when_to_refresh(oft):
    alike = prefix_similarity(oft, [[one] for one in random_observations(oft.spec, 2)])
    assert alike.shape == (ROUNDS, ROUNDS)
    np.testing.assert_allclose(np.diag(alike), 1, atol=1e-6)
    assert alike[0, -1] < 1 - 1e-4
    rounds = adaptive(alike, 3)
    assert rounds[0] == 0
    assert oft.decoding(Decode("bac", refresh=rounds)).spec.decode["refresh"] == list(rounds)


def test_what_needs_no_refreshing_or_cannot_have_it_is_refused(oft, make_policy, tmp_path):
    with pytest.raises(ValueError, match="expected a backbone whose prefix sees the slots, got prismatic"):
        made("prefix_lm").decoding(Decode("bac", refresh=(0,)))
    with pytest.raises(ValueError, match="expected rounds below 6, got 6"):
        oft.decoding(Decode("bac", refresh=(0, 6)))
    with pytest.raises(ValueError, match="expected a discrete_diffusion head, got beast"):
        make_policy("beast").decoding(Decode("bac", refresh=(0,)))
    for wrong in ((), (-1,)):
        with pytest.raises(ValueError, match="expected rounds from 0 on"):
            Decode("bac", refresh=wrong)
    for other in ({"schedule": "x"}, {"warm_start": 0.5}, {"graphs": True}):
        with pytest.raises(ValueError, match=r"decode\.refresh: expected no decode\."):
            Decode("bac", refresh=(0,), **other)
    with pytest.raises(ValueError, match="expected observations, got none"):
        prefix_similarity(oft, [])
    assert Decode(refresh=(0,)).named(tmp_path, None).mode == "bac"
    with pytest.raises(ValueError, match="with decode=auto or bac"):
        Decode("plain", refresh=(0,))
    with pytest.raises(ValueError, match="over a prefix that sees the slots"):
        prefix_similarity(make_policy("discrete_diffusion"), [])


def test_calibration_tries_refreshes_where_the_prefix_sees_the_slots(oft):
    frames = [Frame((seen,), None) for seen in random_observations(oft.spec, 2)]
    ways = rounds_ways(oft, frames, {"fewer_steps": [1, 3], "confident": [], "seed": 0})
    names = {f"prefix anew {count} of {ROUNDS} times": count for count in (1, 3)}
    assert set(ways) == {"plain", "1 rounds", "3 rounds", *names}
    for name, count in names.items():
        assert ways[name].refresh[0] == 0
        assert len(ways[name].refresh) == count
        assert oft.decoding(ways[name]).spec.decode["refresh"] == list(ways[name].refresh)
    assert set(rounds_ways(made("prefix_lm"), frames, {"fewer_steps": [1], "confident": [0.9], "seed": 0})) == {
        "plain", "1 rounds", "until 0.9 sure",
    }  # fmt: skip
