"""What shards may become, and what they must not replace; that they add up is `test_rollout`'s."""

from __future__ import annotations

import json

import pytest

from vla_runtime.compose import BadArguments, load
from vla_runtime.evaluation.folder import read_rows
from vla_runtime.evaluation.row_check import FIELDS, check_rows
from vla_runtime.rollout import rollout

REACH = ["env=reach", "env.size=16", "policy=hold", "env.max_steps=3", "episodes=2", "video=none"]


def played(out, *options):
    return rollout(load("rollout", [*REACH, f"out={out}", *options]))


def test_episodes_that_are_there_are_not_replaced_by_others(tmp_path):
    parts = [tmp_path / str(index) for index in (0, 1)]
    for index, part in enumerate(parts):
        played(part, f"shard={index}/2")
    merge = f"merge=[{parts[0]},{parts[1]}]"
    played(tmp_path / "whole", merge)
    whole = read_rows(tmp_path / "whole")
    assert len(whole) == 4
    # Once more changes nothing.
    played(tmp_path / "whole", merge)
    assert read_rows(tmp_path / "whole") == whole
    path = tmp_path / "whole" / "episodes.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(ValueError, match="expected an empty folder, got one with other episodes"):
        played(tmp_path / "whole", merge)
    assert len(read_rows(tmp_path / "whole")) == 3


def test_a_shard_without_episodes_is_refused(tmp_path):
    with pytest.raises(BadArguments, match="shard: expected at most 4 shards of as many episodes, got 4/5"):
        played(tmp_path / "few", "shard=4/5")


def test_rows_of_another_version_are_named_and_nothing_is_replaced(tmp_path):
    played(tmp_path / "run")
    path = tmp_path / "run" / "episodes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    check_rows(tmp_path, rows)
    assert set(FIELDS) == set(rows[0])
    del rows[1]["versions"]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    with pytest.raises(ValueError, match=r"episodes\.jsonl, row 2: expected 'versions' to be a map, got none; it was"):
        played(tmp_path / "run")
    with pytest.raises(ValueError, match="row 2: expected 'versions'"):
        played(tmp_path / "whole", f"merge=[{tmp_path / 'run'}]")
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"success": "yes"}, "expected 'success' to be true or false, got 'yes'"),
        ({"success": 1}, "expected 'success' to be true or false, got 1"),
        ({"steps": True}, "expected 'steps' to be a whole number, got True"),
        ({"error": 3}, "expected 'error' to be text or null, got 3"),
        ({"timing": {"overruns": 0}}, "row 1, timing: expected 'latencies_ms' to be a list, got none"),
        ({"loop": {"latency": 0.0}}, "row 1, loop: expected 'rate_hz' to be a number"),
    ],
)
def test_values_of_another_type_are_named(tmp_path, changes, message):
    types = {key: next(iter(kinds)) for key, kinds in FIELDS.items()}
    row = {key: kind() for key, kind in types.items()}
    row |= {"loop": {"latency": 0.0, "rate_hz": 20.0}, "timing": {"latencies_ms": [], "overruns": 0}}
    check_rows(tmp_path, [row])
    with pytest.raises(ValueError, match=message):
        check_rows(tmp_path, [{**row, **changes}])
