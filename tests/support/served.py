"""A policy server in a thread of the test's own process, and policies for it."""

from __future__ import annotations

import asyncio
import threading
import urllib.request
from contextlib import contextmanager

from numbered import Policy, Recording

from vla_runtime.serving.server import PolicyServer


class Served:
    """A server in a thread of its own; `stop()` lets it finish."""

    def __init__(self, policy, access=None, keys=None, batch=1, port=0):
        self._loop, self._stop, self._up = None, None, threading.Event()
        self.port = port
        self._thread = threading.Thread(target=self._run, args=(policy, access, keys, batch), daemon=True)
        self._thread.start()
        assert self._up.wait(10)

    def _run(self, policy, access, keys, batch):
        async def main():
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            server = PolicyServer(policy, access, keys, batch=batch)
            self.drained = await server.serve("127.0.0.1", self.port, self._stop, self._ready)

        asyncio.run(main())

    def _ready(self, port):
        self.port = port
        self._up.set()

    @property
    def address(self):
        return f"ws://127.0.0.1:{self.port}"

    def stop(self):
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()


@contextmanager
def serving(policy=None, access=None, keys=None, batch=1, port=0):
    server = Served(policy or Policy(Recording()), access, keys, batch, port)
    try:
        yield server
    finally:
        server.stop()


# Of the cameras of a small arm, as openpi's clients call them.
NAMES = {"overhead": "observation/image", "hand": "observation/wrist_image"}


def small():
    """A policy for the small cameras of the fixture."""
    return Policy(Recording(size=16))


def slow(seconds):
    """A policy that lets its answers wait for an event, at most so long."""
    held = threading.Event()

    def behave(session, seed):
        plain = session.predict

        def predict(observations, committed=None, deadline=None):
            held.wait(seconds)
            return plain(observations, committed, deadline)

        session.predict = predict
        return session

    return Policy(Recording(size=16), behave), held


def metrics(server):
    return urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5).read().decode()
