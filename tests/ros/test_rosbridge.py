"""rosbridge: what its protocol says goes in and out, and nothing old arrives when a connection is back."""

from __future__ import annotations

import json
import time

import cbor2
import numpy as np
import pytest
from rosbridging import Rosbridge
from said import COMPRESSED, MESSAGES, NUMBERS

from vla_runtime.control.clock import SystemClock
from vla_runtime.robot_side import Topic
from vla_runtime.ros.messages import command_message, encode, text
from vla_runtime.ros.ros1 import encode_ros1
from vla_runtime.ros.rosbridge_transport import RosbridgeTransport
from vla_runtime.ros.words import from_words, to_words
from vla_runtime.types import SpecMismatch

JOINTS = "sensor_msgs/msg/JointState"
WORD = Topic("/word", "std_msgs/msg/String")


def until(condition, seconds=10.0):
    clock = SystemClock()
    deadline = clock.now() + seconds
    while not condition():
        assert clock.now() < deadline, "it did not come to pass"
        time.sleep(0.01)  # noqa: TID251


@pytest.fixture
def server():
    found = Rosbridge()
    yield found
    found.close()


@pytest.mark.parametrize("ros", [1, 2])
@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: one.__msgtype__)
def test_what_goes_out_comes_in(message, ros):
    words = json.loads(json.dumps(to_words(message, ros)))
    assert encode(from_words(message.__msgtype__, words)) == encode(message)


# As rosbridge_suite sends them: its protocol's examples and what its library makes of these types.
CASES = {
    "ros 1, JSON": (
        '{"op":"publish","topic":"/joints","msg":{"header":{"seq":7,"stamp":{"secs":12,"nsecs":250000000},'
        '"frame_id":""},"name":["j1","j2"],"position":[0.5,-1.0],"velocity":[],"effort":[]}}',
        {"ros": 1},
    ),
    "ros 2, JSON": (
        '{"op":"publish","topic":"/joints","msg":{"header":{"stamp":{"sec":12,"nanosec":250000000},"frame_id":""},'
        '"name":["j1","j2"],"position":[0.5,-1],"velocity":[],"effort":[]}}',
        {"ros": 2},
    ),
    # Arrays of float64 are tag 86 (d8 56), little-endian.
    "ros 2, CBOR": (
        bytes.fromhex("a3626f70677075626c69736865746f706963672f6a6f696e7473636d7367a5")
        + bytes.fromhex("66686561646572a2657374616d70a2637365630c676e616e6f7365631a0ee6b280686672616d655f696460")
        + bytes.fromhex("646e616d658262")
        + b"j1\x62j2\x68position\xd8\x56\x50"
        + np.array([0.5, -1.0], "<f8").tobytes()
        + b"\x68velocity\xd8\x56\x40\x66effort\xd8\x56\x40",
        {"ros": 2, "compression": "cbor"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_frames_of_the_protocol_are_understood(server, case):
    frame, options = CASES[case]
    got = []
    transport = RosbridgeTransport(server.address, **options)
    transport.open([])
    transport.subscribe(Topic("/joints", JOINTS, False), got.append)
    until(lambda: server.frames)
    server.say(frame)
    until(lambda: got)
    (message,) = got
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (12, 250000000)
    assert message.name == ["j1", "j2"]
    np.testing.assert_array_equal(message.position, [0.5, -1.0])
    assert transport.health() == []
    transport.close()


@pytest.mark.parametrize("ros", [1, 2])
def test_raw_messages_are_understood(server, ros):
    wanted, got = COMPRESSED, []
    transport = RosbridgeTransport(server.address, ros, "cbor-raw")
    transport.open([])
    transport.subscribe(Topic("/a", wanted.__msgtype__), got.append)
    until(lambda: server.frames)
    data = encode_ros1(wanted) if ros == 1 else encode(wanted)
    server.say(cbor2.dumps({"op": "publish", "topic": "/a", "msg": {"secs": 1, "nsecs": 2, "bytes": data}}))
    until(lambda: got)
    assert encode(got[0]) == encode(wanted)
    transport.close()


@pytest.mark.parametrize("compression", ["none", "cbor", "cbor-raw"])
def test_two_clients_hear_each_other(server, compression):
    topics = [Topic(f"/t{index}", one.__msgtype__) for index, one in enumerate(MESSAGES)]
    one, other = (RosbridgeTransport(server.address, 2, way) for way in ("none", compression))
    one.open(topics)
    other.open([])
    got = {}
    for topic in topics:
        if compression == "none" and topic.type == "sensor_msgs/msg/Image":
            with pytest.raises(RuntimeError, match="expected compressed images through rosbridge"):
                other.subscribe(topic, print)
            continue
        other.subscribe(topic, lambda message, name=topic.name: got.setdefault(name, message))
    wanted = {topic.name: message for topic, message in zip(topics, MESSAGES, strict=True)}
    if compression == "none":
        wanted = {name: one for name, one in wanted.items() if one.__msgtype__ != "sensor_msgs/msg/Image"}
    until(lambda: sum(frame["op"] == "subscribe" for frame in server.frames) == len(wanted))
    for topic in topics:
        if topic.name in wanted:
            one.publish(topic, wanted[topic.name])
    until(lambda: len(got) == len(wanted))
    assert {name: encode(message) for name, message in got.items()} == {
        name: encode(message) for name, message in wanted.items()
    }
    one.close()
    other.close()


def test_after_an_outage_it_speaks_again_and_says_nothing_old(server):
    speaker, hearer = RosbridgeTransport(server.address), RosbridgeTransport(server.address)
    got = []
    speaker.open([WORD])
    hearer.open([])
    hearer.subscribe(WORD, lambda message: got.append(message.data))
    until(lambda: len(server.frames) == 2)
    speaker.publish(WORD, text("before"))
    until(lambda: got == ["before"])
    server.close()
    until(lambda: any("no connection" in one for one in speaker.health() if hearer.health()))
    for index in range(20):
        with pytest.raises(RuntimeError, match="expected a connection"):
            speaker.publish(WORD, text(f"meanwhile {index}"))
    again = Rosbridge(server.port)
    until(lambda: {frame["op"] for frame in again.frames} == {"advertise", "subscribe"})
    until(
        lambda: all(
            "connections lost (1 times)" in one.health() and len(one.health()) == 1 for one in (speaker, hearer)
        )
    )
    speaker.publish(WORD, text("after"))
    until(lambda: len(got) > 1)
    assert got == ["before", "after"]
    speaker.close()
    hearer.close()
    again.close()


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        ("{", "frames that say nothing"),
        ("[1]", "frames that say nothing"),
        (b"\xff\x00", "frames that say nothing"),
        ('{"op": "fragment", "data": ""}', "operations that are not known: fragment"),
        ('{"op": "status", "level": "error", "msg": "no such topic"}', "the server says: no such topic"),
        ('{"op": "publish", "topic": "/word"}', "expected its fields, got NoneType"),
        ('{"op": "publish", "topic": "/word", "msg": {"data": 3}}', "expected string, got 3"),
        ('{"op": "publish", "topic": "/word", "msg": {}}', "expected the field data"),
    ],
)
def test_what_makes_no_sense_is_counted_and_the_next_message_arrives(server, frame, problem):
    got = []
    transport = RosbridgeTransport(server.address)
    transport.open([])
    transport.subscribe(WORD, lambda message: got.append(message.data))
    until(lambda: server.frames)
    server.say(frame)
    server.say('{"op": "publish", "topic": "/word", "msg": {"data": "hello"}}')
    until(lambda: got == ["hello"])
    assert problem in "; ".join(transport.health())
    transport.close()


def test_options_and_places_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="expected 1 or 2, got 3"):
        RosbridgeTransport("ws://127.0.0.1:1", 3)
    with pytest.raises(ValueError, match="expected one of none, cbor, cbor-raw, got 'png'"):
        RosbridgeTransport("ws://127.0.0.1:1", 2, "png")
    with pytest.raises(RuntimeError, match=r"expected a rosbridge server at ws://127\.0\.0\.1:1, got"):
        RosbridgeTransport("ws://127.0.0.1:1").open([])
    with pytest.raises(SpecMismatch, match="expected a finite number, since JSON knows no other"):
        to_words(command_message({"j1": np.nan}, NUMBERS, False, 1.0, 0.1), 2)
    for wrong in ("not base64!", [1, "2"], [True], None, 3):
        with pytest.raises(SpecMismatch):
            from_words("sensor_msgs/msg/CompressedImage", {**to_words(COMPRESSED, 2), "data": wrong})


