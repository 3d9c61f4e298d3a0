from __future__ import annotations

import json
from dataclasses import replace

import pytest

from envs.osc_arm import ABSOLUTE, STATE, delta_spec
from envs.reach import Reach
from vla_runtime.contract import Contract, differences, require_match
from vla_runtime.types import ActionSpec, CameraSpec, PolicySpec, SpecMismatch


def contract(**changes):
    return replace(Contract((CameraSpec("a", 8, 8),), STATE, delta_spec(), 20.0, 16, statistics="s1"), **changes)


@pytest.mark.parametrize("action", [delta_spec(), delta_spec(0.1), ABSOLUTE])
def test_document_round_trip(action, tmp_path):
    one = contract(action=action)
    one.save(tmp_path / "saved.yaml")
    for again in (Contract.read(json.loads(json.dumps(one.document()))), Contract.load(tmp_path / "saved.yaml")):
        assert again.document() == one.document()
        assert again.fingerprint() == one.fingerprint()
        assert differences(one, again) == []


def test_all_differences_are_listed_at_once():
    other = contract(cameras=(CameraSpec("b", 8, 8),), action=delta_spec(0.1), rate_hz=10.0, horizon=8, statistics="s2")
    found = "\n".join(differences(contract(), other))
    for word in ("'b'", "dead_band", "rate_hz", "horizon", "statistics"):
        assert word in found
    with pytest.raises(SpecMismatch, match="5 differences"):
        require_match(contract(), other, "robot", "policy")


def test_what_one_side_does_not_state_is_no_difference():
    assert differences(contract(horizon=None, statistics=None), contract()) == []
    assert differences(contract(cameras=(CameraSpec("a", 8, 8), CameraSpec("b", 8, 8))), contract()) == []


def test_another_control_and_another_size_differ():
    other = contract(action=ABSOLUTE, cameras=(CameraSpec("a", 16, 16),))
    found = differences(other, contract())
    assert "camera 'a': expected (8, 8, 3), got (16, 16, 3)" in found
    assert "action group 'position', kind: expected delta, got absolute" in found
    assert "action group 'rotation', rotation: expected axis_angle, got rot6d" in found


def test_versions_and_keys_are_checked():
    document = contract().document()
    with pytest.raises(SpecMismatch, match="version 1, got 2"):
        Contract.read({**document, "version": 2})
    with pytest.raises(SpecMismatch, match="keys"):
        Contract.read({**document, "colour": "red"})
    with pytest.raises(SpecMismatch, match="unknown keys"):
        Contract.read({**document, "cameras": [{"name": "a", "height": 1, "width": 1, "depth": True}]})


def test_env_and_policy_state_theirs():
    spec = Reach().spec
    have = Contract.of(spec)
    want = Contract.of(PolicySpec("p", spec.cameras, spec.state, spec.action, spec.period, 8, statistics="x"))
    assert (have.horizon, want.horizon, want.statistics) == (None, 8, "x")
    assert differences(have, want) == []


def test_how_fast_a_robot_may_move_is_its_own_affair():
    quick = ActionSpec(tuple(replace(group, speed=0.5) for group in ABSOLUTE.groups))
    robot, policy = contract(action=quick), contract(action=ABSOLUTE)
    assert differences(robot, policy) == differences(policy, robot) == []
    assert Contract.read(json.loads(json.dumps(robot.document()))).action.groups[0].speed == 0.5
    # Whoever states nothing says nothing: what was written before is the same document still.
    assert "speed" not in policy.document()["action"][0]
    with pytest.raises(ValueError, match="speed expected more than 0"):
        replace(ABSOLUTE.groups[0], speed=0.0)
