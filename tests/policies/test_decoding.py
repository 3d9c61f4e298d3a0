"""How a policy decodes: what is asked for, what a checkpoint names, and what cannot be."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from decodes import TWELVE
from playing import runner

from policies.checkpoint import load_policy, save_policy
from policies.decoding import PLAIN, Decode
from policies.warm_start import WarmStart, neutral_row
from vla_runtime import rollout
from vla_runtime.compose import BadArguments, load
from vla_runtime.control.clock import SystemClock
from vla_runtime.evaluation.folder import Job


def chunk(policy, observation, seed=3):
    return policy.begin(seed).predict([observation]).actions


def test_plain_is_the_default_and_the_heads_own_bit_for_bit(denoising, observations):
    policy = load_policy(denoising)
    assert policy.spec.decode == {"mode": "plain", "precision": "fp32", "sampler": "ddpm", "steps": 12}
    session = policy.begin(3)
    noise = policy.head.draw(1, session._generator)
    context = policy.backbone.encode(policy.batch([observations[:1]]))
    wanted = policy.actions(policy.head.decode(policy.backbone, context, None, noise).detach())[0]
    np.testing.assert_array_equal(chunk(policy, observations[0]), wanted)


def test_exact_answers_as_plain(denoising, observations):
    exact = load_policy(denoising, decode=Decode("exact"))
    assert exact.spec.decode["mode"] == "exact"
    np.testing.assert_allclose(chunk(exact, observations[0]), chunk(load_policy(denoising), observations[0]), atol=1e-4)


def test_sampler_and_steps_change_one_policy_and_not_the_other(denoising, observations):
    policy = load_policy(denoising)
    before = chunk(policy, observations[0])
    other = policy.decoding(Decode("plain", sampler="ddim", steps=3))
    assert other.spec.decode == {"mode": "plain", "precision": "fp32", "sampler": "ddim", "steps": 3}
    assert not np.array_equal(chunk(other, observations[0]), before)
    np.testing.assert_array_equal(chunk(policy, observations[0]), before)
    np.testing.assert_array_equal(chunk(other.decoding(PLAIN), observations[0]), before)


def test_rounds_of_masked_diffusion_and_steps_of_flow(make_policy):
    assert make_policy("discrete_diffusion").decoding(Decode("plain", steps=3)).spec.decode["rounds"] == 3
    assert make_policy("flow").decoding(Decode("exact", steps=4)).spec.decode["steps"] == 4


def test_a_checkpoint_names_how_it_is_decoded(scheduled):
    (scheduled / "decode.json").write_text(json.dumps({"mode": "bac", "schedule": "schedule.json"}))
    policy = load_policy(scheduled)
    assert policy.spec.decode["mode"] == "bac"
    assert 0 < policy.spec.decode["hit_rate"] < 1
    assert load_policy(scheduled, decode=PLAIN).spec.decode["mode"] == "plain"
    (scheduled / "decode.json").write_text(json.dumps({"mode": "swift"}))
    with pytest.raises(ValueError, match=r"decode\.json: expected how to decode"):
        load_policy(scheduled)


def test_sessions_side_by_side_do_not_share_what_they_keep(scheduled, observations):
    policy = load_policy(scheduled, decode=Decode("bac"))
    alone = [[session.predict([one]).actions for one in observations * 2] for session in map(policy.begin, (1, 2))]
    first, second = policy.begin(1), policy.begin(2)
    beside = [[first.predict([one]).actions, second.predict([one]).actions] for one in observations * 2]
    for step, (one, other) in enumerate(beside):
        np.testing.assert_array_equal(one, alone[0][step])
        np.testing.assert_array_equal(other, alone[1][step])


def test_caching_without_a_schedule_is_refused(denoising):
    with pytest.raises(ValueError, match="expected a caching schedule in"):
        load_policy(denoising, decode=Decode("bac"))


def test_a_schedule_of_another_policy_is_refused(scheduled):
    path = scheduled / "schedule.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "weights": "another"}))
    with pytest.raises(ValueError, match=r"weights: expected .*, got 'another'"):
        load_policy(scheduled, decode=Decode("bac"))
    with pytest.raises(ValueError, match="steps: expected 5, got 12"):
        load_policy(scheduled, decode=Decode("bac", sampler="ddim", steps=5))


@pytest.mark.parametrize(
    ("head", "decode", "message"),
    [
        ("beast", Decode("bac", schedule="x"), "decode=bac: expected a diffusion or flow head, got beast"),
        ("beast", Decode("plain", steps=2), "got beast, which takes one pass"),
        ("flow", Decode("plain", sampler="ddim"), "expected a diffusion head, got flow"),
    ],
)
def test_what_a_head_cannot_do_is_refused(make_policy, head, decode, message):
    with pytest.raises(ValueError, match=message):
        make_policy(head).decoding(decode)


def test_what_nobody_can_do_is_refused():
    with pytest.raises(ValueError, match="expected one of auto, plain, exact, bac"):
        Decode("swift")
    with pytest.raises(ValueError, match="expected none with decode=plain"):
        Decode("plain", schedule="x")
    for steps in (0, 2.5, True):
        with pytest.raises(ValueError, match=r"decode\.steps: expected a whole number"):
            Decode("plain", steps=steps)


def test_what_only_a_checkpoint_can_answer_is_refused_without_one(make_policy):
    policy = make_policy("diffusion", denoising=TWELVE)
    with pytest.raises(ValueError, match="expected plain, exact or bac"):
        policy.decoding(Decode())
    with pytest.raises(ValueError, match=r"expected decode\.schedule"):
        policy.decoding(Decode("bac"))
    with pytest.raises(ValueError, match="take fewer"):
        policy.decoding(Decode("exact", sampler="dpm"))


def test_a_warm_start_alone_is_decoded_exactly(denoising):
    assert load_policy(denoising, decode=Decode(warm_start=0.5)).spec.decode["mode"] == "exact"
    (denoising / "decode.json").write_text(json.dumps({"mode": "plain", "sampler": "ddim", "steps": 4}))
    found = load_policy(denoising, decode=Decode(warm_start=0.5)).spec.decode
    assert found == {"mode": "exact", "precision": "fp32", "sampler": "ddim", "steps": 4, "warm_start": 0.5}


def test_chunks_say_whether_they_began_warm(denoising, observations):
    session = load_policy(denoising, decode=Decode("exact", warm_start=0.5)).begin(0)
    seen = replace(observations[0], time=0.0)
    period = load_policy(denoising).spec.period
    later = [replace(seen, time=rows * period) for rows in (4, 30)]
    assert [session.predict([one]).facts["warm"] for one in (seen, *later)] == [0, 1, 0]


@pytest.mark.parametrize("asked", ["decode=bac", "decode.steps=5"])
def test_the_expert_decodes_nothing(tmp_path, asked):
    config = load("rollout", ["env=reach", "policy=expert", asked, "episodes=1", f"out={tmp_path / 'run'}"])
    with pytest.raises(BadArguments, match="expected a learned policy, got policy=expert"):
        rollout.rollout(config)


def later(observation, seconds, **changes):
    return replace(observation, time=observation.time + seconds, **changes)


def test_a_warm_start_begins_with_noise_where_the_chunk_before_says_nothing(denoising, observations):
    exact, warm = (load_policy(denoising, decode=Decode("exact", warm_start=share)) for share in (None, 0.25))
    assert warm.spec.decode["warm_start"] == 0.25
    one, period = observations[0], exact.spec.period
    gap, other = later(one, 8 * period), later(one, period, instruction="another")
    for second, equal in ((later(one, 2 * period), False), (gap, True), (other, True)):
        chunks = []
        for policy in (exact, warm):
            session = policy.begin(5)
            chunks.append((session.predict([one]).actions, session.predict([second]).actions))
        np.testing.assert_array_equal(chunks[0][0], chunks[1][0])
        assert np.array_equal(chunks[0][1], chunks[1][1]) == equal


def test_a_guess_is_the_rest_of_the_chunk_before_and_its_end_held():
    # An absolute goal that moves evenly, an increment that is even, and a gripper.
    rows = torch.stack([torch.arange(6.0) / 10, torch.full((6,), 0.3), torch.tensor([-1.0, -1, 1, 1, 1, 1])], -1)[None]
    warm = WarmStart(0.5, 10, 0.05, torch.tensor([torch.nan, -0.2, torch.nan]), torch.ones(3).bool())
    assert warm.first == 5
    assert warm.guess(0.0, "go") is None
    warm.keep(rows, 1.0, "go")
    guess = warm.guess(1.1, "go")
    assert torch.equal(guess[:, :4], rows[:, 2:])
    torch.testing.assert_close(guess[0, 4:], torch.tensor([[0.5, -0.2, 1.0]] * 2))
    assert torch.equal(warm.guess(1.0, "go"), rows)
    assert warm.guess(1.3, "go") is None
    assert warm.guess(0.9, "go") is None


def test_only_increments_have_a_row_that_moves_nothing(make_policy):
    policy = make_policy("regression")
    neutral = neutral_row(policy.spec.action, policy.action)
    for group in policy.spec.action.groups:
        part = neutral[policy.spec.action.slices[group.name]]
        assert bool(part.isnan().all()) == (group.kind not in ("delta", "velocity"))
    moved = policy.actions(torch.nan_to_num(neutral)[None, None])[0, 0]
    for group in policy.spec.action.groups:
        if group.kind in ("delta", "velocity"):
            np.testing.assert_allclose(moved[policy.spec.action.slices[group.name]], 0, atol=1e-6)


@pytest.mark.parametrize("decode", [("plain", 0.5), ("exact", 0.0), ("bac", 1.5)])
def test_a_warm_start_that_cannot_be_is_refused(decode):
    with pytest.raises(ValueError, match=r"decode\.warm_start: expected a share in \(0, 1\]"):
        Decode(decode[0], warm_start=decode[1])


def test_masked_diffusion_tells_of_its_rounds_and_keeps_deadlines(make_policy, observations):
    policy = make_policy("discrete_diffusion", decoding={"rounds": 6})
    found = policy.begin(0).predict([observations[0]])
    assert found.facts["rounds"] == 6
    assert 0 < found.facts["confidence"] < 1
    late = policy.decoding(Decode("plain", deadline=0.0)).begin(0).predict([observations[0]])
    assert (late.facts["rounds"], late.facts["forced"]) == (1, policy.head.tokenizer.num_tokens)
    assert (found.facts["late"], late.facts["late"]) == (0, 1)
    hurried = policy.begin(0).predict([observations[0]], deadline=0.0)
    np.testing.assert_array_equal(late.actions, hurried.actions)
    assert hurried.facts["late"] == 1
    once = policy.decoding(Decode("plain", steps=1)).begin(0).predict([observations[0]])
    np.testing.assert_array_equal(late.actions, once.actions)
    sure = policy.decoding(Decode("plain", confident=1e-6))
    assert sure.spec.decode == {"mode": "plain", "precision": "fp32", "rounds": 6, "confident": 1e-6}
    assert sure.begin(0).predict([observations[0]]).facts["rounds"] == 1


@pytest.mark.parametrize("options", [{"confident": 0.9}, {"deadline": 0.1}])
def test_other_heads_have_no_rounds_to_end(make_policy, options):
    with pytest.raises(ValueError, match="expected a discrete_diffusion head, got beast"):
        make_policy("beast").decoding(Decode("plain", **options))


def test_what_chunks_say_reaches_the_row(make_policy, tmp_path):
    options = {"decoding": {"rounds": 3}}
    save_policy(tmp_path / "dd", make_policy("discrete_diffusion", **options), options, {})
    play = runner("env=reach", "env.size=16", "env.max_steps=20", f"policy={tmp_path / 'dd'}")
    chunks = play(Job(0, 0))["timing"]["chunks"]
    assert chunks["rounds"] == 3
    assert set(chunks) == {"rounds", "forced", "confidence", "late", "cut"}


@pytest.mark.parametrize(
    ("head", "options"),
    [
        *(("diffusion", {"denoising": TWELVE}), ("flow", {}), ("regression", {}), ("beast", {})),
        *(("autoregressive", {}), ("discrete_diffusion", {}), ("beast", {"tokens": "continuous"})),
    ],
)
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_another_precision_is_in_the_weights_and_told_and_nearly_the_same(
    make_policy, observations, tmp_path, head, options, precision
):
    whole = make_policy(head, **options)
    save_policy(tmp_path / "saved", whole, options, {})
    half = load_policy(tmp_path / "saved", decode=Decode("plain", precision=precision))
    assert half.dtype == torch.bfloat16
    assert half.spec.decode["precision"] == half.precision == precision
    assert ("Int8" in str(half.backbone.decoder)) == (precision == "int8")
    assert {value.dtype for value in half.head.parameters()} == {torch.bfloat16}
    given = np.zeros((2, half.spec.action.size), np.float32)
    for committed in (None, given):
        found = half.begin(0).predict(observations[:1], committed).actions
        wanted = load_policy(tmp_path / "saved").begin(0).predict(observations[:1], committed).actions
        assert found.dtype == np.float32
        # Tokens nearly as likely as the first may win: most rows are near, not all.
        assert np.median(np.abs(found - wanted)) < 0.05
    if head in ("diffusion", "flow"):
        exact = half.decoding(Decode("exact")).begin(0).predict(observations[:1]).actions
        np.testing.assert_allclose(exact, half.begin(0).predict(observations[:1]).actions, atol=0.05)


def test_a_precision_that_is_not_active_is_refused(make_policy, tmp_path, monkeypatch):
    save_policy(tmp_path / "saved", make_policy("beast"), {}, {})
    with pytest.raises(ValueError, match="fp8: expected a GPU that multiplies fp8, got cpu; take bf16"):
        load_policy(tmp_path / "saved", decode=Decode("plain", precision="fp8"))
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ValueError, match=r"int8: expected torchao, got .*pip install 'vla_runtime\[quantise\]'"):
        load_policy(tmp_path / "saved", decode=Decode("plain", precision="int8"))
    with pytest.raises(ValueError, match="expected weights in bf16, got fp32; load the policy with it"):
        make_policy("beast").decoding(Decode("plain", precision="bf16"))
    with pytest.raises(ValueError, match="expected one of fp32, bf16, int8, fp8, got 'fp4'"):
        Decode(precision="fp4")


def test_graphs_are_refused_for_weights_that_save_memory_only(make_policy, tmp_path):
    save_policy(tmp_path / "saved", make_policy("beast"), {}, {})
    with pytest.raises(ValueError, match=r"decode\.graphs: expected a precision that saves time, got int8"):
        load_policy(tmp_path / "saved", decode=Decode("plain", precision="int8", graphs=True))


def test_a_deadline_counts_from_the_observation_on(make_policy, observations, monkeypatch):
    policy = make_policy("discrete_diffusion", decoding={"rounds": 6}).decoding(Decode("plain", deadline=0.15))
    clock, encode = SystemClock(), policy.backbone.encode_scene

    def slow(*scene):
        clock.sleep_until(clock.now() + 0.2)
        return encode(*scene)

    monkeypatch.setattr(policy.backbone, "encode_scene", slow)
    assert policy.begin(0).predict([observations[0]]).facts["rounds"] == 1


def test_what_a_checkpoint_names_stands_where_nothing_else_is_asked(denoising):
    (denoising / "decode.json").write_text(json.dumps({"mode": "exact", "graphs": True}))
    with pytest.raises(ValueError, match="expected a CUDA device"):
        load_policy(denoising)
    assert "graphs" not in load_policy(denoising, decode=Decode(graphs=False)).spec.decode


def test_graphs_without_a_gpu_are_refused(make_policy):
    for head in ("beast", "discrete_diffusion"):
        with pytest.raises(ValueError, match=r"decode\.graphs: expected a CUDA device, got cpu"):
            make_policy(head).decoding(Decode("plain", graphs=True))


def test_steps_that_are_asked_for_are_those_that_are_taken(denoising):
    """A warm start and a schedule that a checkpoint names belong to its own steps."""
    (denoising / "decode.json").write_text(json.dumps({"mode": "exact", "warm_start": 0.2}))
    assert load_policy(denoising).spec.decode["warm_start"] == 0.2
    for asked in (Decode(sampler="ddim", steps=4), Decode(sampler="ddim")):
        found = load_policy(denoising, decode=asked)
        assert "warm_start" not in found.spec.decode
        assert found.spec.decode["steps"] == (asked.steps or 12)
    (denoising / "decode.json").write_text(json.dumps({"mode": "exact", "sampler": "ddim", "steps": 3}))
    assert load_policy(denoising, decode=Decode(sampler="ddpm")).spec.decode["steps"] == 12
    assert load_policy(denoising, decode=Decode(steps=4)).spec.decode["sampler"] == "ddim"


def test_what_a_checkpoint_names_of_other_steps_is_left_with_them(make_policy, tmp_path):
    """Refreshes and rounds that end early belong to its rounds, its steps to no schedule but theirs."""
    head = make_policy("discrete_diffusion").head
    (tmp_path / "decode.json").write_text(json.dumps({"mode": "bac", "refresh": [0, 2], "confident": 0.9}))
    found = Decode(steps=4).named(tmp_path, head)
    assert (found.mode, found.refresh, found.confident, found.steps) == ("plain", None, None, 4)
    (tmp_path / "decode.json").write_text(json.dumps({"mode": "exact", "sampler": "dpm", "steps": 5}))
    found = Decode(schedule="mine.json").named(tmp_path, make_policy("diffusion").head)
    assert (found.mode, found.sampler, found.steps, found.schedule) == ("bac", None, None, "mine.json")
    found = Decode(schedule="mine.json", sampler="ddim", steps=5).named(tmp_path, head)
    assert (found.mode, found.sampler, found.steps) == ("bac", "ddim", 5)
