"""A policy server in a thread of the test's own process."""

from __future__ import annotations

import asyncio
import threading
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
