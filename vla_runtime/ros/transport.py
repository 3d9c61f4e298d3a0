"""What a bridge needs of a way to reach a robot; `vla_runtime.ros` has one file for each."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from vla_runtime.robot_side import Topic
from vla_runtime.ros.messages import decode
from vla_runtime.types import SpecMismatch

OnMessage = Callable[[Any], None]
# Of problems that are told apart.
_KINDS = 20
_log = logging.getLogger(__name__)


class Transport(Protocol):
    """Carries messages of `vla_runtime.ros.messages`. Callbacks may come from any thread, one at a time.

    What cannot be delivered is dropped, never kept for later. One whose system starts and stops programs and looks into
    them also has `manage(begin, end, parameters)`, called before `open`: `begin()` lets the policy move the robot
    (RuntimeError if it may not), `end(reason)` forbids it, parameters are shown; and `mirror(moves)`, told how it is.
    """

    def open(self, publishes: Sequence[Topic]) -> None:
        """Join, and say what will be published. RuntimeError where nobody can be reached."""

    def subscribe(self, topic: Topic, on_message: OnMessage) -> None:
        """Hand every message of a topic to `on_message`; what is no message of its type is counted and left out."""

    def publish(self, topic: Topic, message: Any) -> None:
        """Send. RuntimeError where that is known to be impossible now."""

    def health(self) -> list[str]:
        """What is wrong: qualities of service that do not match, connections that are down, messages left out."""

    def close(self) -> None: ...


class Inbox:
    """Hands on what comes in as bytes, and counts what goes wrong: one message of many must not end a transport."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.problems: Counter[str] = Counter()

    def problem(self, what: str, detail: str) -> None:
        """Count one. Kinds are few: numbers in details would make each a kind of its own."""
        key = f"{what}: {detail}"
        with self._lock:
            self.problems[key if key in self.problems or len(self.problems) < _KINDS else f"{what}: others"] += 1

    def handler(
        self, topic: Topic, on_message: OnMessage, decode: Callable[[str, Any], Any] = decode
    ) -> Callable[[Any], None]:
        """What to call with each message of a topic. decode: of a type's name and bytes, as ROS 2 sends them."""

        def on_bytes(data: Any) -> None:
            try:
                message = decode(topic.type, data)
            except SpecMismatch as error:
                self.problem(topic.name, str(error))
                return
            try:
                on_message(message)
            except Exception:
                self.problem(topic.name, "messages that could not be used")
                _log.exception("%s", topic.name)

        return on_bytes

    def health(self) -> list[str]:
        """What went wrong, with how often."""
        return [f"{reason} ({count} times)" for reason, count in list(self.problems.items())]

    def mismatch(self, topic: Topic, policy: str) -> None:
        """Somebody wants another quality of service."""
        wanted = "reliable" if topic.reliable else "best effort"
        reason = f"expected somebody who agrees on {wanted}, got another {policy}"
        self.problem(topic.name, reason)
        _log.error("%s: %s; nothing is delivered between these two", topic.name, reason)


def unheard(topics: Sequence[Topic], listeners: Callable[[str], int]) -> list[str]:
    """What is wrong where nobody hears topics that must be heard: commands and what cameras see. Words are for whoever
    wants them. listeners: how many a topic has, by its name.
    """
    heard = [topic.name for topic in topics if not topic.type.startswith(("std_msgs/", "diagnostic_msgs/"))]
    return [f"{name}: nobody listens" for name in heard if not listeners(name)]
