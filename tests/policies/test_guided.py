"""Chunks drawn to the one before: by which heads, with which decodes, and what the loop then executes."""

from __future__ import annotations

from dataclasses import replace
from itertools import repeat

import numpy as np
import pytest
import torch
from playing import runner

from envs.reach import Reach
from policies.checkpoint import load_policy, save_policy
from policies.decoding import Decode
from policies.recipe import Recipe
from policies.samples import read_samples
from policies.training import train
from vla_runtime.control.clock import VirtualClock
from vla_runtime.control.loop import run
from vla_runtime.control.planner import Delayed
from vla_runtime.evaluation.folder import Job

WAYS = {"flow": "plain", "diffusion": "exact"}


@pytest.fixture
def seen():
    env = Reach(size=16)
    env.reset(0, 0, 0)
    return env.observe([camera.name for camera in env.spec.cameras])


@pytest.mark.parametrize("head", WAYS)
def test_the_next_chunk_is_drawn_to_the_one_before(make_policy, seen, head):
    policy = make_policy(head)
    period = policy.spec.period

    def gap(decode):
        """How far rows of the second chunk are from what the first said of the same times."""
        session = policy.decoding(decode).begin(0)
        first = session.predict([seen])
        later = replace(seen, time=seen.time + 2 * period)
        second = session.predict([later])
        return first, second, np.abs(second.actions[:4] - first.actions[2:6]).mean()

    plain, guided = gap(Decode(WAYS[head])), gap(Decode(WAYS[head], guide=True))
    assert np.array_equal(plain[0].actions, guided[0].actions)  # there is nothing to be drawn to yet
    assert (guided[0].facts["guided"], guided[1].facts["guided"]) == (0.0, 1.0)
    assert guided[2] < 0.6 * plain[2]


@pytest.mark.parametrize("most", [0, 2])
@pytest.mark.parametrize("head", WAYS)
def test_given_rows_are_kept_and_another_instruction_is_another_task(make_policy, seen, head, most):
    """Whether or not the network was trained for given rows."""
    own = make_policy(head, max_committed=most)
    policy = own.decoding(Decode(WAYS[head], guide=True))
    assert policy.spec.max_committed == policy.spec.horizon - 1
    assert policy.decoding(Decode(WAYS[head])).spec.max_committed == most
    session = policy.begin(0)
    first = session.predict([seen])
    rows = first.actions[2:6]
    later = replace(seen, time=seen.time + 2 * policy.spec.period)
    second = session.predict([later], rows)
    assert np.array_equal(second.actions[:4], rows)
    other = replace(later, instruction="something else")
    assert session.predict([other]).facts["guided"] == 0.0


@pytest.mark.parametrize("head", WAYS)
def test_of_another_task_a_chunk_is_drawn_to_the_rows_that_are_given_alone(make_policy, seen, head):
    policy = make_policy(head, max_committed=0).decoding(Decode(WAYS[head], guide=True))
    other = replace(seen, instruction="something else")

    def second(before, rows):
        session = policy.begin(0)
        session.predict([before])
        return session.predict([other], rows)

    low, high = (np.full((4, policy.spec.action.size), value, np.float32) for value in (-0.05, 0.05))
    one, another = (second(before, low) for before in (seen, replace(seen, state=seen.state + 0.1)))
    assert one.facts["guided"] == 1.0
    assert np.array_equal(one.actions, another.actions)  # whatever the chunk before said
    assert not np.array_equal(one.actions[4:], second(seen, high).actions[4:])


