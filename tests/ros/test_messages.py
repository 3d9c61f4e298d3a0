"""Values go into messages and come out as they were, converted as declared and never guessed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_runtime.robot_side import ARRAY, COMMANDS, TRAJECTORY, TWIST_STAMPED, CameraStream, CommandStream, StateStream
from vla_runtime.ros.messages import (
    command_message,
    decode,
    encode,
    flag,
    image_message,
    ours,
    read_command,
    read_image,
    read_state,
    read_trajectory,
    stamp,
    state_message,
    theirs,
    trajectory,
)
from vla_runtime.types import CameraSpec, Group, SpecMismatch

RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
CAMERA = CameraSpec("top", 6, 8)
JOINTS = Group("joints", ("a", "b", "c"), "absolute", "rad", (-4,) * 3, (4,) * 3)
TURN = Group("turn", tuple("123456"), "absolute", "1", (-1,) * 6, (1,) * 6, rotation="rot6d")


def picture(seed=0, shape=(6, 8, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def over(message):
    """As it arrives."""
    return decode(message.__msgtype__, encode(message))


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_raw_images_are_byte_equal(turn):
    stream = CameraStream("/top", RAW, turn=turn)
    message = over(image_message(picture(), stream, 12.25, "arm"))
    assert np.array_equal(read_image(message, stream, CAMERA), picture())
    assert stamp(message) == 12.25


def test_turning_is_clockwise():
    stream = CameraStream("/top", RAW, turn=90)
    lying = np.zeros((8, 6, 3), np.uint8)
    lying[0, 0] = 255  # its top left corner
    message = image_message(lying, CameraStream("/top", RAW), 1.0, "")
    upright = read_image(message, stream, CAMERA)
    assert upright[0, -1, 0] == 255


@pytest.mark.parametrize(("encoding", "order"), [("bgr8", [2, 1, 0]), ("rgba8", [0, 1, 2]), ("bgra8", [2, 1, 0])])
def test_other_channels(encoding, order):
    channels = 4 if "a" in encoding else 3
    pixels = np.zeros((6, 8, channels), np.uint8)
    pixels[..., order] = picture()
    message = image_message(picture(), CameraStream("/top", RAW), 1.0, "")
    # Rows padded as drivers do.
    rows = np.concatenate([pixels.reshape(6, -1), np.zeros((6, 5), np.uint8)], axis=1)
    message.encoding, message.step, message.data = encoding, rows.shape[1], rows.reshape(-1)
    assert np.array_equal(read_image(over(message), CameraStream("/top", RAW), CAMERA), picture())


def test_compressed_images_are_near(tmp_path):
    smooth = np.broadcast_to(np.linspace(0, 255, 8).astype(np.uint8)[None, :, None], (6, 8, 3))
    stream = CameraStream("/top", COMPRESSED)
    found = read_image(over(image_message(smooth, stream, 1.0, "")), stream, CAMERA)
    assert np.abs(found.astype(int) - smooth).max() < 24


def test_images_of_another_size_need_a_word():
    big = np.repeat(np.repeat(picture(), 2, 0), 2, 1)
    message = image_message(big, CameraStream("/top", RAW), 1.0, "")
    with pytest.raises(SpecMismatch, match="declare resize: true"):
        read_image(message, CameraStream("/top", RAW), CAMERA)
    resized = read_image(message, CameraStream("/top", RAW, resize=True), CAMERA)
    assert np.array_equal(resized, picture())
    square = image_message(picture(0, (8, 8, 3)), CameraStream("/top", RAW), 1.0, "")
    with pytest.raises(SpecMismatch, match="crop it at its source"):
        read_image(square, CameraStream("/top", RAW, resize=True), CAMERA)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"encoding": "16UC1"}, "expected an encoding among"), ({"step": 3}, "expected 6 rows of 3 bytes"),
     ({"data": np.zeros(5, np.uint8)}, "got 5 bytes")],
)  # fmt: skip
def test_images_that_are_none(change, words):
    message = image_message(picture(), CameraStream("/top", RAW), 1.0, "")
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(SpecMismatch, match=words):
        read_image(message, CameraStream("/top", RAW), CAMERA)


def test_an_empty_image_is_no_black_one():
    message = image_message(picture(), CameraStream("/top", RAW), 1.0, "")
    message.height = message.width = message.step = 0
    message.data = np.zeros(0, np.uint8)
    with pytest.raises(SpecMismatch, match="got an empty image"):
        read_image(message, CameraStream("/top", RAW, resize=True), CAMERA)


def test_a_compressed_image_that_is_none():
    message = image_message(picture(), CameraStream("/top", COMPRESSED), 1.0, "")
    message.data = np.frombuffer(b"GIF89a no", np.uint8)
    with pytest.raises(SpecMismatch, match="expected a readable JPEG or PNG"):
        read_image(message, CameraStream("/top", COMPRESSED), CAMERA)


def test_joints_are_found_by_their_names_in_any_order():
    stream = StateStream("/joints", ("j1", "j2", "j3"), scale=np.pi / 180, offset=0.5)
    message = over(state_message({"j3": 90.0, "gripper": 7.0, "j1": 180.0, "j2": 0.0}, stream, 2.5, ""))
    assert np.allclose(read_state(message, stream, JOINTS), [np.pi + 0.5, 0.5, np.pi / 2 + 0.5])
    with pytest.raises(SpecMismatch, match=r"/joints: expected values named \['j4'\]"):
        read_state(message, StateStream("/joints", ("j1", "j4", "j2")), JOINTS)
    with pytest.raises(SpecMismatch, match=r"/joints: expected values named \['j1', 'j2', 'j3'\], got 0 values"):
        read_state(message, StateStream("/joints", ("j1", "j2", "j3"), field="velocity"), JOINTS)


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3), st.sampled_from([1.0, -1.0, 57.3]), st.floats(-2, 2))
def test_commands_come_back_as_they_went(values, scale, offset):
    stream = CommandStream("/c", ("x", "y", "z"), "hold", scale=scale, offset=offset)
    message = over(trajectory(theirs(values, stream, JOINTS), False, 3.5, "me:7", 0.05))
    named, when, frame = read_trajectory(message, False)
    assert (when, frame) == (3.5, "me:7")
    assert np.allclose(ours(named, stream, JOINTS), values, atol=1e-9)


@pytest.mark.parametrize(("rotation", "size"), [("quaternion_xyzw", 4), ("axis_angle", 3)])
def test_rotations_are_said_as_the_robot_says_them(rotation, size):
    stream = CommandStream("/c", tuple("abcd"[:size]), "hold", rotation=rotation)
    upside = np.array([1.0, 0, 0, 0, -1, 0])
    said = theirs(upside, stream, TURN)
    assert len(said) == size
    assert np.allclose(ours(said, stream, TURN), upside, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"points": []}, "expected one point, got 0"), ({"joint_names": ["a", "a", "b"]}, "expected a number for each"),
     ({"joint_names": ["a"]}, "expected a number for each")],
)  # fmt: skip
def test_trajectories_that_are_none(change, words):
    message = trajectory({"a": 1.0, "b": 2.0, "c": 3.0}, False, 1.0, "me:0", 0.05)
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(SpecMismatch, match=words):
        read_trajectory(message, False)


def test_numbers_that_are_none_are_refused():
    with pytest.raises(SpecMismatch, match="expected finite numbers"):
        read_trajectory(trajectory({"a": float("nan")}, False, 1.0, "me:0", 0.05), False)
    for moving in (False, True):
        with pytest.raises(SpecMismatch, match="alone, got the others, too"):
            read_trajectory(trajectory({"a": 1.0}, not moving, 1.0, "me:0", 0.05), moving)
    with pytest.raises(SpecMismatch, match="stamp messages at their source"):
        stamp(trajectory({"a": 1.0}, False, 0.0, "", 0.05))


def test_what_controllers_hear():
    names = ("linear.x", "angular.z")
    values = {"linear.x": 0.5, "angular.z": -0.25}
    twist = over(
        command_message(values, CommandStream("/v", names, "zero", "geometry_msgs/msg/Twist"), True, 1.0, 0.05)
    )
    assert (twist.linear.x, twist.linear.y, twist.angular.z) == (0.5, 0.0, -0.25)
    stamped = CommandStream("/v", names, "zero", "geometry_msgs/msg/TwistStamped")
    message = over(command_message(values, stamped, True, 1.5, 0.05))
    assert (message.twist.linear.x, stamp(message)) == (0.5, 1.5)
    array = CommandStream("/a", names, "zero", "std_msgs/msg/Float64MultiArray")
    assert over(command_message(values, array, True, 1.0, 0.05)).data.tolist() == [0.5, -0.25]
    moving = over(command_message(values, CommandStream("/t", names, "zero"), True, 1.0, 0.05)).points[0]
    assert (moving.velocities.tolist(), moving.positions.tolist()) == ([0.5, -0.25], [])
    assert moving.time_from_start.nanosec == 50_000_000


@given(st.binary(max_size=200))
def test_bytes_of_strangers_are_refused_or_read(data):
    for kind in (RAW, COMPRESSED, "sensor_msgs/msg/JointState", "trajectory_msgs/msg/JointTrajectory"):
        try:
            decode(kind, data)
        except SpecMismatch:
            continue


def test_a_joint_that_turns_the_other_way_is_declared_alone():
    group = Group("joints", ("a", "b", "c"), "absolute", "rad", (-3.0,) * 3, (3.0,) * 3)
    stream = CommandStream("/c", ("j1", "j2", "j3"), "hold", scale=(1.0, -1.0, 0.5), offset=(0.0, 0.1, 0.0))
    told = theirs([0.2, 0.3, 0.4], stream, group)
    assert told == pytest.approx({"j1": 0.2, "j2": -0.2, "j3": 0.8})
    np.testing.assert_allclose(ours(told, stream, group), [0.2, 0.3, 0.4])


@pytest.mark.parametrize("kind", COMMANDS)
@pytest.mark.parametrize("time", [0.0, 1.5])
def test_what_controllers_heard_is_read_back(kind, time):
    names, moving = ("linear.x", "angular.z"), kind != TRAJECTORY
    values = {"linear.x": 0.5, "angular.z": -0.25}
    message = over(command_message(values, CommandStream("/v", names, "zero", kind), moving, time, 0.05))
    found, when = read_command(message, names, moving)
    assert {name: found[name] for name in names} == values
    assert when == (time if time and kind in (TRAJECTORY, TWIST_STAMPED) else None)


def test_what_no_controller_hears_is_no_command():
    with pytest.raises(SpecMismatch, match=r"command: expected one of .*, got std_msgs/msg/Bool"):
        read_command(flag(True), ("a",), False)
    array = command_message({"a": 1.0}, CommandStream("/a", ("a",), "hold", ARRAY), False, 1.0, 0.05)
    with pytest.raises(SpecMismatch, match="expected 2 numbers, got 1"):
        read_command(array, ("a", "b"), False)
    array.data[0] = np.nan
    with pytest.raises(SpecMismatch, match="expected finite numbers"):
        read_command(array, ("a",), False)
