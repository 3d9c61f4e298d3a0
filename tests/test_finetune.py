"""The command: from a recorded set to a folder that a rollout runs, one head as easily as another."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_runtime import collect, finetune
from vla_runtime.compose import BadArguments, load
from vla_runtime.evaluation.episodes import EpisodeRunner

TINY = [
    *("steps=3", "batch_size=4", "warmup=1", "validate_every=3", "validate_samples=4", "horizon=8", "max_committed=2"),
    *("backbone.image_size=16", "backbone.width=32", "backbone.heads=2", "backbone.decoder_depth=1"),
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    out = tmp_path_factory.mktemp("recorded") / "reach"
    collect.collect(load("collect", ["env=reach", "env.size=16", "episodes=4", "workers=1", f"out={out}"]))
    return out


def train(recorded, out, *options):
    return finetune.finetune(load("finetune", [f"data={recorded}", f"out={out}", *TINY, *options]))


@pytest.mark.parametrize("options", [["head=beast"], ["head=flow", "tokenizer=none"]])
def test_what_is_trained_can_be_run_by_its_folder(recorded, tmp_path, options):
    line, code = train(recorded, tmp_path / "small", *options)
    assert (code, line["steps"]) == (0, 3)
    assert line["loss_last"] > 0
    config = load("rollout", ["env=reach", "env.size=16", f"policy={line['checkpoint']}", "seed=3"])
    assert config["choices"]["policy"] == line["checkpoint"]
    row = EpisodeRunner(config, "none", Path("unused"))((0, 0))
    assert row["error"] is None
    assert row["statistics"] is not None
    assert row["init_seen"] is False


def test_a_checkpoint_for_another_environment_is_refused(recorded, tmp_path):
    line, _ = train(recorded, tmp_path / "small")
    config = load("rollout", ["env=reach", "env.size=32", f"policy={line['checkpoint']}"])
    with pytest.raises(ValueError, match=r"camera 'overhead': expected \(16, 16, 3\), got \(32, 32, 3\)"):
        EpisodeRunner(config, "none", Path("unused"))


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


def test_arguments(recorded, tmp_path):
    with pytest.raises(BadArguments, match="data: expected"):
        finetune.finetune(load("finetune", [f"out={tmp_path / 'a'}"]))
    with pytest.raises(BadArguments, match="expected one of them"):
        finetune.finetune(load("finetune", [f"data={recorded}"]))
    (tmp_path / "there").mkdir()
    with pytest.raises(BadArguments, match="resume="):
        train(recorded, tmp_path / "there")
