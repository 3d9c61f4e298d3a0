"""A server that speaks as rosbridge_suite does, as far as its protocol goes: bytes in base64, CBOR where asked for."""

from __future__ import annotations

import json
import socket
import threading
from collections import defaultdict
from contextlib import suppress

import cbor2
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

from vla_runtime.ros.messages import encode, fields_of
from vla_runtime.ros.words import from_words

# RFC 8746, as rosbridge_library's cbor_conversion tags them.
TAGS = {"float64": (86, "<f8"), "float32": (85, "<f4"), "int32": (78, "<i4"), "uint32": (70, "<u4")}


def cbor_words(message):
    """A message as rosbridge's CBOR has it: bytes as they are, arrays of numbers tagged."""
    found = {}
    for name, (form, what) in fields_of(message.__msgtype__):
        if name == "structure_needs_at_least_one_member":
            continue
        value = getattr(message, name)
        if form == "name":
            value = cbor_words(value)
        elif form in ("array", "sequence"):
            inner, kind = what[0]
            if inner == "name":
                value = [cbor_words(one) for one in value]
            elif kind == "uint8":
                value = np.asarray(value, np.uint8).tobytes()
            elif kind in TAGS:
                tag, dtype = TAGS[kind]
                value = cbor2.CBORTag(tag, np.asarray(value).astype(dtype).tobytes())
        found[name] = value
    return found


class Rosbridge:
    """Whatever one client publishes, those who subscribed hear; `frames` keeps what clients sent."""

    def __init__(self, port=0):
        self._heard = defaultdict(list)
        self._lock = threading.Lock()
        self._connections = set()
        self.frames = []
        self._server = serve(self._talk, "127.0.0.1", port, compression=None, max_size=None)
        self.port = self._server.socket.getsockname()[1]
        self.address = f"ws://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        """As a killed server: at once, and everybody loses the connection."""
        self._server.socket.close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()

    def say(self, frame):
        """A frame to everybody."""
        for connection in list(self._connections):
            connection.send(frame)

    def _talk(self, connection):
        self._connections.add(connection)
        types = {}
        try:
            for frame in connection:
                words = json.loads(frame)
                with self._lock:
                    self.frames.append(words)
                    if words["op"] == "advertise":
                        types[words["topic"]] = words["type"]
                    elif words["op"] == "subscribe":
                        self._heard[words["topic"]].append((connection, words["compression"]))
                    elif words["op"] == "publish":
                        self._hand_on(words, types[words["topic"]])
        except (ConnectionClosed, OSError):
            pass
        finally:
            self._connections.discard(connection)

    def _hand_on(self, words, kind):
        for connection, compression in self._heard[words["topic"]]:
            if connection not in self._connections:
                continue
            frame = {"op": "publish", "topic": words["topic"], "msg": words["msg"]}
            if compression == "none":
                connection.send(json.dumps(frame))
                continue
            message = from_words(kind, words["msg"])
            if compression == "cbor-raw":
                frame["msg"] = {"secs": 0, "nsecs": 0, "bytes": encode(message)}
            else:
                frame["msg"] = cbor_words(message)
            connection.send(cbor2.dumps(frame))
