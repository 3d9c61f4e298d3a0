"""ROS 1 through rospy. The only file that imports it; it comes with a robot's own ROS 1 installation.

Messages pass as bytes: rospy carries them, and checks that both sides mean the same type. A process has one node.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from vla_runtime.robot_side import Topic
from vla_runtime.ros.ros1 import decode_ros1, encode_ros1
from vla_runtime.ros.transport import Inbox, OnMessage, unheard

# Seconds between two looks at whether the master is still there.
_LOOK_S = 1.0


class RospyTransport:
    """A node named `node`. Topics are absolute names of the contract; ROS 1 knows of their quality the depth alone."""

    def __init__(self, node: str = "vla_bridge"):
        try:
            self._rospy: Any = import_module("rospy")
            self._graph: Any = import_module("rosgraph")
        except ImportError as error:
            raise RuntimeError(
                f"transport=rospy: expected ROS 1's Python packages, got none ({error}); source your ROS installation"
            ) from error
        self._name = node
        self._inbox = Inbox()
        self._said: Sequence[Topic] = ()
        self._publishers: dict[str, Any] = {}
        # rospy calls back in a thread for every connection.
        self._one_at_a_time = threading.Lock()
        self._master_lost = False
        self._closed = threading.Event()

    def open(self, publishes: Sequence[Topic]) -> None:
        if not self._graph.is_master_online():
            # rospy itself would wait for ever.
            raise RuntimeError(
                f"transport=rospy: expected a master at {self._graph.get_master_uri()}, got none; start roscore, or "
                "set ROS_MASTER_URI"
            )
        self._rospy.init_node(self._name, disable_signals=True, log_level=self._rospy.WARN)
        self._said = publishes
        for topic in publishes:
            self._publishers[topic.name] = self._rospy.Publisher(
                topic.name, _raw(topic.type), queue_size=topic.depth, tcp_nodelay=True
            )
        threading.Thread(target=self._look_after, name="rospy", daemon=True).start()

    def subscribe(self, topic: Topic, on_message: OnMessage) -> None:
        hand_on = self._inbox.handler(topic, on_message, decode_ros1)

        def one(message: Any) -> None:
            with self._one_at_a_time:
                if not self._closed.is_set():
                    hand_on(message.raw)

        self._rospy.Subscriber(
            topic.name, _raw(topic.type), one, queue_size=topic.depth, buff_size=_buffer(topic), tcp_nodelay=True
        )

    def publish(self, topic: Topic, message: Any) -> None:
        if self._closed.is_set() or self._rospy.is_shutdown():
            raise RuntimeError(f"{topic.name}: expected an open node, got one that is shut down")
        publisher = self._publishers[topic.name]
        try:
            publisher.publish(publisher.data_class(encode_ros1(message)))
        except self._rospy.ROSException as error:
            raise RuntimeError(f"{topic.name}: expected an open node, got {error}") from error

    def health(self) -> list[str]:
        found = self._inbox.health()
        if self._closed.is_set():
            return found
        if self._rospy.is_shutdown():
            # As when another of the same name was started.
            return [*found, "the node was shut down from outside"]
        if self._master_lost:
            # Whoever has met still speaks; nobody new is found.
            found.append(f"the master at {self._graph.get_master_uri()} does not answer")
        return found + unheard(self._said, lambda name: self._publishers[name].get_num_connections())

    def close(self) -> None:
        if not self._closed.is_set() and self._publishers:
            self._closed.set()
            self._rospy.signal_shutdown("closed")
        self._closed.set()

    def _look_after(self) -> None:
        while not self._closed.wait(_LOOK_S):
            self._master_lost = not self._graph.is_master_online()


def _buffer(topic: Topic) -> int:
    """Bytes that a connection holds; with less than an image rospy's queue of one is behind by several."""
    return 1 << 24 if "Image" in topic.type else 1 << 16


def _raw(kind: str) -> Any:
    """A class of the same type whose objects are the message's bytes."""
    package, _, name = kind.split("/")
    known: Any = getattr(import_module(f"{package}.msg"), name)

    def begin(self: Any, raw: bytes = b"") -> None:
        self.raw = raw

    def serialize(self: Any, buffer: Any) -> None:
        buffer.write(self.raw)

    def deserialize(self: Any, raw: bytes) -> Any:
        self.raw = bytes(raw)
        return self

    made: dict[str, Callable[..., Any]] = {"__init__": begin, "serialize": serialize, "deserialize": deserialize}
    # Its header is in the bytes: rospy is to count nothing.
    return type(name, (known,), {**made, "_has_header": False, "__slots__": ["raw"]})
