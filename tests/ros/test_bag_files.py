"""Bags that are whole are read whole; of others as much as is whole, and what is missing is named."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from vla_runtime.robot_side import Topic
from vla_runtime.ros.bag_files import Bag, Report, messages
from vla_runtime.ros.bags import BagWriter
from vla_runtime.ros.messages import encode, text

WORDS = Topic("/words", "std_msgs/msg/String")
NOISE = [np.random.default_rng(seed).bytes(2000).hex() for seed in range(100)]
STORE = get_typestore(Stores.ROS2_JAZZY)


def filled(path, count=40, period=0.25, first=100.0):
    """A bag that says "0", "1", ... every period."""
    writer = BagWriter(path)
    for number in range(count):
        writer.write(WORDS, encode(text(str(number))), first + number * period)
    return writer


def said(path):
    with Bag(path) as bag:
        return [int(message.data.split()[0]) for _, message, _ in bag.messages()], bag.missing


def with_rosbags(path, plugin, count=1000, compressed=False):
    """A finished bag by somebody else, of several chunks."""
    writer = Writer(path, version=9, storage_plugin=plugin)
    if compressed:
        writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    with writer:
        topic = writer.add_connection(WORDS.name, WORDS.type, typestore=STORE)
        for number in range(count):
            # Some kilobytes that hardly compress, so that there are several chunks; or a little.
            noise = NOISE[number % 100] if plugin == StoragePlugin.MCAP else ""
            writer.write(topic, 10**9 * (100 + number), encode(text(f"{number} {noise}")))
    return next(one for one in path.iterdir() if one.suffix in (".mcap", ".db3"))


def test_a_killed_recorder_loses_a_second(tmp_path):
    writer = filled(tmp_path / "bag")
    # As a kill leaves it: what is in memory is lost.
    shutil.copytree(tmp_path / "bag", tmp_path / "killed")
    writer.close()
    assert said(tmp_path / "bag") == (list(range(40)), [])
    found, missing = said(tmp_path / "killed")
    assert found == list(range(37))
    assert "without its metadata.yaml" in missing[0]
    assert missing[1] == "bag.mcap: 37 messages are read from its front, since its end is missing"


@pytest.mark.parametrize("compressed", [False, True])
def test_an_mcap_file_that_is_cut_is_read_to_where_it_breaks_off(tmp_path, compressed):
    file = with_rosbags(tmp_path / "bag", StoragePlugin.MCAP, compressed=compressed)
    data = file.read_bytes()
    cut = len(data) * 6 // 10
    file.write_bytes(data[:cut])
    for path in (file, tmp_path / "bag"):
        found, missing = said(path)
        assert found == list(range(len(found)))
        # Of a compressed chunk nothing can be read before it is whole.
        assert (250 if compressed else 580) < len(found) < 620
        assert f" of {cut}" in missing[-1]


def test_an_mcap_file_without_chunks_and_one_with_a_damaged_chunk(tmp_path):
    with (tmp_path / "flat.mcap").open("wb") as file:
        writer = McapWriter(file, use_chunking=False)
        writer.start("ros2", "test")
        schema = writer.register_schema(WORDS.type, "ros2msg", b"string data\n")
        channel = writer.register_channel(WORDS.name, "cdr", schema)
        for number in range(10):
            writer.add_message(channel, 10**9 * number, encode(text(str(number))), 10**9 * number)
    assert said(tmp_path / "flat.mcap")[0] == list(range(10))
    with (tmp_path / "chunks.mcap").open("wb") as file:
        writer = McapWriter(file, chunk_size=2000, compression=CompressionType.NONE)
        writer.start("ros2", "test")
        schema = writer.register_schema(WORDS.type, "ros2msg", b"string data\n")
        channel = writer.register_channel(WORDS.name, "cdr", schema)
        for number in range(400):
            writer.add_message(channel, 10**9 * number, encode(text(str(number))), 10**9 * number)
        writer.finish()
    data = bytearray((tmp_path / "chunks.mcap").read_bytes()[:-100])
    data[data.index(encode(text("200")))] ^= 0xFF
    (tmp_path / "chunks.mcap").write_bytes(data)
    found, missing = said(tmp_path / "chunks.mcap")
    assert 200 not in found
    assert 300 < len(found) < 400
    assert found[-1] == 399
    assert "1 of its records are damaged" in missing[0]


def test_a_bag_of_several_files_comes_in_their_order_whatever_becomes_of_the_last(tmp_path):
    """As `ros2 bag record` splits them; without the metadata that it writes at the end."""
    (tmp_path / "bag").mkdir()
    for place, first in ((9, 0), (10, 5)):
        writer = BagWriter(tmp_path / f"part_{place}")
        for number in range(first, first + 5):
            writer.write(WORDS, encode(text(str(number))), float(number))
        writer.close()
        shutil.copy(tmp_path / f"part_{place}" / f"part_{place}.mcap", tmp_path / "bag" / f"bag_{place}.mcap")
    (tmp_path / "bag" / "bag_11.mcap").write_bytes(b"")
    found, missing = said(tmp_path / "bag")
    assert found == list(range(10))
    assert "bag_11.mcap: expected a bag, got an .mcap file without MCAP's header" in missing[-1]


def test_a_sqlite_bag_that_is_cut_is_read_to_where_it_breaks_off(tmp_path):
    file = with_rosbags(tmp_path / "bag", StoragePlugin.SQLITE3, 3000)
    assert said(tmp_path / "bag") == (list(range(3000)), [])
    data = file.read_bytes()
    whole = len(data) * 6 // 10 // 4096 * 4096
    file.write_bytes(data[: whole + 2000])
    with pytest.raises(ValueError, match=rf"cut within a page; `truncate -s {whole} .*bag\.db3`"):
        said(tmp_path / "bag")
    file.write_bytes(data[:whole])
    found, missing = said(tmp_path / "bag")
    assert found == list(range(len(found)))
    assert 1000 < len(found) < 3000
    assert f"bag.db3: {len(found)} messages are read from its front, since it breaks off" in missing[-1]


def test_what_lies_beside_a_sqlite_bag_is_not_lost_silently(tmp_path):
    file = with_rosbags(tmp_path / "bag", StoragePlugin.SQLITE3, 20)
    database = sqlite3.connect(file)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("INSERT INTO messages(topic_id, timestamp, data) SELECT 1, timestamp + 1, data FROM messages")
    database.commit()
    shutil.copytree(tmp_path / "bag", tmp_path / "killed")
    database.close()
    with pytest.raises(ValueError, match=r"last messages are still in bag\.db3-wal; `sqlite3 .*bag\.db3 'select"):
        said(tmp_path / "killed")
    # What the message says to do.
    mended = sqlite3.connect(tmp_path / "killed" / "bag.db3")
    mended.execute("select count(*) from messages").fetchall()
    mended.close()
    assert len(said(tmp_path / "killed")[0]) == 40


def test_what_is_no_bag_says_what_to_do(tmp_path):
    (tmp_path / "robot.bag.active").write_bytes(b"#ROSBAG V2.0\n")
    (tmp_path / "letter.txt").write_text("dear")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "letter.txt").write_text("dear")
    for name, expected in (
        ("robot.bag.active", r"`rosbag reindex .*robot\.bag\.active` of ROS 1 mends"),
        ("letter.txt", r"expected are folders with \.mcap or \.db3 files"),
        ("folder", r"expected a bag \(a folder with .*got \['letter\.txt'\]"),
        ("none", "expected a bag, got no such file or folder"),
    ):
        with pytest.raises(ValueError, match=expected):
            said(tmp_path / name)


def test_a_finished_bag_that_is_damaged_inside_is_an_error_and_no_traceback(tmp_path):
    file = with_rosbags(tmp_path / "bag", StoragePlugin.MCAP, compressed=True)
    data = bytearray(file.read_bytes())
    # The beginning of a compressed chunk in the middle.
    place = data.index(b"\x28\xb5\x2f\xfd", len(data) // 2)
    data[place : place + 4] = bytes(4)
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged inside, .*mcap recover"):
        list(messages(tmp_path / "bag"))


def test_messages_that_cannot_be_read_are_left_out_and_counted(tmp_path, caplog):
    writer = filled(tmp_path / "bag", 3)
    for number, data in enumerate((b"", b"\x00\x01\x00\x00\x05", b"\x00\x01\x00\x00" + b"\xff" * 40)):
        writer.write(WORDS, data, 100.1 + number / 100)
    writer.close()
    report = Report(tmp_path / "bag")
    with Bag(tmp_path / "bag") as bag:
        assert [message.data for _, message, _ in bag.messages(report=report)] == ["0", "1", "2"]
    assert report.left_out == {"/words": 3}
    assert caplog.text.count("left out") == 1
    assert "/words: left out, recorded at 100.100 s: std_msgs/msg/String: expected a message" in caplog.text


def test_a_bridge_needs_no_mcap():
    """It records bags and reads none, on computers where nobody has installed it."""
    code = "import sys; sys.modules['mcap'] = None; import vla_runtime.bridge"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
