"""ROS 2 topics through CycloneDDS, where no ROS is installed: a policy's computer on a robot's network.

The only file that imports cyclonedds. Messages pass as the bytes they are: its own encoding in Python takes
milliseconds an image. Types are made of the definitions in the `rosbags` library.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

from vla_runtime.robot_side import Topic
from vla_runtime.ros.messages import encode, fields_of
from vla_runtime.ros.transport import Inbox, OnMessage, unheard

_log = logging.getLogger(__name__)

# How often a thread that waits for messages looks whether it is to end, and how many it takes at a time.
_PATIENCE_S, _AT_ONCE = 0.2, 32
# DDS's numbers of the qualities that ROS lets one choose.
_POLICIES = {2: "durability", 4: "deadline", 8: "liveliness", 11: "reliability", 13: "history", 14: "resource limits"}


class CycloneTransport:
    """A participant of a ROS domain. Topics are absolute names of the contract.

    domain: ROS_DOMAIN_ID. peers: addresses of computers to look for instead of asking the whole network, as ROS does
    with ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST or ROS_STATIC_PEERS; interface: the network interface's name to use.
    Without both, CycloneDDS decides (CYCLONEDDS_URI).
    """

    def __init__(self, domain: int = 0, peers: Sequence[str] = (), interface: str | None = None):
        try:
            self._core: Any = import_module("cyclonedds.core")
        except ImportError as error:
            raise RuntimeError(
                f"transport=cyclonedds: expected the cyclonedds package, got none ({error}); run "
                "pip install 'vla_runtime[cyclonedds]'"
            ) from error
        self._domains: Any = import_module("cyclonedds.domain")
        self._topics: Any = import_module("cyclonedds.topic")
        self._pub: Any = import_module("cyclonedds.pub")
        self._sub: Any = import_module("cyclonedds.sub")
        self._qos: Any = import_module("cyclonedds.qos")
        self._util: Any = import_module("cyclonedds.util")
        self._id, self._peers, self._interface = domain, tuple(peers), interface
        self._inbox = Inbox()
        self._said: Sequence[Topic] = ()
        self._writers: dict[str, Any] = {}
        self._readers: list[tuple[Any, Any]] = []
        self._domain: Any = None
        self._participant: Any = None
        self._waiting: Any = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self, publishes: Sequence[Topic]) -> None:
        try:
            if self._peers or self._interface is not None:
                self._domain = self._domains.Domain(self._id, _config(self._peers, self._interface))
            self._participant = self._domains.DomainParticipant(self._id)
        except self._core.DDSException as error:
            raise RuntimeError(f"transport=cyclonedds: expected domain {self._id} to open, got {error}") from error
        self._said = publishes
        for topic in publishes:
            self._writers[topic.name] = self._pub.DataWriter(
                self._participant, self._topic(topic), qos=self._quality(topic), listener=self._listener(topic)
            )
        self._waiting = self._core.WaitSet(self._participant)
        self._thread = threading.Thread(target=self._listen, name="cyclonedds", daemon=True)
        self._thread.start()

    def subscribe(self, topic: Topic, on_message: OnMessage) -> None:
        reader = self._sub.DataReader(
            self._participant, self._topic(topic), qos=self._quality(topic), listener=self._listener(topic)
        )
        states = (self._core.SampleState.Any, self._core.ViewState.Any, self._core.InstanceState.Any)
        condition = self._core.ReadCondition(reader, states[0] | states[1] | states[2])
        self._readers.append((reader, self._inbox.handler(topic, on_message)))
        self._waiting.attach(condition)
        self._readers[-1][0].condition = condition

    def publish(self, topic: Topic, message: Any) -> None:
        writer = self._writers[topic.name]
        if self._closed.is_set():
            raise RuntimeError(f"{topic.name}: expected an open transport, got one that is closed")
        try:
            writer.write(writer.topic.data_type(encode(message)))
        except self._core.DDSException as error:
            raise RuntimeError(f"{topic.name}: expected to be able to send, got {error}") from error

    def health(self) -> list[str]:
        found = self._inbox.health()
        if self._closed.is_set():
            return found
        if self._thread is not None and not self._thread.is_alive():
            found.append("the thread that listens has ended")
        return found + unheard(self._said, lambda name: len(self._writers[name].get_matched_subscriptions()))

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join(2.0)
            self._thread = None
        self._writers.clear()
        self._readers.clear()
        self._waiting = self._participant = self._domain = None

    def _listen(self) -> None:
        try:
            while not self._closed.is_set():
                self._waiting.wait(self._util.duration(seconds=_PATIENCE_S))
                for reader, hand_on in list(self._readers):
                    for sample in reader.take(N=_AT_ONCE):
                        data = getattr(sample, "data", None)
                        # Others say here that they have gone.
                        if data is not None:
                            hand_on(data)
        except Exception:
            self._inbox.problems["the thread that listens has ended"] += 1
            _log.exception("cyclonedds")

    def _topic(self, topic: Topic) -> Any:
        return self._topics.Topic(self._participant, f"rt{topic.name}", _raw(topic.type))

    def _quality(self, topic: Topic) -> Any:
        policy = self._qos.Policy
        reliability = policy.Reliability
        return self._qos.Qos(
            reliability.Reliable(self._util.duration(milliseconds=100)) if topic.reliable else reliability.BestEffort,
            policy.History.KeepLast(topic.depth), policy.Durability.Volatile,
        )  # fmt: skip

    def _listener(self, topic: Topic) -> Any:
        def incompatible(entity: Any, status: Any) -> None:
            self._inbox.mismatch(topic, _POLICIES.get(status.last_policy_id, f"policy {status.last_policy_id}"))

        return self._core.Listener(on_offered_incompatible_qos=incompatible, on_requested_incompatible_qos=incompatible)


def _config(peers: Sequence[str], interface: str | None) -> str:
    """CycloneDDS's configuration for addresses to look at, in place of everybody on the network."""
    interfaces = "" if interface is None else f'<Interfaces><NetworkInterface name="{interface}"/></Interfaces>'
    multicast = "<AllowMulticast>false</AllowMulticast>" if peers else ""
    known = "".join(f'<Peer address="{one}"/>' for one in peers)
    discovery = f"<ParticipantIndex>auto</ParticipantIndex><Peers>{known}</Peers>" if peers else ""
    return (
        f"<CycloneDDS><Domain><General>{interfaces}{multicast}</General>"
        f"<Discovery>{discovery}</Discovery></Domain></CycloneDDS>"
    )


