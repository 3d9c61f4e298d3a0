"""What is kept from a policy does not reach it, and all else does."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from playing import runner

from envs.reach import Reach
from policies.checkpoint import save_policy
from policies.deprived import Deprived
from vla_runtime.evaluation.folder import Job
from vla_runtime.testing import check_policy

EXPECTED = {"images": "images", "state": "state", "instruction": "instruction"}


class Ear:
    """Remembers what it was asked with."""

    def __init__(self, spec):
        self.spec, self.heard = spec, None

    def begin(self, seed):
        return self

    def predict(self, observations, committed=None, deadline=None):
        self.heard = observations, committed, deadline
        return "chunk"


@pytest.mark.parametrize("without", EXPECTED)
def test_one_thing_is_missing_and_no_other(make_policy, without):
    env = Reach(size=16)
    env.reset(0, 0, 0)
    shown = env.observe(("overhead", "hand"))
    ear = Ear(make_policy("regression").spec)
    policy = Deprived(ear, without, "wave" if without == "instruction" else None)
    assert policy.begin(0).predict([shown], "rows", 3.0) == "chunk"
    (heard,), committed, deadline = ear.heard
    assert (committed, deadline) == ("rows", 3.0)
    for field in fields(shown):
        if field.name != EXPECTED[without]:
            assert getattr(heard, field.name) is getattr(shown, field.name)
    if without == "images":
        assert all((image == 0).all() and image.shape == (16, 16, 3) for image in heard.images.values())
        assert any(image.any() for image in shown.images.values())
    elif without == "state":
        assert np.array_equal(heard.state, np.zeros_like(shown.state))
    else:
        assert heard.instruction == "wave"


def test_it_conforms_and_runs_by_name(make_policy, tmp_path):
    policy = make_policy("regression")
    check_policy(Deprived(policy, "images"), Reach(size=16).spec)
    save_policy(tmp_path / "small", policy, {}, {})
    options = ("env=reach", "env.size=16", "policy=deprived", f"policy.of={tmp_path / 'small'}")
    assert runner(*options)(Job(0, 0))["error"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("nose",), "without"), (("instruction",), "instead"), (("state", "wave"), "instead")],
)
def test_what_makes_no_sense_is_named(make_policy, arguments, message):
    with pytest.raises(ValueError, match=message):
        Deprived(make_policy("regression"), *arguments)
