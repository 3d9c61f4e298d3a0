"""Runs are written as small folders; what may differ, what pairs, and what the counts say."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from vla_runtime.compare import compare, differing_keys, judge, pair

CONFIG: dict[str, Any] = {
    "env": {"_target_": "envs.robosuite.Lift", "name": "lift", "control": "delta", "size": [96, 96]},
    "policy": {"_target_": "expert", "seed": 0},
    "decode": {"name": "auto"},
    "loop": {"mode": "sync", "latency": 0.0},
    "episodes": 20,
    "seed": 0,
    "out": "runs/a",
    "workers": 1,
    "choices": {"env": "lift", "policy": "expert", "loop": "sync"},
}


def row(episode: int, success: bool, task: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "env": "lift",
        "task": task,
        "task_name": "lift the cube",
        "episode": episode,
        "seed": 0,
        "control": "delta",
        "initial_state": f"{task}-{episode}",
        "success": success,
        "reason": "success" if success else "time",
        "error": None,
        "error_source": None,
        "facts": {"premise": True},
        "versions": {"mujoco": "3.3.7", "robosuite": "1.4.0"},
        "loop": {"mode": "sync", "latency": 0.0},
        "timing": {"wall_s": 1.0},
        **changes,
    }


Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, rows: list[dict[str, Any]], complete: bool = True, **config: Any) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump({**copy.deepcopy(CONFIG), **config}))
        (folder / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "summary.json").write_text(json.dumps({"missing": 0 if complete else 1}))
        return str(folder)

    return write


def rows(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    outcomes = [(True, True)] * both + [(True, False)] * only_a + [(False, True)] * only_b + [(False, False)] * neither
    return [row(i, a) for i, (a, _) in enumerate(outcomes)], [row(i, b) for i, (_, b) in enumerate(outcomes)]


def test_counts_interval_and_verdict(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = rows(430, 14, 22, 34)
    # What may differ, does; and the order of the file does not matter.
    b = b[::-1]
    folders = write("a", a), write("b", b, policy={"_target_": "vla", "seed": 7}, out="runs/b", device="cuda")
    report, code = compare({"a": folders[0], "b": folders[1], "margin": 0.05})
    assert code == 0
    assert report["verdict"] == "non-inferior"
    assert (report["n"], report["both"], report["only_a"], report["only_b"], report["neither"]) == (
        500,
        430,
        14,
        22,
        34,
    )
    assert report["difference"] == pytest.approx(8 / 500), "the candidate is better: positive"
    assert report["ci95"] == pytest.approx([-0.008164, 0.040767], abs=1e-6)
    assert report["ci95_tango"] == pytest.approx([-0.007890, 0.041076], abs=1e-6)
    assert report["p_mcnemar"] == pytest.approx(0.2429850, abs=1e-7)
    assert report["p_mid"] == pytest.approx(0.1877416, abs=1e-7)
    assert report["n_needed"] is None
    captured = capsys.readouterr()
    assert captured.out == "", "stdout belongs to the command's JSON line"
    assert "non-inferior" in captured.err
    json.dumps(report, allow_nan=False)


def test_the_candidate_that_loses_is_inferior(write: Write) -> None:
    a, b = rows(20, 80, 0, 0)
    report, code = compare({"a": write("a", a), "b": write("b", b), "margin": 0.05})
    assert (report["verdict"], code) == ("inferior", 1)
    assert report["difference"] == -0.8
    assert report["ci95"][1] < -0.05
    assert report["n_needed"] is None


def test_too_few_pairs_are_inconclusive(write: Write) -> None:
    a, b = rows(20, 0, 0, 0)
    report, code = compare({"a": write("a", a), "b": write("b", b), "margin": 0.05})
    assert (report["verdict"], code, report["n_needed"]) == ("inconclusive", 1, 73)


def test_exchanging_the_runs_changes_the_sign() -> None:
    a, b = rows(20, 9, 4, 17)
    one, other = judge(pair(a, b)[0], 0.05), judge(pair(b, a)[0], 0.05)
    assert one["difference"] == -other["difference"]
    assert one["ci95"] == pytest.approx([-x for x in other["ci95"][::-1]])
    assert one["p_mcnemar"] == other["p_mcnemar"]


def test_an_error_of_the_policy_is_a_failure(write: Write) -> None:
    a, b = rows(3, 0, 0, 0)
    b[1] = {**b[1], "success": False, "reason": "error", "error": "NaN", "error_source": "policy"}
    report, _ = compare({"a": write("a", a), "b": write("b", b), "margin": 0.05})
    assert (report["both"], report["only_a"], report["errors_a"], report["errors_b"]) == (2, 1, 0, 1)


def test_other_errors_are_no_failures_unless_that_is_asked_for(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    """A server that was killed is not a policy that failed."""
    a, b = rows(3, 0, 0, 0)
    b[1] = row(
        1, success=False, reason="error", error="server gone", error_source="infrastructure", initial_state=None,
        versions={}, facts={},
    )  # fmt: skip
    config = {"a": write("a", a), "b": write("b", b), "margin": 0.05}
    with pytest.raises(ValueError, match=r"b: .*1 of 3 episodes ended in other errors \(1 times: server gone\)"):
        compare(config)
    # Without an initial state it pairs with any.
    report, _ = compare({**config, "errors": "failures"})
    assert (report["both"], report["only_a"], report["errors_a"], report["errors_b"]) == (2, 1, 0, 1)
    assert "they count as failures" in caplog.text
    assert compare({**config, "errors": "ignore"})[1] == 2


@pytest.mark.parametrize("key", ["versions", "success", "facts", "error_source", "initial_state", "env"])
def test_a_row_without_what_is_read_is_named(write: Write, key: str) -> None:
    a, b = rows(3, 0, 0, 0)
    del b[2][key]
    with pytest.raises(ValueError, match=rf"b/episodes\.jsonl, row 3: expected '{key}' to be .*, got none; it was"):
        compare({"a": write("a", a), "b": write("b", b), "margin": 0.05})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.yaml", b"a: [1\n", r"config\.yaml: expected readable YAML"),
        ("config.yaml", b"\xff\xfe", r"config\.yaml: expected readable YAML"),
        ("config.yaml", b"- 1\n", "expected a mapping, got list"),
        ("config.yaml", b"policy: 3\n", "expected a mapping under 'policy', got 3"),
        ("summary.json", b"{", r"summary\.json: expected the summary of a run, got JSONDecodeError"),
        ("summary.json", b"[]", r"summary\.json: expected the summary of a run, got \[\]"),
    ],
)
def test_broken_files_are_named(write: Write, name: str, text: bytes, message: str) -> None:
    a, b = rows(3, 0, 0, 0)
    config = {"a": write("a", a), "b": write("b", b), "margin": 0.05}
    (Path(config["b"]) / name).write_bytes(text)
    with pytest.raises(ValueError, match=message):
        compare(config)


def test_episodes_without_partner_are_refused_with_a_list(write: Write) -> None:
    a, b = rows(4, 0, 0, 0)
    a.append(row(0, success=True, task=1))
    b[2]["initial_state"] = "moved"
    b[3]["loop"] = {"mode": "async", "latency": 0.1}
    with pytest.raises(ValueError, match="no partner") as refused:
        compare({"a": write("a", a), "b": write("b", b), "margin": 0.05})
    message = str(refused.value)
    for line in (
        "task 0 episode 2 latency 0 s: initial state 0-2 in A, moved in B",
        "task 0 episode 3 latency 0 s: only in A",
        "task 0 episode 3 latency 0.1 s: only in B",
        "task 1 episode 0 latency 0 s: only in A",
    ):
        assert line in message
    assert "episode 1" not in message


def test_long_lists_are_shortened(write: Write) -> None:
    a, b = rows(60, 0, 0, 0)
    with pytest.raises(ValueError, match="and 35 more"):
        compare({"a": write("a", a), "b": write("b", b[:5]), "margin": 0.05})


def test_other_differences_are_refused_with_both_values(write: Write) -> None:
    a, b = rows(4, 0, 0, 0)
    for one in b:
        one["versions"] = {"mujoco": "3.4.0", "robosuite": "1.4.0"}
        one["facts"] = {"premise": True, "mujoco_override": True}
        one["control"] = "absolute"
    # What was asked for may differ where it came to the same, which rows say; here it does not.
    env = {**CONFIG["env"], "control": None}
    with pytest.raises(ValueError, match="cannot be compared") as refused:
        compare({"a": write("a", a), "b": write("b", b, env=env, seed=3), "margin": 0.05})
    message = str(refused.value)
    for line in (
        "seed: A has 0, B has 3",
        "row.versions.mujoco: A has '3.3.7', B has '3.4.0' (in 4 of 4 pairs)",
        "row.facts.mujoco_override: A has None, B has True (in 4 of 4 pairs)",
        "row.control: A has 'delta', B has 'absolute' (in 4 of 4 pairs)",
    ):
        assert line in message


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"policy": "expert"}, []),
        ({"policy": {"seed": 5, "new": 1}}, []),
        ({"decode": {"name": "bac"}, "loop": {"mode": "async"}}, []),
        ({"out": "x", "workers": 2, "video": "all", "shard": "0/2", "merge": ["a"], "require": 0.9}, []),
        ({"device": "cuda", "style": "multi"}, []),
        ({"episodes": 10}, ["episodes"]),
        ({"env": {**CONFIG["env"], "size": [64, 64]}}, ["env.size"]),
        ({"env": {**CONFIG["env"], "extra": None}}, ["env.extra"]),
        ({"policies": 1}, ["policies"]),
        ({"choices": {"env": "lift", "policy": "hold", "loop": "async"}}, []),
        ({"choices": {"env": "can", "policy": "expert", "loop": "sync"}}, ["choices.env"]),
    ],
)
def test_what_may_differ(change: dict[str, Any], differs: list[str]) -> None:
    may, may_not = differing_keys(CONFIG, {**CONFIG, **change})
    assert [key for key, _, _ in may_not] == differs
    subject = {"policy", "decode", "loop", "device"} & set(change)
    assert {key.split(".")[0] for key, _, _ in may} >= subject


def test_what_does_differ_is_told(write: Write) -> None:
    a, b = rows(4, 0, 0, 0)
    env = {**CONFIG["env"], "control": None}
    folders = write("a", a, limits={"level": "clamp"}), write("b", b, limits={"level": "warn"}, env=env)
    report, _ = compare({"a": folders[0], "b": folders[1], "margin": 0.9})
    assert report["differing"] == ["limits.level: A has 'clamp', B has 'warn'"]


def test_recorded_latencies_are_what_was_recorded(write: Write) -> None:
    """One file that was recorded again is two; one that was moved is the same."""
    a, b = rows(4, 0, 0, 0)
    for one, path in ((a, "old/latencies.json"), (b, "new/latencies.json")):
        for row in one:
            row["loop"] = {"mode": "async", "latency": path, "profile": "abc"}
    folders = write("a", a), write("b", b)
    assert compare({"a": folders[0], "b": folders[1], "margin": 0.9})[0]["n"] == 4
    for row in b:
        row["loop"] = {"mode": "async", "latency": "old/latencies.json", "profile": "def"}
    with pytest.raises(ValueError, match="have no partner"):
        compare({"a": folders[0], "b": write("c", b), "margin": 0.9})


def test_bad_folders_and_margins(write: Write, tmp_path: Path) -> None:
    a, _ = rows(3, 0, 0, 0)
    run, empty = write("a", a), write("empty", [])
    with pytest.raises(ValueError, match=r"no.*config\.yaml"):
        compare({"a": run, "b": str(tmp_path / "nowhere"), "margin": 0.05})
    with pytest.raises(ValueError, match="finished episodes"):
        compare({"a": run, "b": empty, "margin": 0.05})
    for arguments in ({"a": run, "b": None, "margin": 0.05}, {"a": run, "b": run, "margin": 5}):
        report, code = compare(arguments)
        assert code == 2
        assert "expected" in report["error"]
    with pytest.raises(ValueError, match="twice"):
        pair([*a, a[0]], a)


def test_an_incomplete_run_is_refused(write: Write) -> None:
    """What is missing are the slow episodes, and those fail more often."""
    a, b = rows(3, 0, 0, 0)
    with pytest.raises(ValueError, match="a: expected a complete run, got one that is not"):
        compare({"a": write("a", a, complete=False), "b": write("b", b), "margin": 0.05})


def test_latencies_are_judged_one_by_one(write: Write) -> None:
    """Their episodes begin alike: eight times forty are not three hundred and twenty."""
    a, b = [], []
    for latency, counts in ((0.0, (100, 0, 0, 0)), (0.2, (60, 40, 0, 0))):
        for one, many in zip(rows(*counts), (a, b), strict=True):
            many += [{**found, "loop": {"mode": "async", "latency": latency}} for found in one]
    report, code = compare({"a": write("a", a), "b": write("b", b), "margin": 0.05})
    assert (report["n"], report["verdict"], code) == (200, "inferior", 1)
    assert {label: one["verdict"] for label, one in report["by_latency"].items()} == {
        "0s": "non-inferior", "0.2s": "inferior",
    }  # fmt: skip
    assert report["by_latency"]["0.2s"]["difference"] == -0.4