@cache
def _raw(kind: str) -> Any:
    """A class whose objects are a ROS message's bytes, and whose description is that of the message's type."""

    def begin(self: Any, data: bytes) -> None:
        self.data = data

    def serialize(self: Any, *_: Any, **__: Any) -> bytes:
        return bytes(self.data)

    # No dataclass: its fields describe the type, and are not there.
    found: Any = _struct(kind, dataclassify=False, name="Raw")
    found.__init__, found.serialize = begin, serialize
    found.deserialize = classmethod(lambda cls, data, *_, **__: cls(data))
    return found


@cache
def _struct(kind: str, dataclassify: bool = True, name: str = "") -> Any:
    idl: Any = import_module("cyclonedds.idl")
    package, _, last = kind.split("/")
    fields = {field: _idl_type(*described) for field, described in fields_of(kind)}
    return idl.make_idl_struct(name + last, f"{package}::msg::dds_::{last}_", fields, dataclassify=dataclassify)


def _idl_type(form: str, what: Any) -> Any:
    types: Any = import_module("cyclonedds.idl.types")
    if form == "name":
        return _struct(what)
    if form == "base":
        plain = {"string": str, "bool": bool, "octet": types.uint8, "byte": types.uint8, "char": types.uint8}
        return plain.get(what) or getattr(types, what)
    inner, count = what
    return types.array[_idl_type(*inner), count] if form == "array" else types.sequence[_idl_type(*inner)]
