"""A learned policy's episode, recorded with its images and decided again, decoding included."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
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


@pytest.mark.parametrize(("head", "join", "tokenizer"), [
    ("flow", "guide", None), ("diffusion", "guide", None), ("discrete_diffusion", "pin", {"name": "bins"}),
    ("beast", "prefix", None),
])  # fmt: skip
def test_whatever_the_join_it_is_decided_again_and_what_was_told_is_executed(
    make_policy, tmp_path, head, join, tokenizer
):
    save_policy(tmp_path / "small", make_policy(head, tokenizer), {}, {})
    options = ["env=reach", "env.size=16", "env.tasks=[0]", "env.max_steps=30", f"policy={tmp_path / 'small'}"]
    options += ["episodes=1", "video=none", "loop=async", "loop.latency=0.1", f"loop.join={join}", "loop.replan=4"]
    options += ["record.images=png", "limits.groups={joints: {speed: 0.4}}"]
    summary, _ = rollout(load("rollout", [*options, f"out={tmp_path / 'run'}"]))
    (path,) = Path(summary["out"], "recordings").iterdir()
    found, code = rollout(load("rollout", [f"replay={path}"]))
    assert (code, found["equal"], found["cut_short"]) == (0, True, False)
    assert found["decoded"] > 3
    ticks = Recording(path).ticks
    told = [
        (index, tick["asked"]) for index, tick in enumerate(ticks) if tick["asked"] is not None and len(tick["asked"])
    ]
    assert len(told) > 3
    for index, rows in told:
        executed = np.stack([tick["command"] for tick in ticks[index : index + len(rows)]])
        np.testing.assert_array_equal(executed, rows[: len(executed)])
    assert any(tick["broken"] for tick in ticks)


def test_in_real_time_a_policy_thinks_in_a_process_of_its_own(make_policy, tmp_path):
    save_policy(tmp_path / "small", make_policy("beast"), {}, {})
    options = ["env=reach", "env.size=16", "env.tasks=[0]", "env.max_steps=40", f"policy={tmp_path / 'small'}"]
    options += ["episodes=2", "video=none", "loop=async", "loop.clock=system", "loop.planner=process"]
    summary, code = rollout(load("rollout", [*options, f"out={tmp_path / 'run'}"]))
    found = [json.loads(line) for line in Path(summary["out"], "episodes.jsonl").read_text().splitlines()]
    assert [row["error"] for row in found] == [None, None]
    assert all(row["loop"]["latency"] == "measured" and row["plans"] >= 2 for row in found)
    assert found[0]["timing"]["period_error_ms"]["p50"] is not None
    delays = json.loads(Path(summary["out"], "latencies.json").read_text())
    assert len(delays) == sum(row["plans"] for row in found)
    # Whole periods of the loop's own clock.
    assert all(delay > 0 and abs(delay / 0.05 - round(delay / 0.05)) < 1e-3 for delay in delays)
    again, code = rollout(load("rollout", [f"replay={Path(summary['out'], found[0]['recording'])}"]))
    assert (code, again["equal"]) == (0, True)
    forecast = [one for one in options if not one.startswith(("loop.clock", "loop.planner"))]
    summary, _ = rollout(
        load("rollout", [*forecast, f"loop.latency={summary['out']}/latencies.json", f"out={tmp_path / 'f'}"])
    )
    assert summary["errors"] == 0
