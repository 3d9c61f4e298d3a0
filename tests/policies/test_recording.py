"""A learned policy's episode, recorded with its images and decided again, decoding included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from policies.checkpoint import save_policy
from vla_runtime.compose import load
from vla_runtime.control.recorder import Recording
from vla_runtime.rollout import rollout


@pytest.fixture
def recording(make_policy, tmp_path):
    """The folder of the policy and the recording of one of its episodes, with images."""
    save_policy(tmp_path / "small", make_policy("discrete_diffusion"), {}, {})
    options = ["env=reach", "env.size=16", "env.tasks=[0]", "env.max_steps=24", f"policy={tmp_path / 'small'}"]
    options += ["episodes=1", "video=none", "loop=async", "loop.latency=0.1", "loop.join=prefix", "record.images=png"]
    summary, code = rollout(load("rollout", [*options, f"out={tmp_path / 'run'}"]))
    assert code == 0
    (row,) = [json.loads(line) for line in Path(summary["out"], "episodes.jsonl").read_text().splitlines()]
    assert row["error"] is None
    return tmp_path / "small", Path(summary["out"], row["recording"])


def test_its_chunks_are_decoded_again(recording, capsys):
    _, path = recording
    asked = sum(tick["asked"] is not None for tick in Recording(path).ticks)
    found, code = rollout(load("rollout", [f"replay={path}", "explain=0.51"]))
    assert (code, found["equal"], found["ticks"]) == (0, True, 24)
    assert found["decoded"] == asked > 2
    assert "answers what was seen at" in capsys.readouterr().out


def test_a_policy_that_was_trained_again_is_not_the_one(recording, make_policy):
    folder, path = recording
    for file in folder.iterdir():
        file.unlink()
    save_policy(folder.with_name("other"), make_policy("discrete_diffusion", decoding={"rounds": 2}), {}, {})
    for file in folder.with_name("other").iterdir():
        file.rename(folder / file.name)
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="expected a policy with weights"):
        rollout(load("rollout", [f"replay={path}"]))
