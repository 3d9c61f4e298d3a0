"""What holds without being asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from numbered import Numbered, Recording

from vla_runtime.control.settings import Settings
from vla_runtime.types import ActionSpec

LOOP = {"mode": "sync", "replan": 4}
SAFETY = {"plan": 5.0, "observation": 1.0}


@pytest.mark.parametrize(
    ("asked", "held"),
    [(None, {"speed": 0.5, "acceleration": 4.0}), ({"joints": {"speed": 0.2}}, {"speed": 0.2, "acceleration": 4.0}),
     ({"joints": {"speed": 0.2, "acceleration": None}}, {"speed": 0.2, "acceleration": None})],
)  # fmt: skip
def test_limits_that_a_robot_states_hold_where_nobody_asks_for_others(asked, held):
    spec = Recording().spec
    (group,) = spec.action.groups
    stated = replace(spec, action=ActionSpec((replace(group, speed=0.5, acceleration=4.0),)))
    policy = Numbered(Recording()).spec
    found = Settings(LOOP, {"level": "clamp", "groups": asked}, SAFETY, stated, policy)
    assert found.facts["limits"] == {"level": "clamp", "groups": {"joints": held}}
    assert "limits" not in Settings(LOOP, {"level": "clamp", "groups": None}, SAFETY, spec, policy).facts


@pytest.mark.parametrize("kept", ["warm_start", "guide"])
def test_a_robot_that_stands_has_not_come_to_where_time_says(kept):
    spec, policy = Recording().spec, Numbered(Recording()).spec
    policy, limits = replace(policy, decode={kept: 0.2}), {"level": "clamp", "groups": None}
    for late in (0.2, [0.0, 0.2], "measured"):
        with pytest.raises(ValueError, match=rf"decode\.{kept}: expected loop\.mode=async or loop\.latency=0"):
            Settings({**LOOP, "latency": late}, limits, SAFETY, spec, policy)
    for late in (0.0, [0, 0.0]):
        Settings({**LOOP, "latency": late}, limits, SAFETY, spec, policy)


@pytest.mark.parametrize("join", ["prefix", "pin", "guide"])
def test_a_robot_that_stands_executes_no_rows_that_a_policy_could_be_told_of(join):
    spec, policy = Recording().spec, Numbered(Recording()).spec
    policy = replace(policy, pins=True, decode={"guide": True})
    with pytest.raises(ValueError, match=rf"loop\.join={join}: expected loop\.mode=async, got a robot that stands"):
        Settings({**LOOP, "join": join}, {"level": "clamp", "groups": None}, SAFETY, spec, policy)
