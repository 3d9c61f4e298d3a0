"""The command: from a recorded set to a folder that a rollout runs, one head as easily as another."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from playing import runner

from policies import training
from policies.checkpoint import load_policy
from policies.recipe import spread
from vla_runtime import collect, disk, finetune
from vla_runtime.compose import BadArguments, load
from vla_runtime.control.clock import SystemClock
from vla_runtime.data.reader import Dataset
from vla_runtime.evaluation.folder import Job

TINY = [
    *("steps=3", "batch_size=4", "warmup=1", "validate_every=3", "validate_samples=4"),
    *("horizon=8", "executed=4", "max_committed=2"),
    *("backbone.image_size=16", "backbone.width=32", "backbone.heads=2", "backbone.decoder_depth=1"),
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    out = tmp_path_factory.mktemp("recorded") / "reach"
    collect.collect(load("collect", ["env=reach", "env.size=16", "episodes=4", "workers=1", f"out={out}"]))
    return out


class Code:
    """What runs code where it is loaded without care."""

    def __reduce__(self):
        return os.abort, ()


def train(recorded, out, *options):
    return finetune.finetune(load("finetune", [f"data={recorded}", f"out={out}", *TINY, *options]))


def again(recorded, out, *options):
    return finetune.finetune(load("finetune", [f"data={recorded}", f"resume={out}", *TINY, *options]))


@pytest.fixture(scope="module")
def trained_once(recorded, tmp_path_factory):
    out = tmp_path_factory.mktemp("once") / "small"
    train(recorded, out)
    return out


@pytest.mark.parametrize("options", [["head=beast"], ["head=flow", "tokenizer=none"]])
def test_what_is_trained_can_be_run_by_its_folder(recorded, tmp_path, options):
    line, code = train(recorded, tmp_path / "small", *options)
    assert (code, line["steps"]) == (0, 3)
    assert line["loss_last"] > 0
    options = ("env=reach", "env.size=16", f"policy={line['checkpoint']}", "seed=3")
    row = runner(*options)(Job(0, 0))
    assert row["policy"] == line["checkpoint"]
    assert row["error"] is None
    assert row["statistics"] is not None
    assert row["init_seen"] is False
    assert row["loop"]["replan"] == 4


def test_a_checkpoint_for_another_environment_is_refused(recorded, tmp_path):
    line, _ = train(recorded, tmp_path / "small")
    options = ("env=reach", "env.size=32", f"policy={line['checkpoint']}")
    with pytest.raises(ValueError, match=r"camera 'overhead': expected \(16, 16, 3\), got \(32, 32, 3\)"):
        runner(*options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["head=flow"], "expected tokenizer=none"),
        (["head=beast", "tokenizer=none"], "expected a tokenizer"),
        (["horizon=4"], "at least as many rows"),
        (["control=absolute"], "control: expected one of"),
        (["backbone.image_size=50"], "multiple of 16"),
    ],
)
def test_what_does_not_fit_is_named_before_training(recorded, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(recorded, tmp_path / "small", *options)
    assert not (tmp_path / "small").exists()


def test_what_is_known_beforehand_is_written(recorded, tmp_path, caplog):
    with caplog.at_level("INFO"):
        train(recorded, tmp_path / "small")
    report = json.loads((tmp_path / "small.fit.json").read_text())
    assert report["ranges"]["state"]["cut"] == {}
    velocities = report["ranges"]["action"]["cut"]
    assert all(0 < one["share"] <= 0.03 for one in velocities.values())
    assert report["tokens"] == 8 * len(report["dimensions"])
    assert "about" in caplog.text
    assert "at the peak: weights" in caplog.text
    assert list((tmp_path / "small.curves").glob("events.out.tfevents.*"))


def test_a_head_on_the_frozen_trunk_of_another(recorded, tmp_path):
    train(recorded, tmp_path / "trunk", "head=regression", "tokenizer=none")
    frozen = ["freeze_trunk=true", f"init.folder={tmp_path / 'trunk'}"]
    line, _ = train(recorded, tmp_path / "head", "head=discrete_diffusion", *frozen)
    one, two = (load_policy(path).backbone for path in (tmp_path / "trunk", tmp_path / "head"))
    pairs = zip(one.trunk_parameters(), two.trunk_parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert 0 <= line["token_accuracy"] <= 1


def test_resume_takes_the_same_settings_only(recorded, tmp_path):
    whole, _ = train(recorded, tmp_path / "small", "save_every=1")
    with pytest.raises(ValueError, match=r"recipe\.batch_size was 4, is 8"):
        again(recorded, tmp_path / "small", "save_every=1", "batch_size=8")
    with pytest.raises(ValueError, match=r"head\.name was 'beast', is 'autoregressive'"):
        again(recorded, tmp_path / "small", "save_every=1", "head=autoregressive")
    with pytest.raises(ValueError, match=r"executed was .*, is 2"):
        again(recorded, tmp_path / "small", "save_every=1", "executed=2")
    assert again(recorded, tmp_path / "small", "save_every=1")[0]["loss_last"] == whole["loss_last"]


def test_kill_9_and_resume_give_the_same_losses(recorded, tmp_path):
    options = ["steps=150", "validate_every=150", "save_every=5"]
    state = tmp_path / "killed.training.pt"
    process = subprocess.Popen(
        [sys.executable, "-m", "vla_runtime.finetune", f"data={recorded}", f"out={state.parent / 'killed'}", *TINY]
        + options,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    clock = SystemClock()
    deadline = clock.now() + 120
    while not state.exists() and process.poll() is None and clock.now() < deadline:
        clock.sleep_until(clock.now() + 0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(torch.load(state, weights_only=True)["losses"])
    assert 0 < done < 150
    resumed, _ = again(recorded, tmp_path / "killed", *options)
    whole, _ = train(recorded, tmp_path / "whole", *options)
    assert {**resumed, "checkpoint": None} == {**whole, "checkpoint": None}
    one, two = (torch.load(tmp_path / f"{name}.training.pt", weights_only=True) for name in ("killed", "whole"))
    assert one["losses"] == two["losses"]


@pytest.mark.parametrize("option", ["freeze_trunk=true", "lora.rank=4"])
def test_what_has_learned_nothing_is_not_frozen(recorded, tmp_path, option):
    with pytest.raises(ValueError, match="expected a backbone that has learned something"):
        train(recorded, tmp_path / "small", option)


def test_instructions_that_cannot_be_read_are_said_before_training(recorded, tmp_path):
    with pytest.raises(ValueError, match="expected 1 to 3 bytes"):
        train(recorded, tmp_path / "small", "+backbone.max_bytes=3")
    assert not (tmp_path / "small").exists()


def test_an_interruption_says_how_to_go_on(recorded, tmp_path, monkeypatch):
    stop_at = 1

    def interrupted(source, recipe, step, part):
        if step == stop_at:
            raise KeyboardInterrupt
        return draw(source, recipe, step, part)

    draw = training._draw
    monkeypatch.setattr(training, "_draw", interrupted)
    with pytest.raises(RuntimeError, match="interrupted; the same command starts over: nothing was saved yet"):
        train(recorded, tmp_path / "small")
    with pytest.raises(ValueError, match=r"expected the training state .*; begin with out=.*small instead of resume="):
        again(recorded, tmp_path / "small")
    stop_at = 2
    with pytest.raises(RuntimeError, match=r"interrupted; with resume=.*small instead of out=.*small the same command"):
        train(recorded, tmp_path / "small", "save_every=1")
    with pytest.raises(RuntimeError, match="interrupted; the same command goes on from what was saved last"):
        again(recorded, tmp_path / "small", "save_every=1")


def test_a_full_disk_says_how_to_go_on(recorded, tmp_path, monkeypatch):
    sink = disk._Sink

    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self):
            pass

    monkeypatch.setattr(disk, "_Sink", lambda file: sink(Full()))
    with pytest.raises(OSError, match=r"No space left on device; free some, then the same command starts over.*small"):
        train(recorded, tmp_path / "small", "save_every=1")
    assert not list(tmp_path.glob(".tmp-*"))
    # What was validated before the state was saved is kept.
    with pytest.raises(OSError, match=r"begin with another out=; what was learned so far is in .*other \(init.folder="):
        train(recorded, tmp_path / "other", "validate_every=1")
    assert load_policy(tmp_path / "other").spec.horizon == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:10_000]), "cannot be read as one"),
        (lambda path: path.write_bytes(b""), r"cannot be read as one \(EOFError\)"),
        (lambda path: torch.save({"a": 1}, path), r"expected \['average', .* got \['a'\]"),
        (lambda path: torch.save(Code(), path), r"cannot be read as one \(UnpicklingError\)"),
    ],
)
def test_a_state_that_is_none_is_named(trained_once, recorded, change, message):
    path = trained_once.with_name(f"{trained_once.name}.training.pt")
    kept = path.read_bytes()
    change(path)
    try:
        with pytest.raises(ValueError, match=message) as caught:
            again(recorded, trained_once)
    finally:
        path.write_bytes(kept)
    assert str(path) in str(caught.value)
    assert f"init.folder={trained_once} init.parts=all" in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_resume_needs_the_same_data_instructions_included(trained_once, recorded, tmp_path):
    shutil.copytree(recorded, tmp_path / "reworded")
    path = tmp_path / "reworded/meta/vla_runtime.json"
    own = json.loads(path.read_text())
    own["episodes"][0]["instruction"] = "something else"
    path.write_text(json.dumps(own))
    with pytest.raises(ValueError, match=r"expected the settings of .*, got: data was"):
        again(tmp_path / "reworded", trained_once)


def test_one_of_the_cameras_is_enough(recorded, tmp_path):
    line, _ = train(recorded, tmp_path / "small", "cameras=[hand]", "head=regression", "tokenizer=none")
    policy = load_policy(line["checkpoint"])
    assert [camera.name for camera in policy.spec.cameras] == ["hand"]
    assert policy.backbone.config.cameras == ("hand",)
    row = runner("env=reach", "env.size=16", f"policy={line['checkpoint']}", "seed=3")(Job(0, 0))
    assert row["error"] is None
    with pytest.raises(ValueError, match=r"expected some of \['overhead', 'hand'\], each once, got \['wrist'\]"):
        train(recorded, tmp_path / "other", "cameras=wrist")


@pytest.mark.parametrize(
    "option",
    [
        *("clip=-1", "clip=0", "learning_rate=0", "learning_rate=nan", "state_dropout=2", "state_noise=-1", "seed=-1"),
        *("executed=1.5", "executed=0", "observation_offsets=[-0.5,0]", "weight_decay=-1", "warmup=-1", "steps=2.5"),
        *("precision=fp64", "lora.alpha=0", "overfit=0", "max_committed=-1"),
    ],
)
def test_ranges_are_checked_before_data_are_read(tmp_path, option):
    name, _, value = option.partition("=")
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got '?{re.escape(value[:3])}") as caught:
        train(tmp_path / "there is none", tmp_path / "small", option)
    assert "data set" not in str(caught.value)


def test_arguments(recorded, tmp_path):
    with pytest.raises(BadArguments, match="data: expected"):
        finetune.finetune(load("finetune", [f"out={tmp_path / 'a'}"]))
    with pytest.raises(BadArguments, match="expected one of them"):
        finetune.finetune(load("finetune", [f"data={recorded}"]))
    (tmp_path / "there").mkdir()
    with pytest.raises(BadArguments, match="resume="):
        train(recorded, tmp_path / "there")


def test_what_is_pinned_stays_and_what_was_learned_follows_it(recorded, tmp_path):
    """Rows that are given are executed as they are, learned or not; after those that were learned comes what was."""
    bins = ("head=discrete_diffusion", "tokenizer=bins", "head.decoding.rounds=4", "overfit=4", "steps=180")
    quick = ("learning_rate=0.003", "validate_every=180", "batch_size=16")
    line, _ = train(recorded, tmp_path / "small", *bins, *quick)
    policy = load_policy(line["checkpoint"])
    assert policy.spec.pins
    dataset = Dataset(recorded, policy.spec.horizon)
    session, errors = policy.begin(0), []
    for index in spread(range(len(dataset)), 4):
        seen, learned = dataset.seen(index, (0,)), dataset.answer(index).actions
        for given in (learned[:2], -learned[:2]):
            rows = session.predict(seen, given).actions
            assert np.array_equal(rows[:2], given)
            errors.append(np.abs(policy.action.forward(rows) - policy.action.forward(learned))[2:].mean())
    assert np.mean(errors[::2]) < 0.05
