"""What a robot's side may state, and what it may not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from robots import reach_robot

from vla_runtime.contract import Contract, differences
from vla_runtime.robot_faults import require_robot
from vla_runtime.robot_side import TWIST, CameraStream, CommandStream, Desk, RobotSide, StateStream, Topic
from vla_runtime.types import ActionSpec, Group, SpecMismatch, StateSpec

_COMMAND = {"topic": "/c", "names": ["a", "b"], "stop": "hold"}


def test_document_round_trip(tmp_path):
    one = reach_robot()
    path = tmp_path / "robot.yaml"
    one.save(path)
    again = Contract.load(path)
    assert again.document() == one.document()
    assert differences(one, again) == []
    without = replace(one, robot=None)
    assert "robot" not in without.document()
    assert differences(one, without) == []


def test_what_has_a_default_may_be_left_out():
    document = reach_robot().robot.document()
    for name in ("skew", "expiry", "desk"):
        del document[name]
    document["cameras"]["hand"] = {"topic": "/hand"}
    read = RobotSide.read(document)
    assert (read.cameras["hand"], read.skew, read.desk) == (CameraStream("/hand"), 0.05, Desk())


def test_every_difference_of_two_robots_is_listed():
    one = reach_robot()
    other = reach_robot(
        skew=0.1, desk=Desk(stop="/halt"), action={"joints": CommandStream("/x", ("j2", "j1"), "cease")}
    )
    found = "\n".join(differences(one, other))
    for word in ("robot.skew", "robot.desk.stop", "robot.action.joints.topic", "names", "stop: expected 'cease'"):
        assert word in found


@pytest.mark.parametrize(
    ("control", "changes", "words"),
    [
        ("absolute", {"action": {"joints": CommandStream("/c", ("a", "b"), "zero")}}, "zeros of an absolute group"),
        ("velocity", {"action": {"joints": CommandStream("/c", ("a", "b"), "hold")}}, "expected zero for"),
        ("velocity", {"action": {"joints": CommandStream("/c", ("a", "b"), "cease")}}, "expected zero for"),
        ("absolute", {"action": {"joints": CommandStream("/c", ("a",), "hold")}}, "names: expected 2 different ones"),
        ("absolute", {"action": {"joints": CommandStream("/c", ("a", "a"), "hold")}}, "names: expected 2 different"),
        ("absolute", {"action": {"arm": CommandStream("/c", ("a", "b"), "hold")}}, r"action: expected streams for \["),
        ("absolute", {"cameras": {}}, r"cameras: expected streams for \['overhead', 'hand'\]"),
        ("absolute", {"action": {"joints": CommandStream("/c", ("a", "b"), "float")}}, "stop: expected one of hold"),
        ("absolute", {"action": {"joints": CommandStream("/c", ("a", "b"), "hold", "x/msg/Y")}}, "type: expected one"),
        ("absolute", {"action": {"joints": CommandStream("/c", ("a", "b"), "hold", scale=0.0)}}, "numbers than 0"),
        ("absolute", {"action": {"joints": CommandStream("/c", ("a", "b"), "hold", scale=(1.0, 0.0))}}, "than 0"),
        ("absolute", {"action": {"joints": CommandStream("/c", ("a", "b"), "hold", offset=(1.0,))}}, "one number or 2"),
        ("absolute", {"action": {"joints": CommandStream("/c", ("a", "b"), "hold", "geometry_msgs/msg/Twist")}},
         "names: expected among linear.x"),
        ("absolute", {"action": {"joints": CommandStream("/c", ("a", "b"), "hold", rotation="rot6d")}},
         "expected none for a group that is no rotation"),
        ("absolute", {"action": {"joints": CommandStream("/c", ("linear.x", "linear.y"), "hold", TWIST)}},
         "expected velocities in a geometry_msgs/msg/Twist, got a group of kind absolute"),
        ("absolute", {"state": {"joints": StateStream("/j", ("a", "b"), max_age=0.0), "position": StateStream(
            "/j", ("x", "y"))}}, "max_age: expected more than 0"),
        ("absolute", {"desk": Desk(stop="stop")}, "desk stop: expected an absolute name"),
        ("absolute", {"skew": 0.0, "expiry": -1.0}, r"2 faults:\n  skew.*\n  expiry"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(control, changes, words):
    with pytest.raises(SpecMismatch, match=words):
        reach_robot(control, **changes)


def test_a_faulty_document_is_refused_by_name(tmp_path):
    document = reach_robot().document()
    document["robot"]["cameras"]["hand"] = {"topik": "/hand"}
    with pytest.raises(SpecMismatch, match="robot cameras 'hand': expected keys among"):
        Contract.read(document)
    with pytest.raises(SpecMismatch, match="robot: expected a map, got 'mine'"):
        Contract.read({**document, "robot": "mine"})
    with pytest.raises(SpecMismatch, match="expected a YAML file"):
        Contract.load(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(SpecMismatch, match="expected a map in"):
        Contract.load(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("action", {"topic": "/c", "names": "ab", "stop": "hold"}, "names: expected a list of text, got 'ab'"),
        ("action", {"topic": "/c", "names": ["a", 2], "stop": "hold"}, "names: expected"),
        ("action", {**_COMMAND, "scale": "2.0"}, "scale: expected a finite number .* without quotes"),
        ("action", {**_COMMAND, "scale": float("nan")}, "scale: expected a finite number"),
        ("action", {**_COMMAND, "topic": None}, "topic: expected text, got None"),
        ("action", {**_COMMAND, "reliable": "false"}, "reliable: expected true or false"),
        ("action", {**_COMMAND, "depth": True}, "depth: expected a whole number"),
        ("state", {"topic": "/s", "names": ["a", "b"], "max_age": float("inf")}, "max_age: expected a finite number"),
    ],
)
def test_values_of_the_wrong_kind_are_named(part, values, words):
    document = reach_robot().document()
    document["robot"][part]["joints"] = values
    with pytest.raises(SpecMismatch, match=f"robot {part} 'joints', {words}"):
        Contract.read(document)
    for name, value in (("expiry", "0.2"), ("skew", None), ("name", 3)):
        broken = reach_robot().document()
        broken["robot"][name] = value
        with pytest.raises(SpecMismatch, match=f"robot, {name}: expected"):
            Contract.read(broken)


def test_groups_of_one_topic_do_not_share_names_and_mean_the_same():
    spec = ActionSpec((_group("arm", "velocity"), _group("hand", "absolute")))
    state = StateSpec((_group("arm", "measured"),))
    side = RobotSide(
        "r", {}, {"arm": StateStream("/s", ("a",))},
        {"arm": CommandStream("/c", ("a",), "cease"), "hand": CommandStream("/c", ("a",), "cease")},
    )  # fmt: skip
    with pytest.raises(SpecMismatch, match=r"names: expected others .* got \['a'\]\n .*velocities or goals, got both"):
        require_robot(side, (), state, spec)
    moved = ActionSpec((_group("arm", "delta"), _group("hand", "absolute")))
    with pytest.raises(SpecMismatch, match="expected goals or velocities, got increments"):
        require_robot(side, (), state, moved)


def _group(name, kind):
    return Group(name, ("x",), kind, "1", (-1.0,), (1.0,))


def test_topics_have_absolute_names():
    for name in ("image", "/image/"):
        with pytest.raises(SpecMismatch, match="absolute name"):
            Topic(name, "std_msgs/msg/Empty")
    with pytest.raises(SpecMismatch, match="depth from 1 on"):
        Topic("/a", "std_msgs/msg/Empty", depth=0)


def test_a_state_stream_says_which_of_the_lists():
    state = {"joints": StateStream("/j", ("a", "b"), field="angle"), "position": StateStream("/j", ("x", "y"))}
    with pytest.raises(SpecMismatch, match="field: expected one of position, velocity, effort"):
        reach_robot(state=state)


def _stream(topic, *names, **rest):
    return StateStream(topic, names, **{"max_age": 1.0, **rest})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cameras": {name: CameraStream("/same") for name in ("overhead", "hand")}},
         "topic /same: expected one use, got camera 'overhead' and camera 'hand'"),
        ({"cameras": {"overhead": CameraStream("/joint_states"), "hand": CameraStream("/hand")}},
         "topic /joint_states: expected one use, got camera 'overhead' and the state"),
        ({"state": {"joints": _stream("/arm/command", "a", "b"), "position": _stream("/p", "x", "y")}},
         "topic /arm/command: expected one use, got the state and commands"),
        ({"state": {"joints": _stream("/j", "a", "b"), "position": _stream("/j", "b", "c")}},
         "state 'position', names: expected values that no other group reads from /j, got 'b', which 'joints' reads"),
        ({"state": {"joints": _stream("/j", "a", "b"), "position": _stream("/j", "x", "y", reliable=True)}},
         "state 'position', reliable: expected False as of the others on /j, got True"),
        ({"desk": Desk(stop="/vla/reset")}, "topic /vla/reset: expected one use, got desk stop and desk reset"),
        ({"desk": Desk(instruction="/vla/status/gate")}, "got desk instruction and the gate's status"),
        ({"cameras": {"overhead": CameraStream("/a", depth=0), "hand": CameraStream("/b")}}, "depth: expected 1 or"),
        ({"name": ""}, "name: expected text, got none"),
        *(({"desk": Desk(stop=name)}, "desk stop: expected an absolute name") for name in
          ("/", "//a", "~/a", "/a/", "/a b", "/a-b", "/1a", "/a/{b}")),
    ],
)  # fmt: skip
def test_what_excludes_each_other_is_refused(changes, words):
    with pytest.raises(SpecMismatch, match=words):
        reach_robot(**changes)


def test_one_joint_may_be_read_as_position_and_as_velocity():
    state = {"joints": _stream("/j", "a", "b"), "position": _stream("/j", "a", "b", field="velocity")}
    assert reach_robot(state=state).robot.state["position"].field == "velocity"


def test_a_group_of_the_action_means_what_the_state_of_its_name_tells():
    """A robot that is to stand is commanded to where the state says it is, dimension by dimension."""
    contract = reach_robot()
    (group,) = contract.action.groups
    for change, words in (
        ({"dims": group.dims[::-1]}, "dims: expected .'elbow', 'shoulder'. as in the action"),
        ({"units": "deg"}, "units: expected deg as in the action, got rad"),
    ):
        with pytest.raises(SpecMismatch, match=f"state 'joints', {words}"):
            replace(contract, action=ActionSpec((replace(group, **change),)))


def test_velocities_are_not_converted_as_rotations():
    turn = Group("turn", ("x", "y", "z"), "velocity", "rad/s", (-1.0,) * 3, (1.0,) * 3, rotation="axis_angle")
    state = StateSpec((_group("arm", "measured"),))
    stream = CommandStream("/c", tuple("abcd"), "zero", rotation="quaternion_xyzw")
    side = RobotSide("r", {}, {"arm": StateStream("/s", ("a",))}, {"turn": stream})
    with pytest.raises(SpecMismatch, match="rotation: expected none for a group of kind velocity"):
        require_robot(side, (), state, ActionSpec((turn,)))


def test_all_faults_of_a_document_are_in_one_message():
    document = reach_robot().document()
    document["robot"]["cameras"]["hand"]["maxage"] = 1
    document["robot"]["desk"]["stop"] = 3
    document["robot"]["expiry"] = "0.2"
    with pytest.raises(SpecMismatch, match="3 faults") as caught:
        Contract.read(document)
    for words in ("got 'maxage'", "robot desk, stop: expected text or null, got 3", "robot, expiry: expected a finite"):
        assert words in str(caught.value)
