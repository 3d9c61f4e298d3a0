"""Bags (MCAP, as ROS 2 writes them): what goes over a transport recorded, and a recorded robot in place of a real one.

Bytes are kept as they came. Reading also takes the SQLite bags of ROS 2 and those of ROS 1.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError
from rosbags.typesys import Stores, get_typestore

from vla_runtime.control.clock import Clock, SystemClock
from vla_runtime.robot_side import Topic
from vla_runtime.ros.messages import encode
from vla_runtime.ros.transport import OnMessage, Transport

# Seconds without a new subscriber after which a bag begins to play.
_SETTLED = 0.3
_log = logging.getLogger(__name__)


def messages(path: Path, topics: Collection[str] | None = None) -> Iterator[tuple[str, Any, float]]:
    """(topic, message, seconds at which it was recorded), in that order; of `topics` alone where they are given.

    ValueError for a file that is no bag, and for topics that are not in it.
    """
    with _reading(path) as reader:
        there = {connection.topic for connection in reader.connections}
        if topics is not None and not set(topics) <= there:
            raise ValueError(f"{path}: expected the topics {sorted(set(topics) - there)}, got {sorted(there)}")
        wanted = [one for one in reader.connections if topics is None or one.topic in topics]
        if not wanted:
            raise ValueError(f"{path}: expected messages, got none")
        for connection, nanoseconds, data in reader.messages(wanted):
            yield connection.topic, reader.deserialize(data, connection.msgtype), nanoseconds / 1e9


def topics_of(path: Path) -> set[str]:
    """The topics on which a bag has messages. ValueError for a file that is no bag."""
    with _reading(path) as reader:
        return {connection.topic for connection in reader.connections if connection.msgcount}


@contextmanager
def _reading(path: Path) -> Iterator[AnyReader]:
    try:
        with AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
            yield reader
    except (AnyReaderError, OSError) as error:
        raise ValueError(f"{path}: expected a bag, got {type(error).__name__}: {error}") from error


class BagWriter:
    """Writes a new bag. ValueError for one that exists. Any thread may write."""

    def __init__(self, path: Path):
        self._store = get_typestore(Stores.ROS2_JAZZY)
        self._lock = threading.Lock()
        self._connections: dict[str, Any] = {}
        self._open = ExitStack()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._writer = self._open.enter_context(Writer(path, version=9, storage_plugin=StoragePlugin.MCAP))
        except WriterError as error:
            raise ValueError(f"bag: expected a new folder, got {path}: {error}") from error

    def write(self, topic: Topic, data: bytes, seconds: float) -> None:
        """Add a message, as bytes, of that moment."""
        with self._lock:
            if topic.name not in self._connections:
                added = self._writer.add_connection(topic.name, topic.type, typestore=self._store)
                self._connections[topic.name] = added
            self._writer.write(self._connections[topic.name], round(seconds * 1e9), data)

    def close(self) -> None:
        """Finish the bag; once closed it can be read."""
        with self._lock:
            self._open.close()


class Recorded:
    """A transport whose every message, in and out, is also written to a bag. stamps: what the bag's times are of."""

    def __init__(self, transport: Transport, path: Path, stamps: Clock):
        self._transport, self._stamps = transport, stamps
        self._bag = BagWriter(path)
        self._problem = ""

    @property
    def over(self) -> bool:
        """Whether the transport has said all it has to say, where it knows."""
        return bool(getattr(self._transport, "over", False))

    def __getattr__(self, name: str) -> Any:
        if name not in ("manage", "mirror"):
            raise AttributeError(name)
        return getattr(self._transport, name)

    def open(self, publishes: Sequence[Topic]) -> None:
        self._transport.open(publishes)

    def subscribe(self, topic: Topic, on_message: OnMessage) -> None:
        def recorded(message: Any) -> None:
            moment = self._stamps.now()
            on_message(message)
            self._write(topic, message, moment)

        self._transport.subscribe(topic, recorded)

    def publish(self, topic: Topic, message: Any) -> None:
        self._transport.publish(topic, message)
        # Afterwards: what could not be sent was not said.
        self._write(topic, message, self._stamps.now())

    def health(self) -> list[str]:
        return [*self._transport.health(), *([self._problem] if self._problem else [])]

    def close(self) -> None:
        self._transport.close()
        self._bag.close()

    def _write(self, topic: Topic, message: Any, moment: float) -> None:
        try:
            self._bag.write(topic, encode(message), moment)
        except (OSError, WriterError) as error:
            # A full disk does not keep anybody from hearing a stop.
            if not self._problem:
                _log.error("the bag is incomplete: %s", error)
            self._problem = f"the bag is incomplete: {error}"


class BagTransport:
    """A recorded robot: says what the bag says, at its pace times `rate`; what is published goes into another bag.

    path: the bag; out: where what is published goes, None for nowhere. `over`: whether all has been said.
    """

    def __init__(self, path: str, out: str | None = None, rate: float = 1.0):
        if not rate > 0:
            raise ValueError(f"transport.rate: expected more than 0, got {rate}")
        self._path, self._rate = Path(path), rate
        self._to = None if out is None else Path(out)
        self._out: BagWriter | None = None
        self._clock = SystemClock()
        self._heard: dict[str, list[tuple[Topic, OnMessage]]] = {}
        self._changed, self._closed = self._clock.now(), threading.Event()
        self._problems: Counter[str] = Counter()
        self.over = False
        self._thread = threading.Thread(target=self._play, name="bag", daemon=True)

    def open(self, publishes: Sequence[Topic]) -> None:
        # Read as it plays; one that is no bag is said at once.
        next(messages(self._path))
        self._out = None if self._to is None else BagWriter(self._to)
        self._changed = self._clock.now()
        self._thread.start()

    def subscribe(self, topic: Topic, on_message: OnMessage) -> None:
        self._heard.setdefault(topic.name, []).append((topic, on_message))
        self._changed = self._clock.now()

    def publish(self, topic: Topic, message: Any) -> None:
        if self._out is not None:
            self._out.write(topic, encode(message), self._clock.now())

    def health(self) -> list[str]:
        return [f"{reason} ({count} times)" for reason, count in self._problems.items()]

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(5.0)
        if self._out is not None:
            self._out.close()

    def _play(self) -> None:
        while self._clock.now() < self._changed + _SETTLED and not self._closed.is_set():
            self._clock.sleep_until(self._clock.now() + 0.01)
        began, first = self._clock.now(), None
        for name, message, moment in messages(self._path):
            first = moment if first is None else first
            self._clock.sleep_until(began + (moment - first) / self._rate)
            if self._closed.is_set():
                return
            for topic, on_message in self._heard.get(name, []):
                if message.__msgtype__ != topic.type:
                    self._problems[f"{name}: expected {topic.type}, got {message.__msgtype__}"] += 1
                    continue
                try:
                    on_message(message)
                except Exception:
                    self._problems[f"{name}: messages that could not be used"] += 1
                    _log.exception("%s", name)
        self.over = True