def test_null_is_what_json_says_of_numbers_that_are_none():
    """Joints without effort sensors say NaN, and rosbridge null: of no matter to whoever reads positions."""
    words = {"header": {"stamp": {"sec": 1, "nanosec": 0}, "frame_id": ""}, "name": ["j1"], "position": [0.5]}
    message = from_words(JOINTS, {**words, "velocity": [None], "effort": [None]})
    assert message.position.tolist() == [0.5]
    assert np.isnan([*message.velocity, *message.effort]).all()


def test_problems_are_of_few_kinds(server):
    transport = RosbridgeTransport(server.address)
    transport.open([])
    transport.subscribe(WORD, print)
    until(lambda: server.frames)
    for number in range(200):
        server.say(json.dumps({"op": "publish", "topic": "/word", "msg": {"data": number}}))
    until(lambda: any("others" in one for one in transport.health()))
    assert len(transport.health()) <= 22
    transport.close()


def test_it_connects_directly_whatever_proxy_the_environment_names(server, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    transport = RosbridgeTransport(server.address)
    transport.open([])
    transport.close()
    asked = RosbridgeTransport(server.address, proxy="http://127.0.0.1:9")
    with pytest.raises(
        RuntimeError, match=r"expected a rosbridge server at .* through the proxy http://127\.0\.0\.1:9,"
    ):
        asked.open([])
    with pytest.raises(ValueError, match=r"transport\.proxy: expected http://host:port"):
        RosbridgeTransport(server.address, proxy="nowhere")
