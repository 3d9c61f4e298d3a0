from __future__ import annotations

import json
import math

import pytest

from vla_runtime.evaluation.folder import (
    Job,
    RowFile,
    check_same_parts,
    check_same_run,
    claim,
    in_order,
    job_of,
    read_rows,
    sort_rows,
)

CONFIG = {"env": {"control": "delta"}, "episodes": 2, "out": "a", "workers": 1}


def row(episode, task=0):
    return {"task": task, "episode": episode, "success": True, "loop": {"latency": 0.0}}


def test_rows_survive_and_are_sorted(tmp_path):
    file = RowFile(tmp_path, [])
    for episode in (2, 0, 1):
        file.append(row(episode))
    file.close()
    assert [one["episode"] for one in read_rows(tmp_path)] == [2, 0, 1]
    assert [one["episode"] for one in sort_rows(tmp_path)] == [0, 1, 2]
    assert [one["episode"] for one in read_rows(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("damage", ['{"task": 0, "epi', "\x00\x00", '{"task": 0}', "[]"])
def test_a_damaged_last_line_is_dropped_with_a_warning(tmp_path, damage, caplog):
    good = json.dumps(row(0)) + "\n"
    (tmp_path / "episodes.jsonl").write_text(good + damage)
    assert read_rows(tmp_path) == [row(0)]
    assert "damaged and dropped" in caplog.text
    RowFile(tmp_path, read_rows(tmp_path)).close()
    assert (tmp_path / "episodes.jsonl").read_text() == json.dumps(row(0), sort_keys=True) + "\n"


def test_damage_in_the_middle_and_repeats_are_refused(tmp_path):
    path = tmp_path / "episodes.jsonl"
    path.write_text('{"task": 0, "epi\n' + json.dumps(row(0)) + "\n")
    with pytest.raises(ValueError, match="line 1 is damaged"):
        read_rows(tmp_path)
    path.write_text(2 * (json.dumps(row(0)) + "\n"))
    with pytest.raises(ValueError, match="line 2 repeats task 0 episode 0 latency 0s"):
        read_rows(tmp_path)


@pytest.mark.parametrize("changes", [{"task": None}, {"episode": "0"}, {"loop": {}}, {"loop": {"latency": math.nan}}])
def test_a_row_that_is_no_episode_of_a_run_is_damaged(tmp_path, changes):
    path = tmp_path / "episodes.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in ({**row(0), **changes}, row(1))))
    with pytest.raises(ValueError, match="line 1 is damaged"):
        read_rows(tmp_path)


def test_another_config_is_refused_with_a_diff(tmp_path):
    claim(tmp_path, CONFIG)
    check_same_run(tmp_path, {**CONFIG, "workers": 4, "out": "elsewhere"})
    with pytest.raises(ValueError, match=r"env\.control: 'delta' there, 'absolute' asked for"):
        check_same_run(tmp_path, {**CONFIG, "env": {"control": "absolute"}})


def late(latency):
    return {**row(0), "loop": {"latency": latency}}


def test_an_episode_is_played_once_with_each_latency(tmp_path):
    rows = [late("logs/robot.json"), late(0.2), late(0), late(0.05)]
    assert [job_of(one).latency for one in in_order(rows)] == [0.0, 0.05, 0.2, "logs/robot.json"]
    RowFile(tmp_path, rows).close()
    assert [job_of(one) for one in read_rows(tmp_path)][2] == Job(0, 0, 0.0)
    assert str(job_of(rows[0])) == "task 0 episode 0 latency robot"
    RowFile(tmp_path, [late(0), late(0.0)]).close()
    with pytest.raises(ValueError, match="line 2 repeats"):
        read_rows(tmp_path)


@pytest.mark.parametrize("what", ["weights", "decode", "statistics", "contract", "control", "versions"])
def test_rows_that_something_else_made_are_not_gone_on_with(tmp_path, what):
    parts = dict.fromkeys(("weights", "decode", "statistics", "contract", "control", "versions"), "one")
    made = {**row(0), **parts, "timing": {}}
    check_same_parts(tmp_path, [made], parts, {}, None)
    with pytest.raises(ValueError, match=f"expected to go on with the {what} of its rows, one, got another"):
        check_same_parts(tmp_path, [made], {**parts, what: "another"}, {}, None)
