"""What shards may become, and what they must not replace; that they add up is `test_rollout`'s."""

from __future__ import annotations

import pytest

from vla_runtime.compose import BadArguments, load
from vla_runtime.evaluation.folder import read_rows
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
