"""What a bridge needs of a way to reach a robot; `vla_runtime.ros` has one file for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from vla_runtime.robot_side import Topic

OnMessage = Callable[[Any], None]


class Transport(Protocol):
    """Carries messages of `vla_runtime.ros.messages`. Callbacks may come from any thread, one at a time.

    What cannot be delivered is dropped, never kept for later.
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
