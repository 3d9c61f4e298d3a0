"""Bags (MCAP, as ROS 2 writes them): what goes over a transport recorded, and a recorded robot in place of a real one.

Bytes are kept as they came; what was written a second ago is on disk, whatever becomes of the recorder.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rosbags.rosbag2 import StoragePlugin, Writer, WriterError
from rosbags.rosbag2.storage_mcap import McapWriter
from rosbags.typesys import Stores, get_typestore

from vla_runtime.control.clock import Clock, SystemClock
from vla_runtime.robot_side import Topic
from vla_runtime.ros.bag_files import Bag
from vla_runtime.ros.messages import encode
from vla_runtime.ros.transport import OnMessage, Transport
from vla_runtime.types import SpecMismatch

# Seconds without a new subscriber after which a bag begins to play.
_SETTLED = 0.3
# Seconds of messages that a killed recorder may lose.
_FLUSHED = 1.0
_log = logging.getLogger(__name__)


class BagWriter:
    """Writes a new bag. ValueError for one that exists. Any thread may write.

    Killed, it leaves all but the last second's messages in a file that `Bag` reads.
    """

    def __init__(self, path: Path):
        self._store = get_typestore(Stores.ROS2_JAZZY)
        self._lock = threading.Lock()
        self._connections: dict[str, Any] = {}
        self._flushed: float | None = None
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
            if self._flushed is None:
                self._flushed = seconds
            # Moments of several threads are not in order.
            if abs(seconds - self._flushed) >= _FLUSHED:
                self._flushed = seconds
                storage = self._writer.storage
                assert isinstance(storage, McapWriter)
                # A chunk is in memory until it is full, which takes minutes where no camera is recorded.
                storage.close_chunk()
                storage.bio.flush()

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
        # Read as it plays; one that is no bag is an error at once.
        with Bag(self._path) as bag:
            if next(bag.raw(), None) is None:
                raise ValueError(f"{self._path}: expected messages, got none")
            self._problems.update(bag.missing)
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
        return [f"{reason} ({count} times)" for reason, count in list(self._problems.items())]

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(5.0)
        if self._out is not None:
            self._out.close()

    def _play(self) -> None:
        while self._clock.now() < self._changed + _SETTLED and not self._closed.is_set():
            self._clock.sleep_until(self._clock.now() + 0.01)
        try:
            with Bag(self._path) as bag:
                self._say(bag)
        except (ValueError, OSError) as error:
            self._problems[f"the bag ends early: {error}"] += 1
            _log.error("the bag ends early: %s", error)
        finally:
            # Whatever happened: who waits for more waits in vain.
            self.over = True

    def _say(self, bag: Bag) -> None:
        began, first = self._clock.now(), None
        for raw in bag.raw():
            first = raw.seconds if first is None else first
            self._clock.sleep_until(began + (raw.seconds - first) / self._rate)
            if self._closed.is_set():
                return
            heard = self._heard.get(raw.topic, [])
            if not heard:
                continue
            try:
                message = raw.message()
            except SpecMismatch as error:
                self._problem(f"{raw.topic}: messages that cannot be read", f"recorded at {raw.seconds:.3f} s: {error}")
                continue
            for topic, on_message in heard:
                if message.__msgtype__ != topic.type:
                    self._problems[f"{raw.topic}: expected {topic.type}, got {message.__msgtype__}"] += 1
                    continue
                try:
                    on_message(message)
                except Exception:
                    self._problems[f"{raw.topic}: messages that could not be used"] += 1
                    _log.exception("%s", raw.topic)

    def _problem(self, what: str, detail: str) -> None:
        """Count one; the first is logged with what was wrong."""
        self._problems[what] += 1
        if self._problems[what] == 1:
            _log.warning("%s: the first was %s", what, detail)
