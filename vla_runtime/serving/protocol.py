"""What is said over the socket: openpi's words, and our own, which say more.

A server begins with one binary message, its metadata. An openpi client then sends a map of observation keys and gets a
map of arrays with `server_timing` in it; every message stands for itself. Our own messages name a `kind`: `begin`
starts a session with a seed, `predict` asks it. A text frame is an error. It knows neither sockets nor policies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_runtime.messages import decode_image, policy_document
from vla_runtime.types import Float, Observation, PolicySpec, SpecMismatch

VERSION = 1
OURS = "vla_runtime"


@dataclass(frozen=True, slots=True)
class Keys:
    """Under which names openpi clients send what. cameras: names of a policy's cameras to keys."""

    cameras: Mapping[str, str]
    state: str = "observation/state"
    prompt: str = "prompt"

    @classmethod
    def of(cls, spec: PolicySpec, cameras: Mapping[str, str] | None = None, **others: str) -> Keys:
        """For a policy: openpi's LIBERO names for the first two cameras unless given. ValueError for other cameras."""
        names = [camera.name for camera in spec.cameras]
        usual = ("observation/image", "observation/wrist_image")
        if cameras is None:
            if len(names) > len(usual):
                raise ValueError(f"keys.cameras: expected a key for each of {names}, got none; name them")
            cameras = dict(zip(names, usual, strict=False))
        if set(cameras) != set(names):
            raise ValueError(f"keys.cameras: expected a key for each of {names}, got {sorted(cameras)}")
        found = cls(dict(cameras), **others)
        said = [*found.cameras.values(), found.state, found.prompt]
        if len(set(said)) < len(said):
            raise ValueError(f"keys: expected a key of its own for everything, got {said}")
        return found

    def document(self) -> dict[str, Any]:
        """Plain values."""
        return {"cameras": dict(self.cameras), "state": self.state, "prompt": self.prompt}


def metadata(spec: PolicySpec, keys: Keys) -> dict[str, Any]:
    """A server's first message: what it serves, and how an openpi client is to name things."""
    return {OURS: VERSION, "policy": policy_document(spec), "keys": keys.document()}


def read_openpi(message: Mapping[str, Any], spec: PolicySpec, keys: Keys, time: float) -> Observation:
    """The observation of an openpi client, made at `time`. SpecMismatch, naming it, for what is missing or wrong."""

    def found(key: str, what: str) -> Any:
        if key not in message:
            raise SpecMismatch(f"observation: expected {key!r} ({what}), got the keys {sorted(map(str, message))}")
        return message[key]

    shapes = {camera.name: camera.shape for camera in spec.cameras}
    images = {name: decode_image(found(key, f"camera {name}"), shapes[name]) for name, key in keys.cameras.items()}
    for camera in spec.cameras:
        camera.validate(images[camera.name])
    state = _numbers(found(keys.state, "the state"), keys.state)
    spec.state.validate(state)
    prompt = found(keys.prompt, "the instruction")
    if not isinstance(prompt, str):
        raise SpecMismatch(f"observation: expected text under {keys.prompt!r}, got {type(prompt).__name__}")
    return Observation(state, images, prompt, time, dict.fromkeys(images, time))


def _numbers(value: Any, key: str) -> Float:
    """An array or a list of real numbers as float32."""
    try:
        numbers = np.asarray(value)
    except ValueError:  # lists of several lengths
        numbers = np.asarray(None)
    if numbers.dtype.kind not in "fiu":
        got = f"{numbers.dtype} {list(numbers.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise SpecMismatch(f"observation: expected real numbers under {key!r}, got {got}")
    with np.errstate(over="ignore"):  # what is too large is not finite, and refused as that
        return numbers.astype(np.float32)


def check_kind(message: Any, kinds: tuple[str, ...]) -> str | None:
    """The kind of one of our messages, None for an openpi client's. ValueError for what is neither."""
    if not isinstance(message, dict):
        raise ValueError(f"message: expected a map, got {type(message).__name__}")
    if OURS not in message:
        return None
    if message[OURS] != VERSION:
        raise ValueError(f"message: expected version {VERSION}, got {message[OURS]!r}")
    kind = message.get("kind")
    if kind not in kinds:
        raise ValueError(f"message: expected one of the kinds {', '.join(kinds)}, got {kind!r}")
    return str(kind)
