"""A recording as an MCAP file, for the viewers that read those (Foxglove, PlotJuggler, rerun).

Messages are JSON with their schemas beside them, images foxglove.CompressedImage; times are the loop's.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mcap.writer import Writer

from vla_runtime.control.recorder import Recording
from vla_runtime.disk import plain, replacing

_VALUES = {
    "type": "object",
    "properties": {"values": {"type": "array", "items": {"type": "number"}}},
}
_TICK = {
    "type": "object",
    "properties": {
        "held": {"type": "boolean"},
        "allowed": {"type": "boolean"},
        "human": {"type": "boolean"},
        "broken": {"type": "array", "items": {"type": "string"}},
    },
}
_CHUNK = {
    "type": "object",
    "properties": {
        "start": {"type": "number"},
        "period": {"type": "number"},
        "observed": {"type": "number"},
        "thought_s": {"type": "number"},
        "rows": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
    },
}
_IMAGE = {
    "type": "object",
    "properties": {
        "timestamp": {
            "type": "object",
            "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}},
        },
        "frame_id": {"type": "string"},
        "format": {"type": "string"},
        "data": {"type": "string", "contentEncoding": "base64"},
    },
}
_SCHEMAS = {"values": _VALUES, "tick": _TICK, "chunk": _CHUNK, "foxglove.CompressedImage": _IMAGE}


def export_mcap(recording: Recording, path: Path) -> int:
    """Write `path`, whole or not at all; returns how many messages it holds."""
    count = 0
    with replacing(path) as temporary, temporary.open("wb") as file:
        writer: Any = Writer(file)
        writer.start(library="vla_runtime")
        schemas = {
            name: writer.register_schema(name, "jsonschema", json.dumps(schema).encode())
            for name, schema in _SCHEMAS.items()
        }
        channels: dict[str, int] = {}

        def tell(topic: str, schema: str, time: float, message: Mapping[str, Any]) -> None:
            nonlocal count
            if topic not in channels:
                channels[topic] = writer.register_channel(topic, "json", schemas[schema])
            stamp = round(time * 1e9)
            writer.add_message(channels[topic], stamp, json.dumps(message).encode(), stamp, count)
            count += 1

        for tick in recording.ticks:
            now = tick["now"]
            for topic in ("state", "wanted", "command"):
                tell(f"/{topic}", "values", now, {"values": np.asarray(tick[topic], float).tolist()})
            tell("/tick", "tick", now, {name: tick[name] for name in ("held", "allowed", "human", "broken")})
            if tick["answer"] is not None:
                answer = tick["answer"]
                message = {name: answer[name] for name in ("start", "period", "observed")}
                rows = np.asarray(answer["actions"], float).tolist()
                tell("/chunk", "chunk", now, {**message, "thought_s": tick["thought_s"], "rows": rows})
            for camera, data in tick["images"].items():
                taken = tick["image_times"][camera]
                sec, nsec = divmod(round(taken * 1e9), 10**9)
                encoded = base64.b64encode(data["png"]).decode("ascii")
                message = {
                    "timestamp": {"sec": sec, "nsec": nsec},
                    "frame_id": camera,
                    "format": "png",
                    "data": encoded,
                }
                tell(f"/images/{camera}", "foxglove.CompressedImage", now, message)
        told = {"header": recording.header, "end": recording.end}
        writer.add_metadata("episode", {name: json.dumps(plain(one)) for name, one in told.items()})
        writer.finish()
    return count
