"""What was said is in the bag, byte for byte, and a bag can stand where a robot stood."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from air import Air
from robots import reach_robot
from staged import COMMANDS, Stage

from vla_runtime.bridge import RobotClock
from vla_runtime.control.clock import SystemClock
from vla_runtime.control.recorder import Recording
from vla_runtime.evaluation.replaying import Replay
from vla_runtime.robot_side import Topic
from vla_runtime.ros.bag_files import Bag, messages
from vla_runtime.ros.bags import BagTransport, BagWriter, Recorded
from vla_runtime.ros.messages import decode, encode, read_image, read_state, state_message, text

WORDS = Topic("/words", "std_msgs/msg/String")


def test_a_bag_keeps_order_times_and_bytes(tmp_path):
    writer = BagWriter(tmp_path / "bag")
    stream = reach_robot().robot.state["joints"]
    joints = Topic(stream.topic, stream.type)
    said = [(WORDS, text("a")), (joints, state_message({"j1": 0.5}, stream, 3.0, "x")), (WORDS, text("b"))]
    for index, (topic, message) in enumerate(said):
        writer.write(topic, encode(message), 1000.0 + index / 4)
    writer.close()
    found = list(messages(tmp_path / "bag"))
    assert [(name, seconds) for name, _, seconds in found] == [
        (topic.name, 1000.0 + index / 4) for index, (topic, _) in enumerate(said)
    ]
    assert [encode(message) for _, message, _ in found] == [encode(message) for _, message in said]
    assert [message.data for _, message, _ in messages(tmp_path / "bag", ["/words"])] == ["a", "b"]
    with pytest.raises(ValueError, match=r"expected the topics \['/others'\], got \['/joint_states', '/words'\]"):
        list(messages(tmp_path / "bag", ["/others"]))
    with pytest.raises(ValueError, match="bag: expected a new folder"):
        BagWriter(tmp_path / "bag")


def test_what_is_no_bag(tmp_path):
    (tmp_path / "file.mcap").write_bytes(b"nothing")
    for path in (tmp_path / "none", tmp_path / "file.mcap"):
        with pytest.raises(ValueError, match="expected a bag"):
            list(messages(path))


def test_a_bag_plays_a_robot_again(tmp_path):
    """Recorded on the bridge's side while it moved a robot; played, it shows the same, and the same is decided."""
    stage = Stage(tmp_path)
    transport = stage.air.transport
    stage.air.transport = lambda: Recorded(transport(), tmp_path / "bag", RobotClock())
    with stage.playing():
        line, _ = stage.bridge("record.images=png")
    assert line["successes"] == 1
    recording = Recording(next((tmp_path / "out" / "recordings").glob("*")))
    live = recording.ticks
    # All commands that left, and they alone.
    bagged = [message for _, message, _ in messages(tmp_path / "bag", [COMMANDS])]
    assert [encode(one) for one in bagged] == [data for name, data in stage.air.said if name == COMMANDS]
    # All that was decided upon is in the bag, bit for bit.
    joints, place = stage.contract.robot.state["joints"], stage.contract.robot.state["position"]
    groups = stage.contract.state.groups
    said = {
        np.concatenate([read_state(one, joints, groups[0]), read_state(one, place, groups[1])])
        .astype(np.float32)
        .tobytes()
        for _, one, _ in messages(tmp_path / "bag", ["/joint_states"])
    }
    assert {tick["state"].tobytes() for tick in live} <= said
    for camera in stage.contract.cameras:
        stream = stage.contract.robot.cameras[camera.name]
        shown = {read_image(one, stream, camera).tobytes() for _, one, _ in messages(tmp_path / "bag", [stream.topic])}
        seen = [recording.observation(index).images for index, tick in enumerate(live) if tick["images"]]
        assert {images[camera.name].tobytes() for images in seen} <= shown
    # Decided upon once more, it is the same, bit for bit.
    replay = Replay(recording, stage.policy)
    assert replay.decoded > 1
    assert replay.differences == []
    # So says the command, which has the recording alone.
    assert (recording.header["seed"], recording.header["config"]["choices"]["transport"]) == (0, "rclpy")


def test_a_bag_can_stand_where_the_robot_stood(tmp_path):
    stage = Stage(tmp_path)
    transport = stage.air.transport
    stage.air.transport = lambda: Recorded(transport(), tmp_path / "bag", RobotClock())
    with stage.playing():
        stage.bridge()
    (tmp_path / "again").mkdir()
    again = Stage(tmp_path / "again")
    again.policy = stage.policy
    again.air.transport = lambda: BagTransport(str(tmp_path / "bag"), str(tmp_path / "said"))
    line, code = again.bridge()
    assert code == 0
    assert line["ticks"] > 3
    sent = list(messages(tmp_path / "said", [COMMANDS]))
    # And one that leaves the robot where it was, if the bag was over before its episode.
    assert len(sent) - line["ticks"] in (0, 1)
    assert json.loads((again.out / "summary.json").read_text())["ticks"] == line["ticks"]


