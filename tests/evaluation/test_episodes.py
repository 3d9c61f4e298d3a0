"""Rows of episodes that are driven with a planner beside the loop."""

from __future__ import annotations

import pytest
from playing import runner

from vla_runtime.compose import BadArguments
from vla_runtime.evaluation.folder import Job, check_same_parts


def row(*options):
    play = runner("env=reach", "env.size=16", "policy=expert", *options)
    (latency,) = play.facts["latencies"]
    found = play(Job(0, 0, latency))
    play.close()
    return found


def test_without_latency_a_planner_beside_the_loop_changes_nothing():
    steady, beside = row(), row("loop=async")
    assert beside["loop"]["mode"] == "async"
    for name in ("success", "steps", "plans", "progress", "initial_state", "held"):
        assert steady[name] == beside[name]


def test_latency_costs_time_and_is_in_the_row():
    late = row("loop=async", "loop.latency=0.25")
    assert late["loop"]["latency"] == 0.25
    assert late["held"] >= 5  # it stands until the first chunk is there
    assert late["steps"] > row()["steps"]


def test_limits_and_safety_are_options_and_what_they_do_is_in_the_row():
    free = row()
    assert (free["limits"], free["safety"]) == ({}, [])
    slow = row("limits.groups={joints: {speed: 0.4}}")
    assert slow["limits"] == {"joints speed": slow["clamped"]}
    assert slow["clamped"] > 0
    assert slow["steps"] > free["steps"]
    assert slow["loop"]["limits"] == {"level": "clamp", "groups": {"joints": {"speed": 0.4}}}
    warned = row("limits.groups={joints: {speed: 0.4}}", "limits.level=warn")
    assert (warned["clamped"], warned["steps"]) == (0, free["steps"])
    stopped = row("limits.groups={joints: {speed: 0.4}}", "limits.level=stop")
    assert "LimitExceeded: limits: at 0.000 s joints: expected speed at most 0.4" in stopped["error"]
    assert stopped["limits"] == {}
    late = row("loop=async", "loop.latency=3.0", "safety.plan=2.0")
    assert (late["success"], late["reason"]) == (False, "stopped")
    ((time, what, why),) = late["safety"]
    assert (time, what) == (2.05, "stopped")
    assert late["timeline"]["safety"][0][0] == 41
    assert late["plan_age"] == {"p50": None, "p95": None, "p99": None}
    assert free["plan_age"]["p50"] == 0.0
    assert why.startswith("plan: expected one within 2.0 s")


def test_a_bad_line_is_in_the_row_and_frozen_cameras_stop_the_robot():
    assert row()["faults"] == {"late": 0.0, "lost": 0.0, "freeze": 0.0, "freeze_s": 0.5, "action_late": 0}
    late = row("faults.action_late=4", "loop=async")
    assert late["faults"]["action_late"] == 4
    assert late["steps"] > row()["steps"]
    frozen = row("env.control=absolute", "faults.freeze=1.0", "faults.freeze_s=60", "safety.observation=0.3")
    # An expert does not look, so that only a policy that does is stopped.
    assert frozen["safety"] == []


def test_in_step_it_stands_while_it_thinks():
    steady, stood = row(), row("loop.latency=0.1")
    assert stood["success"]
    assert stood["delay"] == pytest.approx(0.1)
    # At every question, and nothing of what it was doing goes on meanwhile.
    assert stood["held"] == 2 * stood["plans"]
    assert stood["steps"] == pytest.approx(steady["steps"] + stood["held"], abs=stood["held"] // 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["loop.latency=-1"], "expected seconds from 0 on"),
        (["loop.latency=[0,0.1,0.0]"], "all with different names"),
        (["loop.latency=[]"], "expected at least one"),
        (
            ["loop.join=glue"],
            "loop.join: expected one of newest, prefix, pin, guide, blend, ensemble, adaptive, spline, got 'glue'",
        ),
        (["loop.join=prefix"], "expected a policy that takes committed rows, got"),
        (["loop.join=spline"], "expected a policy whose chunks have curves"),
        (["limits.level=hope"], "limits.level: expected one of warn, clamp, stop, got 'hope'"),
        (["limits.groups={wings: {speed: 1}}"], "wings"),
        (["safety.plan=0"], "safety.plan: expected more than 0 seconds"),
    ],
)
def test_loops_that_cannot_be_are_refused(options, message):
    with pytest.raises(BadArguments, match=message):
        row("loop=async", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("env=reach", "env.size=16"), "env=reach has a control rate of its own"),
        (("env=lift", "env.control=absolute", "loop.rate=30"), r"expected a whole part of the physics' 500 Hz.*got 30"),
        (("env=lift", "env.control=absolute", "loop.rate=12.5"), r"expected a whole part.*got 12\.5"),
        (("env=lift",), "expected env.control=absolute, got delta at 100 Hz"),
    ],
)
def test_a_control_rate_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=rf"loop\.rate: .*{message}"):
        runner("policy=expert", "loop.rate=100", *options)


def test_a_controller_may_be_faster_than_its_policy():
    play = runner("env=lift", "policy=nano_lift_beast", "loop=async", "loop.join=spline", "loop.rate=100")
    found = play(Job(0, 0, 0.0))
    play.close()
    assert found["error"] is None
    assert found["loop"]["rate_hz"] == 100
    assert found["success"]
    # Two questions are eight rows of the policy apart, forty periods of the controller.
    assert [tick for tick, _ in found["timeline"]["chunks"]][:3] == [0, 40, 80]


def test_what_breaks_a_film_breaks_no_run(monkeypatch, caplog):
    """The command that ended an episode is given once more for its film."""
    play = runner("env=reach", "env.size=16", "policy=hold", "env.max_steps=5")
    play._video = "failures"

    def broken(*_):
        raise RuntimeError("no renderer")

    monkeypatch.setattr(play, "_record", broken)
    row = play(Job(0, 0, 0.0))
    assert (row["video"], row["error"], row["steps"]) == (None, None, 5)
    assert "no video" in caplog.text


def test_a_recorded_profile_is_known_by_what_it_holds(tmp_path):
    path = tmp_path / "latencies.json"
    found = []
    for seconds in (0.1, 0.1, 0.2):
        path.write_text(f"[{seconds}]")
        play = runner(
            "env=reach", "env.size=16", "policy=hold", "loop=async", f"loop.latency={path}", "env.max_steps=5"
        )
        found.append(play(Job(0, 0, str(path)))["loop"]["profile"])
        rows = [play(Job(0, 0, str(path)))]
    assert found[0] == found[1] != found[2]
    check_same_parts(tmp_path, rows, rows[0], play.facts["profiles"], None)
    with pytest.raises(ValueError, match=rf"the profile {path} of its rows, {found[2]}, got 0"):
        check_same_parts(tmp_path, rows, rows[0], {str(path): "0"}, None)
