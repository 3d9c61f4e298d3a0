"""Runs with a served policy: where it was served is not what it is, and a token stays a secret."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numbered import Policy, Recording
from served import serving

from policies.checkpoint import load_policy
from vla_runtime.compose import load
from vla_runtime.evaluation.folder import read_rows
from vla_runtime.rollout import rollout
from vla_runtime.serving.server import Access


class Weighed(Policy):
    """Says what weights it has."""

    def __init__(self, weights):
        super().__init__(Recording(size=64))
        self.spec = replace(self.spec, weights=weights)


def run(out, server, *options):
    shared = ("env=reach", "env.size=64", "env.max_steps=10", "episodes=1", "video=none", f"out={out}")
    return rollout(load("rollout", [*shared, "policy=remote", f"policy.address={server.address}", *options]))


@pytest.mark.usefixtures("needs_sim")
@pytest.mark.parametrize("loop", [(), ("loop=async", "loop.join=prefix", "loop.latency=0.1")])
def test_rows_of_a_served_policy_are_those_of_one_here(tmp_path, loop):
    """All that a row says but for its timing, under which address and encoding stand."""
    # Neither is told in which control its actions are meant: each says so itself.
    shared = ("env=lift", "env.max_steps=30", "episodes=2", "video=none", *loop)
    rollout(load("rollout", [*shared, "policy=nano_lift_beast", f"out={tmp_path / 'here'}"]))
    with serving(load_policy("nano_lift_beast", {}, "cpu")) as server:
        there = ("policy=remote", f"policy.address={server.address}", "policy.encoding=raw")
        rollout(load("rollout", [*shared, *there, f"out={tmp_path / 'there'}"]))
    here, there = (read_rows(tmp_path / name) for name in ("here", "there"))
    assert {row["timing"].pop("encoding") for row in there} == {"raw"}
    assert {row["timing"].pop("address") for row in there} == {server.address}
    for one, other in zip(here, there, strict=True):
        assert one.pop("timing").keys() == other.pop("timing").keys()
        assert one == other


def cut_short(out):
    """As if it had been killed before its last episode."""
    path = out / "episodes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))


def test_a_run_goes_on_with_the_same_weights_elsewhere(tmp_path):
    with serving(Weighed("a")) as server:
        whole, _ = run(tmp_path / "run", server)
    cut_short(tmp_path / "run")
    with serving(Weighed("b")) as server, pytest.raises(ValueError, match="expected to go on with the weights"):
        run(tmp_path / "run", server)
    with serving(Weighed("a")) as server:
        again, _ = run(tmp_path / "run", server, "policy.timeout=20")
    assert again["episodes"] == whole["episodes"]


class Breaking(Weighed):
    """Breaks in the second session."""

    def begin(self, seed):
        self.begun = getattr(self, "begun", 0) + 1
        if self.begun == 2:
            raise LookupError("out of memory")
        return super().begin(seed)


def test_what_a_server_broke_is_no_failure_of_the_policy_and_runs_again(tmp_path):
    """A crashed server was scored as a failed policy, with exit code 0, and its episodes were never run again."""
    with serving(Breaking("a")) as server:
        broken, code = run(tmp_path / "run", server)
    assert (code, broken["errors"], broken["infrastructure_errors"], broken["complete"]) == (1, 1, 1, False)
    assert "says nothing about it; the same command runs them again" in (tmp_path / "run/report.html").read_text()
    first = {row["episode"]: row for row in read_rows(tmp_path / "run") if row["error"] is None}
    with serving(Weighed("a")) as server:
        whole, code = run(tmp_path / "run", server)
    assert (code, whole["errors"], whole["infrastructure_errors"], whole["complete"]) == (0, 0, 0, True)
    rows = read_rows(tmp_path / "run")
    assert len(rows) == whole["episodes"]
    # What was finished was not played again.
    assert all(row in rows for row in first.values())


def test_nan_is_the_policys_own_failure(tmp_path):
    def behave(session, seed):
        plain = session.predict

        def predict(observations, committed=None, deadline=None):
            chunk = plain(observations)
            return replace(chunk, actions=np.full_like(chunk.actions, np.nan))

        session.predict = predict
        return session

    policy = Policy(Recording(size=64), behave)
    policy.spec = replace(policy.spec, weights="a")
    with serving(policy) as server:
        summary, code = run(tmp_path / "run", server)
    assert (code, summary["infrastructure_errors"], summary["complete"]) == (0, 0, True)
    assert summary["errors"] == summary["episodes"]
    assert {row["error_source"] for row in read_rows(tmp_path / "run")} == {"policy"}


def test_a_server_that_does_not_say_what_it_serves_is_known_by_its_address(tmp_path):
    with serving(Weighed(None)) as server:
        run(tmp_path / "run", server)
    cut_short(tmp_path / "run")
    with serving(Weighed(None)) as server, pytest.raises(ValueError, match="which does not say what weights it serves"):
        run(tmp_path / "run", server)


def test_no_file_holds_the_token(tmp_path):
    with serving(Weighed("a"), Access(token="open sesame")) as server:
        run(tmp_path / "run", server, "policy.token=open sesame", "record.ticks=true")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 3
    assert not [path for path in files if b"sesame" in path.read_bytes()]
