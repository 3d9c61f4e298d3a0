from __future__ import annotations

import json
from dataclasses import replace

import pytest

from envs.osc_arm import ABSOLUTE, STATE, delta_spec
from envs.reach import Reach
from vla_runtime.contract import Contract, differences, require_match
from vla_runtime.documents import read_yaml
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
    with pytest.raises(SpecMismatch, match="camera 'a': expected keys among name, height, width, got 'depth'"):
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
    with pytest.raises(ValueError, match="speed: expected a finite number above 0"):
        replace(ABSOLUTE.groups[0], speed=0.0)


def edited(part, **changes):
    document = contract(action=ABSOLUTE).document()
    document[part][-1] = {**document[part][-1], **changes}
    return document


def without(part, key):
    document = contract(action=ABSOLUTE).document()
    del document[part][-1][key]
    return document


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (without("state", "units"), "state group 'fingers': expected the key 'units', got none; add it"),
        (without("cameras", "width"), "camera 'a': expected the key 'width'"),
        (edited("action", dims="g"), "action group 'gripper', dims: expected a list of text, got 'g'"),
        (edited("state", low=-1.5), "state group 'fingers', low: expected a list of numbers, .* got -1.5"),
        (edited("state", low=[None, 0.0]), "state group 'fingers', low: expected a list of numbers"),
        (edited("state", low=[float("nan"), 0.0]), "state group 'fingers', low: expected a list of numbers"),
        (edited("state", low=[float("inf")] * 2, high=[float("inf")] * 2), "expected low <= high in dimension 'left'"),
        (edited("state", low=[0.0]), r"low: expected as many numbers as dims \(2\), got 1"),
        (edited("state", dims=["left", "left"]), "dims: expected one or more different names"),
        (edited("state", kind="absolute"), "state group 'fingers': kind: expected measured, got 'absolute'"),
        (edited("action", kind="abs"), "action group 'gripper': kind: expected one of absolute"),
        (edited("action", low=[-float("inf")]), "expected finite low < high of a binary group"),
        (edited("action", open=1.0, close=1.0), "open, close: expected two different finite numbers, got 1.0 and 1.0"),
        (edited("action", open=None), "open, close: expected both or neither, got None and 1.0"),
        (edited("action", open=-5.0), "open, close: expected values from low to high, got -5.0 and 1.0"),
        (edited("action", open="open"), "open: expected a finite number or null, got 'open'"),
        (edited("action", rest=[3.0]), "rest: expected values from low to high"),
        (edited("action", dead_band=-1.0), "dead_band: expected 0 or a finite number above it"),
        (edited("action", dead_band=None), "dead_band: expected a finite number, got None"),
        (edited("cameras", height="128"), "camera 'a', height: expected a whole number, got '128'; write numbers"),
        (edited("cameras", height=0), "camera 'a': height: expected a whole number of pixels, got 0"),
        (edited("cameras", height=8.5), "camera 'a', height: expected a whole number, got 8.5"),
        (edited("cameras", name=7), "camera 1 of 1, name: expected text, got 7"),
        ({**contract().document(), "cameras": None}, "cameras: expected a list, got nothing .null.; write .. for none"),
        ({**contract().document(), "cameras": ["a"]}, "camera 1 of 1: expected a map, got 'a'"),
        ({**contract().document(), "action": []}, "action: expected one group or more, got none"),
        ({**contract().document(), "version": "1"}, "expected version 1, got '1'; write version: 1, a number"),
        (None, "contract: expected a map, got nothing"),
        ({1: 2}, "contract: expected keys of text, got 1; put it in quotes"),
    ],
)  # fmt: skip
def test_every_field_is_checked(document, words):
    with pytest.raises(SpecMismatch, match=words):
        Contract.read(document)


@pytest.mark.parametrize("rate", [0, -20, "20", None, float("inf"), float("nan"), True, 10**400])
def test_a_rate_is_a_number_of_periods_a_second(rate):
    with pytest.raises(SpecMismatch, match="rate_hz: expected a finite number"):
        Contract.read({**contract().document(), "rate_hz": rate})


@pytest.mark.parametrize("key", ["horizon", "instruction", "statistics"])
def test_other_values_have_their_types(key):
    for value in (0, 1.5, ["x"]):
        with pytest.raises(SpecMismatch, match=f"{key}: expected"):
            Contract.read({**contract().document(), key: value})


def test_names_are_there_once():
    document = contract().document()
    with pytest.raises(SpecMismatch, match=r"cameras: expected every name once, got \['a', 'a'\]"):
        Contract.read({**document, "cameras": document["cameras"] * 2})
    with pytest.raises(SpecMismatch, match="state: group names must differ"):
        Contract.read({**document, "state": document["state"] * 2})


def test_unbounded_joints_are_a_range():
    document = edited("state", low=[-float("inf")] * 2, high=[float("inf")] * 2)
    assert Contract.read(document).state.group("fingers").high == (float("inf"),) * 2


def test_a_file_is_named_with_what_is_wrong_in_it(tmp_path):
    path = tmp_path / "c.yaml"
    contract().save(path)
    text = path.read_text()
    for written, words in (
        (text + "rate_hz: 5.0\n", f"expected every key once, got 'rate_hz' twice.*\n.*in \"{path}\", line"),
        (text.replace("rate_hz: 20.0", "rate_hz: 2e1"), f"{path}: contract: rate_hz: .* with a point before"),
        (text.replace("  units: m\n", "", 1), f"{path}: contract: state group 'position': expected the key 'units'"),
        (text.replace("kind: delta", "kind: jump", 1), f"{path}: contract: action group 'position': kind: expected"),
        ("", f"contract: expected a map in {path}, got nothing"),
        ("when: 2026-99-99", f"contract: expected a YAML file, got {path}"),
    ):  # fmt: skip
        path.write_text(written)
        with pytest.raises(SpecMismatch, match=words):
            Contract.load(path)
    path.write_bytes(b"name: \xe9\n")
    with pytest.raises(SpecMismatch, match=f"expected a YAML file in UTF-8, got {path} with the byte 0xe9 at 6; save"):
        Contract.load(path)


def test_yaml_may_repeat_itself_by_reference(tmp_path):
    """An anchor merged into a map, whose keys the map states itself, is no key that is stated twice."""
    path = tmp_path / "c.yaml"
    path.write_text("base: &base {a: 1, b: 2}\nother: {<<: *base, a: 3}\n")
    assert read_yaml(path, "test")["other"] == {"a": 3, "b": 2}
