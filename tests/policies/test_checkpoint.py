"""One folder in, one policy out: strict, and without running anything."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from envs.reach import Reach
from policies.checkpoint import CONFIG, HEADS, WEIGHTS, CheckpointError, load_policy, save_policy
from policies.vla import VLAPolicy
from vla_runtime.testing import check_policy

HEAD_NAMES = sorted(HEADS)


@pytest.fixture
def saved(make_policy, tmp_path):
    policy = make_policy()
    save_policy(tmp_path / "small", policy, {}, {"step": 3})
    return tmp_path / "small", policy


def observation():
    env = Reach(size=16)
    env.reset(0, 0, 0)
    return env.observe(("overhead", "hand"))


def test_weights_beyond_fp16_replace_nothing(saved):
    folder, policy = saved
    before = (folder / WEIGHTS).read_bytes()
    with torch.no_grad():
        next(policy.head.parameters()).view(-1)[0] = 1e6
    with pytest.raises(CheckpointError, match="expected weights that fp16 can say, got others in"):
        save_policy(folder, policy, {}, {"step": 4})
    assert (folder / WEIGHTS).read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("head", HEAD_NAMES)
def test_round_trip_of_every_head(make_policy, tmp_path, head):
    policy = make_policy(head)
    for part in (policy.backbone, policy.head):
        part.half().float()  # what fp16 keeps
    save_policy(tmp_path / head, policy, {}, {})
    again = VLAPolicy.from_pretrained(tmp_path / head)
    one, two = (p.begin(1).predict([observation()]) for p in (policy, again))
    assert (one.actions == two.actions).all()
    assert again.spec.seen == policy.spec.seen
    assert again.spec.statistics == policy.spec.statistics


@pytest.mark.parametrize("head", HEAD_NAMES)
def test_policies_of_every_head_conform(make_policy, head):
    policy = make_policy(head)
    env = Reach(size=16)
    check_policy(policy, env.spec)


@pytest.mark.parametrize("head", HEAD_NAMES)
def test_parallel_sessions_equal_sequential_ones(make_policy, head):
    """Each in a thread of its own, all at once."""
    options = {"denoising": {"sampler": "ddpm", "steps": 5, "train_steps": 5}} if head == "diffusion" else {}
    policy, seeds = make_policy(head, **options), range(6)

    def episode(seed):
        session = policy.begin(seed)
        return np.stack([session.predict([observation()]).actions for _ in range(3)])

    sequential = [episode(seed) for seed in seeds]
    with ThreadPoolExecutor(len(seeds)) as pool:
        together = list(pool.map(episode, seeds))
    assert all((one == other).all() for one, other in zip(sequential, together, strict=True))


def test_interleaved_sessions_equal_sequential_ones(make_policy):
    policy = make_policy("diffusion", denoising={"sampler": "ddpm", "steps": 5, "train_steps": 5})
    alone = [[policy.begin(seed)] for seed in (1, 2, 3)]
    sequential = [[session.predict([observation()]).actions for _ in range(3)] for (session,) in alone]
    together = [policy.begin(seed) for seed in (1, 2, 3)]
    for step in range(3):
        for session, expected in zip(together, sequential, strict=True):
            assert (session.predict([observation()]).actions == expected[step]).all()


def test_committed_rows_come_back_exactly(make_policy):
    policy = make_policy("flow")
    given = policy.begin(1).predict([observation()]).actions[:2] * 0.9
    chunk = policy.begin(1).predict([observation()], committed=given)
    assert (chunk.actions[:2] == given).all()
    with pytest.raises(ValueError, match="at most 2 rows"):
        policy.begin(1).predict([observation()], committed=chunk.actions[:3])


def test_a_device_that_is_not_there_is_an_error(saved):
    folder, _ = saved
    with pytest.raises(ValueError, match="device: expected one that this machine has"):
        load_policy(folder, device="cuda:99")


@pytest.mark.gpu
def test_a_gpu_answers_as_the_cpu_does(make_policy, tmp_path):
    save_policy(tmp_path / "small", make_policy("regression"), {}, {})
    one, two = (
        load_policy(tmp_path / "small", device=device).begin(1).predict([observation()]).actions
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(one, two, atol=1e-4)


def edit(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / CONFIG).unlink(), "expected a checkpoint folder"),
        (lambda folder: (folder / CONFIG).write_text("{"), "expected JSON"),
        (lambda folder: edit(folder, version=2), "version 1, got 2"),
        (lambda folder: edit(folder, extra=1), r"unknown \['extra'\]"),
        (lambda folder: edit(folder, head={"name": "os.system", "options": {}}), "nothing was imported or run"),
        (lambda folder: edit(folder, backbone={"name": "posix.system", "config": {}}), "nothing was imported"),
        (lambda folder: edit(folder, tokenizer={"name": "builtins.eval", "state": {}}), "nothing was imported"),
        (lambda folder: edit(folder, tokenizer=None), "expected a tokenizer"),
        (lambda folder: edit(folder, state={"low": [0.0], "high": [float("inf")]}), "finite low <= high"),
        (lambda folder: (folder / WEIGHTS).unlink(), "expected the weights"),
        (lambda folder: os.truncate(folder / WEIGHTS, 1000), "whole safetensors"),
    ],
)
def test_damage_is_refused_with_what_and_where(saved, damage, message):
    folder, _ = saved
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_policy(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("head.out.bias"), r"missing \['head.out.bias'\]"),
        (lambda weights: weights.update(stray=torch.zeros(1)), r"not wanted \['stray'\]"),
        (
            lambda weights: weights.update({"head.out.bias": torch.zeros(3)}),
            r"head.out.bias: expected \[256\], got \[3\]",
        ),
        (lambda weights: weights["head.out.bias"].fill_(torch.nan), "finite"),
    ],
)
def test_weights_must_fit(saved, change, message):
    folder, _ = saved
    weights = load_file(str(folder / WEIGHTS))
    change(weights)
    save_file(weights, str(folder / WEIGHTS))
    with pytest.raises(CheckpointError, match=message):
        load_policy(folder)


def test_saving_that_fails_leaves_the_previous_checkpoint(saved, monkeypatch):
    folder, policy = saved
    before = (folder / WEIGHTS).read_bytes()

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("policies.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_policy(folder, policy, {}, {})
    assert (folder / WEIGHTS).read_bytes() == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["small"]
    load_policy(folder)
    # Killed after the old folder was moved away and before the new one took its place.
    folder.rename(folder.with_name(".small.old"))
    with pytest.raises(OSError, match="No space left"):
        save_policy(folder, policy, {}, {})
    assert (folder / WEIGHTS).read_bytes() == before
