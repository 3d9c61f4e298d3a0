"""A server among sixty-four that mean it no good: it stays up, and answers the one that behaves throughout."""

from __future__ import annotations

import base64
import os
import socket
import threading
import urllib.request
from contextlib import suppress
from itertools import cycle, islice

import msgpack
import numpy as np
import pytest
from numbered import Numbered, Policy, Recording
from served import serving
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from vla_runtime.control.clock import SystemClock
from vla_runtime.serving.client import RemotePolicy
from vla_runtime.serving.server import Access
from vla_runtime.wire import pack

TOKEN = {"Authorization": "Api-Key open"}
LARGEST = 200_000


def raw(port):
    return socket.create_connection(("127.0.0.1", port), 5)


def handshake():
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
        "Sec-WebSocket-Version: 13\r\nAuthorization: Api-Key open\r\n\r\n"
    ).encode()


def half_a_handshake(port, over):
    """Sends a header a byte at a time and never ends it."""
    with raw(port) as line:
        for byte in cycle(b"GET / HTTP/1.1\r\nHost: x\r\nX: "):
            line.send(bytes([byte]))
            if over.wait(0.05):
                return


def noise(port, over):
    while not over.is_set():
        with raw(port) as line:
            line.send(os.urandom(4096))
            over.wait(0.05)


def half_a_frame(port, over):
    """A handshake that is right, and a frame that says it is longer than what comes."""
    with raw(port) as line:
        line.send(handshake())
        line.send(b"\x82\xfe\x10\x00" + os.urandom(40))
        over.wait()


def nonsense(port, over):
    objects = {"x": {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "|O8", b"shape": [1]}}
    frames = [os.urandom(1000), msgpack.packb(objects), pack({"prompt": "x"}), "a text", b"", b"\xdd\xff\xff\xff\xff"]
    with connect(f"ws://127.0.0.1:{port}", additional_headers=TOKEN) as connection:
        connection.recv()
        for frame in cycle(frames):
            connection.send(frame)
            assert isinstance(connection.recv(10), str)
            if over.wait(0.05):
                return


def too_large(port, over):
    while not over.is_set():
        with connect(f"ws://127.0.0.1:{port}", additional_headers=TOKEN) as connection:
            connection.recv()
            connection.send(b"\0" * (LARGEST + 1))
            with pytest.raises(ConnectionClosed):
                connection.recv(10)
        over.wait(0.2)


def wrong_token(port, over):
    while not over.wait(0.2):
        with pytest.raises(InvalidStatus), connect(f"ws://127.0.0.1:{port}", additional_headers={"Authorization": "x"}):
            pass


def never_reads(port, over):
    """Asks and asks, and takes no answer."""
    with connect(f"ws://127.0.0.1:{port}", additional_headers=TOKEN) as connection:
        while not over.wait(0.01):
            connection.send(pack({"prompt": "x"}))


KINDS = (half_a_handshake, noise, half_a_frame, nonsense, too_large, wrong_token, never_reads)


def test_whoever_behaves_is_answered_throughout():
    env = Recording(size=16)
    env.reset(0, 0, 0)
    seen = env.observe([camera.name for camera in env.spec.cameras])
    alone, clock, over, failed = Numbered(env), SystemClock(), threading.Event(), []

    def guarded(kind, port):
        try:
            kind(port, over)
        except OSError:
            pass  # The server may hang up on them.
        except BaseException as error:
            failed.append((kind.__name__, error))

    with serving(Policy(Recording(size=16)), Access(token="open", connections=70, largest=LARGEST, idle=30)) as server:
        remote = RemotePolicy(server.address, token="open")
        session = remote.begin(0)
        others = [threading.Thread(target=guarded, args=(kind, server.port)) for kind in islice(cycle(KINDS), 64)]
        for thread in others:
            thread.start()
        slowest = 0.0
        for _ in range(40):
            began = clock.now()
            chunk = session.predict([seen])
            slowest = max(slowest, clock.now() - began)
            np.testing.assert_array_equal(chunk.actions, alone.predict([seen]).actions)
            clock.sleep_until(clock.now() + 0.05)
        assert sum(thread.is_alive() for thread in others) >= 40, "they were not there throughout"
        over.set()
        for thread in others:
            thread.join(20)
        assert not failed
        assert slowest < 5
        assert urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=5).read() == b"OK\n"
        remote.close()


def test_one_who_never_listens_does_not_keep_the_server_from_ending():
    clock = SystemClock()
    with serving(Policy(Recording(size=16)), Access(idle=1.0)) as server, raw(server.port) as line:
        line.send(handshake())
        line.settimeout(0.5)
        # A frame that is refused, with a mask of zeros: until neither side's buffers take any more.
        frame = b"\x82\x81\0\0\0\0\xc1" * 1000
        with suppress(TimeoutError):
            while True:
                line.send(frame)
        began = clock.now()
        server.stop()
        assert clock.now() - began < 10
