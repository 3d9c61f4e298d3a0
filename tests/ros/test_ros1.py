"""ROS 1's bytes: the same messages as ROS 2's, and nothing of strangers that ends a process."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_runtime.robot_side import TWIST, CameraStream, CommandStream, StateStream
from vla_runtime.ros.messages import (
    command_message,
    decode,
    empty,
    encode,
    flag,
    image_message,
    state_message,
    text,
    trajectory,
)
from vla_runtime.ros.ros1 import decode_ros1, encode_ros1
from vla_runtime.types import SpecMismatch

PICTURE = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
MESSAGES = [
    empty(),
    flag(True),
    text("touch the disc"),
    image_message(PICTURE, CameraStream("/a"), 12.25, "a"),
    image_message(PICTURE, CameraStream("/a", "sensor_msgs/msg/Image"), 12.25, "a"),
    state_message({"j1": 0.5, "j2": -1.0}, StateStream("/s", ("j1", "j2")), 3.5, "s"),
    trajectory({"j1": 0.5, "j2": -1.0}, False, 3.5, "s", 0.05),
    command_message({"j1": 0.5}, CommandStream("/c", ("j1",), "hold", "std_msgs/msg/Float64MultiArray"), False, 1, 0.1),
    command_message({"linear.x": 0.5}, CommandStream("/c", ("linear.x",), "zero", TWIST), True, 1, 0),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: one.__msgtype__)
def test_what_goes_out_comes_in(message):
    found = decode_ros1(message.__msgtype__, encode_ros1(message))
    assert encode(found) == encode(message)
    assert type(found) is type(decode(message.__msgtype__, encode(message)))


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(MESSAGES), st.binary(max_size=200), st.integers(0, 300))
def test_bytes_of_strangers_are_refused_or_are_a_message(message, noise, cut):
    data = encode_ros1(message)
    for wrong in (noise, data[: min(cut, len(data) - 1)] if data else noise):
        with suppress(SpecMismatch):
            assert decode_ros1(message.__msgtype__, wrong).__msgtype__ == message.__msgtype__
