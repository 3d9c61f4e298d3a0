"""ROS 1's bytes: the same messages as ROS 2's, and nothing of strangers that ends a process."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from said import MESSAGES

from vla_runtime.ros.messages import decode, encode
from vla_runtime.ros.ros1 import decode_ros1, encode_ros1
from vla_runtime.types import SpecMismatch


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
