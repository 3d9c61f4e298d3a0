"""ROS 1 or ROS 2 through a rosbridge server: a websocket, where neither ROS nor its network reaches.

What cannot be sent now is not sent: nothing waits for a connection to come back, and of what waits to be written only
the newest message of a topic stays. A connection that is lost is made anew; meanwhile sending fails, and says so.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidProxy, InvalidURI
from websockets.sync.client import ClientConnection, connect

from vla_runtime.robot_side import Topic
from vla_runtime.ros.messages import decode
from vla_runtime.ros.ros1 import decode_ros1
from vla_runtime.ros.transport import Inbox, OnMessage
from vla_runtime.ros.words import from_words, to_words, type_name
from vla_runtime.wire import bound_sending, encryption, proxy_of, through

COMPRESSIONS = ("none", "cbor", "cbor-raw")
# Seconds: to connect, between two attempts, and after which a server that does not answer a ping is gone.
_CONNECT_S, _AGAIN_S, _PING_S = 5.0, 0.5, 2.0
# Seconds after which a server that does not read is gone, too.
_SEND_S = 1.0
_LARGEST = 1 << 24
_log = logging.getLogger(__name__)


class RosbridgeTransport:
    """A client of the rosbridge server at `address` (ws://host:9090).

    ros: 1 or 2, which the server speaks with. compression: how messages come: none (JSON), cbor, cbor-raw. ca: a PEM
    file of who vouches for a wss:// server, None for whom the system trusts. proxy: of a connection that is not to be
    direct.
    """

    def __init__(
        self, address: str, ros: int = 2, compression: str = "none", ca: str | None = None, proxy: str | None = None
    ):
        if ros not in (1, 2):
            raise ValueError(f"transport.ros: expected 1 or 2, got {ros!r}")
        if compression not in COMPRESSIONS:
            raise ValueError(f"transport.compression: expected one of {', '.join(COMPRESSIONS)}, got {compression!r}")
        self._cbor: Any = None
        if compression != "none":
            try:
                self._cbor = import_module("cbor2")
            except ImportError as error:
                raise RuntimeError(
                    f"transport.compression={compression}: expected the cbor2 package, got none ({error}); run "
                    "pip install 'vla_runtime[ros]'"
                ) from error
        try:
            self._tls, self._proxy = encryption(address, ca), proxy_of(proxy)
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"transport.{error}") from error
        self._address, self._ros, self._compression = address, ros, compression
        self._inbox = Inbox()
        self._said: Sequence[Topic] = ()
        self._heard: dict[str, tuple[Topic, Any]] = {}
        self._connection: ClientConnection | None = None
        self._open = ExitStack()
        # What waits to be written, the newest of a topic alone, and who writes it.
        self._waiting: dict[str, str] = {}
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []

    def open(self, publishes: Sequence[Topic]) -> None:
        self._said = publishes
        try:
            self._connect()
        except (OSError, InvalidHandshake, InvalidProxy, InvalidURI, TimeoutError) as error:
            raise RuntimeError(
                f"transport=rosbridge: expected a rosbridge server at {self._address}{through(self._proxy)}, got "
                f"{type(error).__name__}: {error}"
            ) from error
        for name, work in (("rosbridge-in", self._listen), ("rosbridge-out", self._write)):
            self._threads.append(threading.Thread(target=work, name=name, daemon=True))
            self._threads[-1].start()

    def subscribe(self, topic: Topic, on_message: OnMessage) -> None:
        if topic.type == "sensor_msgs/msg/Image" and self._compression == "none":
            raise RuntimeError(
                f"{topic.name}: expected compressed images through rosbridge, got {topic.type}, too slow as JSON; "
                "publish sensor_msgs/msg/CompressedImage, or take transport.compression=cbor"
            )
        self._heard[topic.name] = topic, self._inbox.handler(topic, on_message, self._decode)
        connection = self._connection
        if connection is not None:
            self._send(connection, self._subscription(topic))

    def publish(self, topic: Topic, message: Any) -> None:
        if self._closed.is_set() or self._connection is None:
            raise RuntimeError(f"{topic.name}: expected a connection to {self._address}, got none now")
        words = {"op": "publish", "topic": topic.name, "msg": to_words(message, self._ros)}
        with self._changed:
            if topic.name in self._waiting:
                self._inbox.problem(topic.name, "messages that a newer one replaced before they were sent")
            self._waiting[topic.name] = json.dumps(words)
            self._changed.notify_all()

    def health(self) -> list[str]:
        found = self._inbox.health()
        if self._closed.is_set():
            return found
        if self._connection is None:
            found.append(f"no connection to {self._address}")
        found += [f"the thread {one.name} has ended" for one in self._threads if not one.is_alive()]
        return found

    def close(self) -> None:
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        connection = self._connection
        if connection is not None:
            connection.close()
        self._open.close()
        for thread in self._threads:
            thread.join(2.0)

    def _connect(self) -> None:
        # What is left of the one before.
        self._open.close()
        connection = self._open.enter_context(
            connect(
                self._address, open_timeout=_CONNECT_S, close_timeout=1, max_size=_LARGEST, compression=None,
                ping_interval=_PING_S, ping_timeout=_PING_S, ssl=self._tls, proxy=self._proxy,
            )
        )  # fmt: skip
        bound_sending(connection.socket, _SEND_S)
        for topic in self._said:
            kind = type_name(topic.type, self._ros)
            said = {"op": "advertise", "id": f"advertise:{topic.name}", "topic": topic.name, "type": kind}
            self._send(connection, {**said, "queue_size": topic.depth})
        for topic, _ in list(self._heard.values()):
            self._send(connection, self._subscription(topic))
        self._connection = connection
        if self._closed.is_set():
            # Meanwhile somebody closed what was not there yet.
            self._open.close()

    def _subscription(self, topic: Topic) -> dict[str, Any]:
        return {
            "op": "subscribe", "id": f"subscribe:{topic.name}", "topic": topic.name,
            "type": type_name(topic.type, self._ros), "throttle_rate": 0, "queue_length": topic.depth,
            "compression": self._compression,
        }  # fmt: skip

    @staticmethod
    def _send(connection: ClientConnection, words: Mapping[str, Any]) -> None:
        connection.send(json.dumps(words))

    def _write(self) -> None:
        while not self._closed.is_set():
            with self._changed:
                while not self._waiting and not self._closed.is_set():
                    self._changed.wait()
                waiting, self._waiting = self._waiting, {}
            connection = self._connection
            for text in waiting.values():
                # A connection that went meanwhile takes with it what was to go through it.
                if connection is None or connection is not self._connection:
                    self._inbox.problems["messages lost with the connection"] += 1
                    continue
                try:
                    connection.send(text)
                except (ConnectionClosed, OSError) as error:
                    self._inbox.problems["messages lost with the connection"] += 1
                    # Whoever does not read would keep it open for ever.
                    self._lost(connection, error)

    def _listen(self) -> None:
        while not self._closed.is_set():
            connection = self._connection
            try:
                if connection is None:
                    self._connect()
                    _log.info("rosbridge: connected to %s again", self._address)
                    continue
                for frame in connection:
                    self._take(frame)
                raise ConnectionError("closed by the server")
            except (ConnectionClosed, OSError, InvalidHandshake, TimeoutError) as error:
                self._lost(connection, error)
            # After a loss, too: at once, a server that takes connections and reads nothing would never be noticed.
            self._closed.wait(_AGAIN_S)

    def _lost(self, connection: ClientConnection | None, error: Exception) -> None:
        if connection is None or self._closed.is_set():
            return
        with self._changed:
            if self._connection is not connection:
                return
            self._connection = None
            # Old when the connection is back.
            self._waiting.clear()
        connection.close()
        self._inbox.problems["connections lost"] += 1
        _log.warning("rosbridge: lost %s: %s", self._address, error)

    def _take(self, frame: str | bytes) -> None:
        try:
            words = self._read(frame)
            operation = words["op"]
            name = str(words.get("topic"))
        except Exception as error:
            self._inbox.problem("frames that say nothing", type(error).__name__)
            return
        if operation == "publish" and name in self._heard:
            self._heard[name][1](words.get("msg"))
        elif operation == "status" and words.get("level") in ("error", "warning"):
            self._inbox.problem("the server says", str(words.get("msg")))
        elif operation not in ("publish", "status"):
            self._inbox.problem("operations that are not known", str(operation))

    def _read(self, frame: str | bytes) -> Any:
        if isinstance(frame, str):
            return json.loads(frame)
        if self._cbor is None:
            raise ValueError("expected JSON, got bytes")
        return self._cbor.loads(frame)

    def _decode(self, kind: str, words: Any) -> Any:
        if self._compression == "cbor-raw" and isinstance(words, Mapping) and isinstance(words.get("bytes"), bytes):
            return decode_ros1(kind, words["bytes"]) if self._ros == 1 else decode(kind, words["bytes"])
        return from_words(kind, words)
