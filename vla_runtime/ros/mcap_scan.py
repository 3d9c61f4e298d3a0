"""What is whole in an MCAP file that its recorder did not finish, or of which a part is missing, read from its front.

A finished file ends with an index, and readers begin there. Without it the records still follow one another from the
front: each says how long it is. It knows topics and bytes and no messages.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, Header, Schema
from mcap.stream_reader import get_chunk_data_stream

_MAGIC = b"\x89MCAP0\r\n"
_RECORD, _CHUNK, _MESSAGE = struct.Struct("<BQ"), struct.Struct("<QQQII"), struct.Struct("<HIQQ")
# A chunk that says it is longer is damaged: recorders write some megabytes.
_LARGEST = 2**31


class McapScan:
    """The whole records of a ROS 2 MCAP file. ValueError for a file that is none, or without a whole message.

    `topics`: how many messages each has; `missing`: what could not be read, empty where nothing is missing.
    """

    def __init__(self, path: Path):
        self._path = path
        self._channels: dict[int, tuple[str, str]] = {}
        self._damaged, self._end, self._finished = 0, 0, False
        with path.open("rb") as file:
            self._require_ros2(file)
            counts: Counter[int] = Counter()
            for channel, _, _ in self._messages(file):
                counts[channel] += 1
        self.topics: Counter[str] = Counter()
        for channel, count in counts.items():
            if channel in self._channels:
                self.topics[self._channels[channel][0]] += count
        if not self.topics:
            raise ValueError(f"{path}: expected a bag, got an MCAP file without a whole message in it")
        size = path.stat().st_size
        broken = f"the file breaks off at byte {self._end} of {size}" if self._end < size else "its end is missing"
        self.missing = "" if self._finished else broken
        if self._damaged:
            self.missing += f"{', and ' if self.missing else ''}{self._damaged} of its records are damaged"

    def messages(self) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, type, nanoseconds at which it was recorded, data), in the order of the file, within a chunk in that
        of time.
        """
        with self._path.open("rb") as file:
            self._require_ros2(file)
            for channel, nanoseconds, data in self._messages(file):
                if channel in self._channels:
                    topic, kind = self._channels[channel]
                    yield topic, kind, nanoseconds, data

    def _require_ros2(self, file: BinaryIO) -> None:
        head = file.read(len(_MAGIC) + _RECORD.size)
        opcode, length = _RECORD.unpack(head[len(_MAGIC) :]) if len(head) == len(_MAGIC) + _RECORD.size else (0, 0)
        content = file.read(length) if length < _LARGEST else b""
        if not head.startswith(_MAGIC) or opcode != Opcode.HEADER or len(content) != length:
            raise ValueError(f"{self._path}: expected a bag, got an .mcap file without MCAP's header")
        profile = Header.read(ReadDataStream(BytesIO(content))).profile
        if profile != "ros2":
            raise ValueError(f"{self._path}: expected a bag of ROS 2, got an MCAP file with the profile {profile!r}")

    def _messages(self, file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
        """(channel, nanoseconds, data) from behind the header to the end of what is whole."""
        self._damaged, self._finished = 0, False
        schemas: dict[int, str] = {}
        size = self._path.stat().st_size
        while True:
            self._end = file.tell()
            head = file.read(_RECORD.size)
            if len(head) < _RECORD.size:
                return
            opcode, length = _RECORD.unpack(head)
            if opcode in (Opcode.DATA_END, Opcode.FOOTER):
                self._finished = True
                return
            whole = length <= size - file.tell()
            if not (whole or opcode == Opcode.CHUNK) or length > _LARGEST:
                return
            content = file.read(length)
            if opcode == Opcode.CHUNK:
                inside = self._inside(content)
                read = (self._record(opcode, content, schemas) for opcode, content in inside)
                yield from sorted((one for one in read if one is not None), key=lambda message: message[1])
            elif (message := self._record(opcode, content, schemas)) is not None:
                yield message
            if not whole:
                return

    def _record(self, opcode: int, content: bytes, schemas: dict[int, str]) -> tuple[int, int, bytes] | None:
        """A message; of schemas and channels what messages need is kept."""
        if opcode == Opcode.MESSAGE and len(content) >= _MESSAGE.size:
            number, _, nanoseconds, _ = _MESSAGE.unpack_from(content)
            return number, nanoseconds, content[_MESSAGE.size :]
        try:
            if opcode == Opcode.SCHEMA:
                schema = Schema.read(ReadDataStream(BytesIO(content)))
                schemas[schema.id] = schema.name
            elif opcode == Opcode.CHANNEL:
                channel = Channel.read(ReadDataStream(BytesIO(content)))
                self._channels[channel.id] = channel.topic, schemas.get(channel.schema_id, "")
        except Exception:
            # Parsers of damaged bytes raise what they like.
            self._damaged += 1
        return None

    def _inside(self, content: bytes) -> Iterator[tuple[int, bytes]]:
        """The whole records in a chunk, as (opcode, content); of a compressed one that is cut or damaged none."""
        try:
            start, end, size, checksum, length = _CHUNK.unpack_from(content)
            compression = content[_CHUNK.size :][:length].decode()
            (stored,) = struct.unpack_from("<Q", content, _CHUNK.size + length)
            data = content[_CHUNK.size + length + 8 :][:stored]
            # What is cut has another checksum, and begins with records that are whole.
            if compression or len(data) == stored:
                stream, plain = get_chunk_data_stream(Chunk(compression, data, end, start, checksum, size), True)
                data = stream.read(plain)
        except Exception:
            # Decompressors of damaged bytes raise what they like.
            self._damaged += 1
            return
        place = 0
        while place + _RECORD.size <= len(data):
            opcode, length = _RECORD.unpack_from(data, place)
            place += _RECORD.size
            if length > len(data) - place:
                return
            yield opcode, data[place : place + length]
            place += length