@pytest.mark.parametrize(
    ("head", "decode", "message"),
    [
        ("flow", Decode("exact", guide=True), "flow head with decode=plain"),
        ("diffusion", Decode("plain", guide=True), "diffusion head with decode=exact or bac"),
        ("beast", Decode("plain", guide=True), "got beast with decode=plain"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make_policy, head, decode, message):
    with pytest.raises(ValueError, match=message):
        make_policy(head).decoding(decode)
    with pytest.raises(ValueError, match=r"decode.guide: expected no decode.warm_start"):
        Decode("exact", guide=True, warm_start=0.2)


@pytest.mark.parametrize(("head", "join"), [("flow", "guide"), ("diffusion", "guide"), ("discrete_diffusion", "pin")])
def test_what_is_committed_is_executed(make_policy, tmp_path, head, join):
    options = {"tokenizer": {"name": "bins"}} if join == "pin" else {}
    policy = make_policy(head, **options)
    save_policy(tmp_path / "small", policy, {}, {})
    base = ("env=reach", "env.size=16", "env.max_steps=30", f"policy={tmp_path / 'small'}", "loop=async")
    row = runner(*base, f"loop.join={join}", "loop.latency=0.1", "loop.replan=4")(Job(0, 0, 0.1))
    assert row["error"] is None
    assert row["late"] == 0
    assert row["loop"]["join"] == join
    if join == "guide":
        assert row["decode"]["guide"] is True
        assert row["timing"]["chunks"]["guided"] > 0.5
        policy = policy.decoding(Decode(WAYS[head], guide=True))
    env, ticks = Reach(size=16), []
    env.reset(0, 0, 0)
    run(
        env, policy.begin(0), policy.spec, VirtualClock(), replan=4, max_steps=30, prefix=True, on_tick=ticks.append,
        planner=lambda session, wall: Delayed(session, wall, repeat(0.1)),
    )  # fmt: skip
    told = [(tick.index, tick.asked) for tick in ticks if tick.asked is not None and len(tick.asked)]
    assert len(told) == 7
    for index, rows in told:
        assert len(rows) == 2
        executed = np.stack([tick.command.values for tick in ticks[index : index + 2]])
        assert np.array_equal(executed, rows)


def test_only_bins_can_be_pinned(make_policy):
    assert make_policy("discrete_diffusion", tokenizer={"name": "bins"}).spec.pins
    assert not make_policy("discrete_diffusion").spec.pins
    assert not make_policy("flow").spec.pins


RECIPE = Recipe(
    steps=90, batch_size=8, learning_rate=5e-3, warmup=10, ema=0.9, validate_every=90, save_every=90,
    max_committed=2, overfit=8,
)  # fmt: skip


def test_a_policy_that_has_learned_goes_on_from_what_is_pinned(make_policy, dataset, tmp_path):
    untrained, learned = (make_policy("discrete_diffusion", tokenizer={"name": "bins"}) for _ in range(2))
    samples = read_samples(dataset, 16, learned.state, learned.action)
    train(learned, samples, RECIPE, tmp_path / "learned", {}, resume=False)
    indices = RECIPE.chosen(samples)[0]

    def apart(policy):
        """How far the rows behind two that are pinned to what the data hold are from those that follow there."""
        pairs = []
        for seen, chunk in (dataset[index] for index in indices):
            said = policy.begin(0).predict([seen], chunk.actions[:2]).actions
            assert np.array_equal(said[:2], chunk.actions[:2])
            pairs.append(np.abs(said[2:] - chunk.actions[2:]).mean())
        return np.mean(pairs)

    assert apart(load_policy(tmp_path / "learned")) < 0.5 * apart(untrained)


def test_pinned_tokens_stay_what_they_are_while_it_decodes(make_policy, seen):
    policy = make_policy("discrete_diffusion", tokenizer={"name": "bins"})
    rows = policy.begin(0).predict([seen]).actions[1:3]
    with torch.no_grad():
        context = policy.backbone.encode(policy.batch([[seen]]))
        noise = policy.head.draw(1, torch.Generator().manual_seed(1))
        _, ids = policy.head.decode_tokens(policy.backbone, context, policy.committed(rows), noise, 1)
    padded = np.zeros((1, policy.spec.horizon, policy.spec.action.size), np.float32)
    padded[0, :2] = policy.action.forward(rows)
    wanted = policy.head.tokenizer.encode(torch.from_numpy(padded))
    count = 2 * policy.spec.action.size
    assert torch.equal(ids[:, :count], wanted[:, :count])
