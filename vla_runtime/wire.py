"""Values with numpy arrays in them as msgpack bytes, and back.

An array is a map {b"__ndarray__": True, b"data", b"dtype", b"shape"} and a numpy scalar {b"__npgeneric__": True,
b"data", b"dtype"}: the encoding that openpi's clients speak. Arrays of objects do not exist here: nothing that is
read can run code.
"""

from __future__ import annotations

import importlib.util
import socket
import ssl
import struct
from typing import Any

import msgpack
import numpy as np

# Booleans, numbers and complex numbers; neither objects nor records nor text.
_KINDS = "biufc"


def bound_sending(line: socket.socket, seconds: float) -> None:
    """Let every write to a connection fail after so long: the other end may be there and not listen."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int((seconds % 1) * 1e6)))


def encryption(address: str, ca: str | None) -> ssl.SSLContext | None:
    """What a connection to wss:// checks its server by, None for ws://. ca: a PEM file of who vouches for the server,
    None for those whom the system trusts. ValueError for a file that is none, or that nothing would look at.
    """
    if not address.startswith("wss://"):
        if ca is not None:
            raise ValueError(f"ca: expected an address with wss://, got {address}, which nobody vouches for")
        return None
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ValueError(f"ca: expected a PEM file, got {ca}: {error}") from error


PROXIES = ("http", "https", "socks5", "socks5h", "socks4", "socks4a")


def proxy_of(proxy: str | None) -> str | None:
    """The proxy that a connection goes through; None: it goes directly, whatever http_proxy and its like say, which are
    meant for the web and not for a robot. ValueError for what is no address of a proxy, RuntimeError for one of SOCKS
    without the package that speaks it.
    """
    if proxy is None:
        return None
    kind, separator, place = proxy.partition("://") if isinstance(proxy, str) else ("", "", "")
    if kind not in PROXIES or not separator or not place:
        raise ValueError(f"proxy: expected {PROXIES[0]}://host:port ({', '.join(PROXIES)}) or null, got {proxy!r}")
    if kind.startswith("socks") and importlib.util.find_spec("python_socks") is None:
        raise RuntimeError(
            f"proxy={without_password(proxy)}: expected the package python-socks for a SOCKS proxy, got none; "
            "pip install python-socks"
        )
    return proxy


def without_password(address: str) -> str:
    """An address without what stands before its @, for messages and files."""
    kind, separator, place = address.partition("://")
    return f"{kind}{separator}{place.rpartition('@')[2]}"


def through(proxy: str | None) -> str:
    """How a message names the way of a connection: nothing where it is direct."""
    return "" if proxy is None else f" through the proxy {without_password(proxy)}"


# Maps in a message, and values in a list of one, at most.
_MAPS, _LIST = 4096, 2**20


def pack(value: Any) -> bytes:
    """`value` (None, bool, numbers, text, bytes, lists, maps, arrays) as bytes. ValueError for what has no encoding."""
    packed: bytes = msgpack.packb(value, default=_encode)
    return packed


def unpack(data: bytes) -> Any:
    """What `pack` was given: tuples come back as lists, arrays own their memory. ValueError for anything else, and for
    far more maps or longer lists than any message of ours or openpi's has: a few bytes make much work.
    """
    maps = 0

    def decode(value: dict[Any, Any]) -> Any:
        nonlocal maps
        maps += 1
        if maps > _MAPS:
            raise ValueError(f"expected at most {_MAPS} maps, got more")
        return _decode(value)

    try:
        return msgpack.unpackb(data, object_hook=decode, strict_map_key=False, max_array_len=_LIST, max_map_len=_MAPS)
    except (msgpack.UnpackException, ValueError, TypeError, KeyError, SyntaxError, OverflowError) as error:
        raise ValueError(f"message: expected one msgpack value, got {type(error).__name__}: {error}") from error


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in _KINDS:
        raise ValueError(f"message: expected arrays of numbers or booleans, got {value.dtype}")
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise ValueError(f"message: expected plain values and arrays, got {type(value).__name__}")


def _decode(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return np.frombuffer(value[b"data"], _dtype(value)).reshape(value[b"shape"]).copy()
    if b"__npgeneric__" in value:
        return _dtype(value).type(value[b"data"])
    return value


def _dtype(value: dict[Any, Any]) -> np.dtype[Any]:
    found: np.dtype[Any] = np.dtype(value[b"dtype"])
    if found.kind not in _KINDS:
        raise ValueError(f"message: expected arrays of numbers or booleans, got {found}")
    return found
