"""A transport between objects of one process: what ROS does, without ROS."""

from __future__ import annotations

import threading
from collections import defaultdict

from vla_runtime.ros.messages import decode, encode


class Air:
    """Everybody who has a transport of it hears everybody else. `said` keeps (topic, bytes) of all."""

    def __init__(self):
        self._heard = defaultdict(list)
        self._lock = threading.RLock()
        self.said = []
        self.cut = False

    def transport(self):
        return _Transport(self)

    def add(self, topic, on_message):
        with self._lock:
            self._heard[topic.name].append((topic.type, on_message))

    def say(self, topic, message):
        data = encode(message)
        with self._lock:
            if self.cut:
                raise RuntimeError("cut")
            self.said.append((topic.name, data))
            heard = list(self._heard[topic.name])
        for kind, on_message in heard:
            assert kind == topic.type, (topic, kind)
            on_message(decode(kind, data))

    def messages(self, topic, kind):
        return [decode(kind, data) for name, data in self.said if name == topic]


class _Transport:
    def __init__(self, air):
        self._air, self._open = air, ()

    def open(self, publishes):
        self._open = tuple(publishes)

    def subscribe(self, topic, on_message):
        self._air.add(topic, on_message)

    def publish(self, topic, message):
        assert topic in self._open, (topic, self._open)
        self._air.say(topic, message)

    def health(self):
        return []

    def close(self): ...