def test_a_bag_that_is_recorded_while_it_plays_ends_too(tmp_path):
    writer = BagWriter(tmp_path / "bag")
    writer.write(WORDS, encode(text("a")), 1.0)
    writer.close()
    both = Recorded(BagTransport(str(tmp_path / "bag")), tmp_path / "second", SystemClock())
    both.open([])
    while not both.over:
        time.sleep(0.01)  # noqa: TID251
    both.close()


def test_a_bag_that_cannot_be_written_keeps_nobody_from_hearing(tmp_path, monkeypatch):
    air, heard = Air(), []
    one, two = Recorded(air.transport(), tmp_path / "bag", SystemClock()), air.transport()
    two.open([WORDS])
    one.subscribe(WORDS, heard.append)
    monkeypatch.setattr(one._bag, "write", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    two.publish(WORDS, text("stop"))
    assert [message.data for message in heard] == ["stop"]
    assert one.health() == ["the bag is incomplete: disk full"]


def test_what_a_listener_raises_does_not_end_the_bag(tmp_path):
    writer = BagWriter(tmp_path / "bag")
    for moment in (1.0, 1.01):
        writer.write(WORDS, encode(text("a")), moment)
    writer.close()
    bag = BagTransport(str(tmp_path / "bag"))
    bag.open([])
    bag.subscribe(WORDS, lambda message: 1 / 0)
    while not bag.over:
        time.sleep(0.01)  # noqa: TID251
    bag.close()
    assert bag.health() == ["/words: messages that could not be used (2 times)"]


def test_a_message_that_cannot_be_read_does_not_end_the_bag(tmp_path):
    writer = BagWriter(tmp_path / "bag")
    for number, data in enumerate((encode(text("a")), b"", encode(text("b")))):
        writer.write(WORDS, data, 1.0 + number / 100)
    writer.close()
    bag, heard = BagTransport(str(tmp_path / "bag")), []
    bag.open([])
    bag.subscribe(WORDS, heard.append)
    played(bag)
    assert [message.data for message in heard] == ["a", "b"]
    assert bag.health() == ["/words: messages that cannot be read (1 times)"]


def test_a_bag_that_breaks_while_it_plays_is_over(tmp_path, monkeypatch):
    writer = BagWriter(tmp_path / "bag")
    writer.write(WORDS, encode(text("a")), 1.0)
    writer.close()
    bag, heard = BagTransport(str(tmp_path / "bag")), []
    bag.open([])
    bag.subscribe(WORDS, heard.append)
    raw = Bag.raw

    def broken(self, topics=None):
        yield from raw(self, topics)
        raise ValueError("damaged inside")

    monkeypatch.setattr(Bag, "raw", broken)
    played(bag)
    assert [message.data for message in heard] == ["a"]
    assert bag.health() == ["the bag ends early: damaged inside (1 times)"]


def played(bag):
    end = time.monotonic() + 10.0  # noqa: TID251
    while not bag.over:
        assert time.monotonic() < end  # noqa: TID251
        time.sleep(0.01)  # noqa: TID251
    bag.close()


def test_a_bag_that_is_not_there_leaves_nothing_behind(tmp_path):
    bag = BagTransport(str(tmp_path / "none"), str(tmp_path / "out"))
    with pytest.raises(ValueError, match="expected a bag"):
        bag.open([])
    assert not (tmp_path / "out").exists()


def test_messages_of_another_type_are_told(tmp_path):
    writer = BagWriter(tmp_path / "bag")
    writer.write(WORDS, encode(text("a")), 1.0)
    writer.close()
    bag, heard = BagTransport(str(tmp_path / "bag")), []
    bag.open([])
    bag.subscribe(Topic("/words", "std_msgs/msg/Bool"), heard.append)
    while not bag.over:
        time.sleep(0.01)  # noqa: TID251
    assert bag.health() == ["/words: expected std_msgs/msg/Bool, got std_msgs/msg/String (1 times)"]
    assert not heard
    bag.close()
    with pytest.raises(ValueError, match="rate: expected more than 0"):
        BagTransport(str(tmp_path / "bag"), rate=0.0)


def test_recording_leaves_a_transport_as_it_is(tmp_path):
    air = Air()
    one, two = Recorded(air.transport(), tmp_path / "bag", SystemClock()), air.transport()
    heard = []
    one.open([WORDS])
    two.subscribe(WORDS, heard.append)
    one.publish(WORDS, text("a"))
    air.cut = True
    with pytest.raises(RuntimeError):
        one.publish(WORDS, text("b"))
    one.close()
    assert [message.data for message in heard] == ["a"]
    assert [decode(WORDS.type, encode(m)).data for _, m, _ in messages(tmp_path / "bag")] == ["a"]
