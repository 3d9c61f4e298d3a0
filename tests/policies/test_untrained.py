"""Where a policy's weights and statistics come from, before it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from policies.checkpoint import load_policy, save_policy
from policies.untrained import Initial, policy_for
from policies.vla import VLAPolicy
from vla_runtime.data.reader import Dataset
from vla_runtime.types import SpecMismatch

SMALL = {"name": "nano", "image_size": 16, "width": 32, "heads": 2, "trunk_depth": 1, "decoder_depth": 2}


@pytest.fixture
def source(make_policy, tmp_path):
    policy = make_policy("regression")
    with torch.no_grad():
        for value in [*policy.backbone.parameters(), *policy.head.parameters()]:
            value.add_(torch.randn_like(value) * 0.1)
    policy.state.low[:] -= 1.0
    policy.action.low[:] -= 1.0
    save_policy(tmp_path / "source", policy, {}, {})
    return tmp_path / "source"


def build(dataset, source, parts, head="regression", tokenizer=None, **backbone):
    return policy_for(
        dataset, "new", {**SMALL, **backbone}, {"name": head}, tokenizer, max_committed=2, seed=0,
        initial=Initial(str(source), parts),
    )  # fmt: skip


def same(one, other):
    one, other = list(one), list(other)
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("parts", ["trunk", "backbone", "all"])
def test_parts_of_a_checkpoint(dataset, source, parts):
    old, new = load_policy(source), build(dataset, source, parts)
    assert same(old.backbone.trunk_parameters(), new.backbone.trunk_parameters())
    assert same(old.backbone.decoder.parameters(), new.backbone.decoder.parameters()) == (parts != "trunk")
    assert same(old.head.parameters(), new.head.parameters()) == (parts == "all")
    # The trunk knows its own numbers; the head's are the new data's unless it comes along.
    assert (new.state.low == old.state.low).all()
    assert (new.action.low == old.action.low).all() == (parts == "all")


def test_another_head_on_the_same_trunk(dataset, source):
    assert build(dataset, source, "backbone", "beast", {"name": "bspline"}).head.name == "beast"


def test_given_rows_must_leave_some_to_learn(dataset):
    with pytest.raises(ValueError, match="max_committed: expected 0 to 7"):
        policy_for(dataset, "new", SMALL, {"name": "regression"}, None, max_committed=8, seed=0)


def test_states_that_a_trunk_was_trained_on_are_seen(dataset, source):
    policy = load_policy(source)
    policy = VLAPolicy(
        replace(policy.spec, seen=frozenset({"elsewhere"})), policy.backbone, policy.head, policy.state, policy.action
    )
    save_policy(source, policy, {}, {})
    assert build(dataset, source, "trunk").spec.seen == dataset.initial_states | {"elsewhere"}


def test_what_does_not_fit_the_checkpoint_is_named(dataset, source, recorded):
    with pytest.raises(ValueError, match="expected head=regression"):
        build(dataset, source, "all", "flow")
    with pytest.raises(ValueError, match=r"width \(32 there, 64 here\)"):
        build(dataset, source, "trunk", width=64)
    with pytest.raises(SpecMismatch, match="horizon: expected 8, got 6"):
        build(Dataset(recorded, horizon=6), source, "trunk")
    with pytest.raises(ValueError, match=r"init\.parts"):
        Initial(str(source), "nose")
