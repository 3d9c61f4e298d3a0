"""ROS 2 through rclpy: messages go in and out as bytes, so that nothing is converted twice.

The only file that imports rclpy, which comes with a robot's own ROS 2 installation. Spins in a thread of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from vla_runtime.robot_side import Topic
from vla_runtime.ros.messages import encode
from vla_runtime.ros.transport import Inbox, OnMessage, unheard

_log = logging.getLogger(__name__)


class RclpyTransport:
    """A node named `node` in `namespace`. Topics are absolute names of the contract and stay so.

    Where it is managed it is a lifecycle node, active while the policy may move the robot.
    """

    def __init__(self, node: str = "vla_bridge", namespace: str = "", domain: int | None = None):
        try:
            self._rclpy: Any = import_module("rclpy")
        except ImportError as error:
            raise RuntimeError(
                f"transport=rclpy: expected ROS 2's Python packages, got none ({error}); source your ROS installation"
            ) from error
        self._executors: Any = import_module("rclpy.executors")
        self._qos: Any = import_module("rclpy.qos")
        self._events: Any = import_module("rclpy.event_handler")
        self._name, self._namespace, self._domain = node, namespace, domain
        self._publishers: dict[str, Any] = {}
        self._said: Sequence[Topic] = ()
        self._inbox = Inbox()
        self._begin: Callable[[], None] = lambda: None
        self._end: Callable[[str], None] = lambda reason: None
        self._parameters: dict[str, bool | int | float | str] | None = None
        self._active = False
        self._context: Any = None
        self._node: Any = None
        self._executor: Any = None
        self._thread: threading.Thread | None = None

    def open(self, publishes: Sequence[Topic]) -> None:
        self._context = self._rclpy.context.Context()
        self._rclpy.init(args=[], context=self._context, domain_id=self._domain)
        if self._parameters is None:
            self._node = self._rclpy.create_node(self._name, namespace=self._namespace, context=self._context)
        else:
            self._node = self._managed()
        self._said = publishes
        for topic in publishes:
            callbacks = self._events.PublisherEventCallbacks(
                incompatible_qos=lambda event, topic=topic: self._incompatible(topic, event)
            )
            self._publishers[topic.name] = self._node.create_publisher(
                self._type(topic), topic.name, self._quality(topic), event_callbacks=callbacks
            )
        self._executor = self._executors.SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name="rclpy", daemon=True)
        self._thread.start()

    def subscribe(self, topic: Topic, on_message: OnMessage) -> None:
        callbacks = self._events.SubscriptionEventCallbacks(
            incompatible_qos=lambda event: self._incompatible(topic, event),
            message_lost=lambda event: self._lost(topic, event),
        )
        self._node.create_subscription(
            self._type(topic), topic.name, self._inbox.handler(topic, on_message), self._quality(topic), raw=True,
            event_callbacks=callbacks,
        )  # fmt: skip

    def manage(
        self, begin: Callable[[], None], end: Callable[[str], None], parameters: Mapping[str, bool | int | float | str]
    ) -> None:
        """Before `open`: it will be a lifecycle node. Activating it calls `begin`, deactivating it `end`."""
        self._begin, self._end, self._parameters = begin, end, dict(parameters)

    def mirror(self, moves: bool) -> None:
        """Let the node's state say whether the policy may move the robot, whoever decided so."""
        if self._parameters is not None and moves != self._active:
            self._executor.create_task(self._follow, moves)

    def publish(self, topic: Topic, message: Any) -> None:
        try:
            self._publishers[topic.name].publish(encode(message))
        except self._rclpy.handle.InvalidHandle as error:
            raise RuntimeError(f"{topic.name}: expected an open node, got {error}") from error

    def health(self) -> list[str]:
        found = self._inbox.health()
        if self._thread is not None and not self._thread.is_alive():
            found.append("the node's thread has ended")
        return found + unheard(self._said, lambda name: self._publishers[name].get_subscription_count())

    def close(self) -> None:
        if self._context is None or not self._context.ok():
            return
        if self._executor is not None:
            self._executor.shutdown(2.0)
        if self._node is not None:
            self._node.destroy_node()
        self._rclpy.shutdown(context=self._context)
        if self._thread is not None:
            self._thread.join(2.0)

    def _managed(self) -> Any:
        """The node. Its transitions are called in the thread that spins."""
        lifecycle: Any = import_module("rclpy.lifecycle")
        described = import_module("rcl_interfaces.msg").ParameterDescriptor(read_only=True)
        done = lifecycle.TransitionCallbackReturn
        transport = self

        class Node(lifecycle.LifecycleNode):  # type: ignore[misc]
            def on_activate(self, state: Any) -> Any:
                try:
                    transport._begin()
                except RuntimeError as error:
                    _log.warning("%s", error)
                    return done.FAILURE
                transport._active = True
                return super().on_activate(state)

            def on_deactivate(self, state: Any) -> Any:
                transport._end("deactivated")
                transport._active = False
                return super().on_deactivate(state)

            def on_shutdown(self, state: Any) -> Any:
                transport._end("shut down")
                transport._active = False
                return super().on_shutdown(state)

        node = Node(self._name, namespace=self._namespace, context=self._context)
        for name, value in (self._parameters or {}).items():
            node.declare_parameter(name, value, described)
        node.trigger_configure()
        return node

    def _follow(self, moves: bool) -> None:
        begin, end = self._begin, self._end
        self._begin, self._end = lambda: None, lambda reason: None
        try:
            if moves != self._active:
                self._node.trigger_activate() if moves else self._node.trigger_deactivate()
        finally:
            self._begin, self._end = begin, end

    def _spin(self) -> None:
        while self._context.ok():
            try:
                self._executor.spin()
            except self._executors.ExternalShutdownException:
                return
            except Exception as error:
                # Such as a transition that does not fit, asked for by anybody: a stop must still be heard.
                self._inbox.problem("the node", f"{type(error).__name__}: {error}")
                _log.exception("the node goes on")

    def _incompatible(self, topic: Topic, event: Any) -> None:
        self._inbox.mismatch(topic, str(event.last_policy_kind).lower().rpartition("policy_")[2])

    def _lost(self, topic: Topic, event: Any) -> None:
        self._inbox.problems[f"{topic.name}: messages lost"] += event.total_count_change

    def _quality(self, topic: Topic) -> Any:
        policies = self._qos.ReliabilityPolicy
        return self._qos.QoSProfile(
            depth=topic.depth, reliability=policies.RELIABLE if topic.reliable else policies.BEST_EFFORT
        )

    @staticmethod
    def _type(topic: Topic) -> Any:
        package, _, name = topic.type.split("/")
        return getattr(import_module(f"{package}.msg"), name)
