"""The flight recorder: every tick of a run in one file that only grows and that a crash cannot spoil.

A file begins with eight bytes of its own and goes on in frames: four bytes that begin each, then the length of what
follows and its CRC-32 (begun with the length), 4 bytes each, little end first, and a msgpack map. The first frame says
what was run, one frame follows a tick, and the last says how it ended; a file without it was cut short. Images that are
kept have frames of their own, since a thread encodes them: the loop does not wait. It knows ticks and nothing of
environments or policies.
"""

from __future__ import annotations

import logging
import queue
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vla_runtime.control.trace import Broken, Run, Tick
from vla_runtime.messages import chunk_document, decode_image, encode_image, read_chunk
from vla_runtime.types import ActionChunk, Command, Image, Observation
from vla_runtime.wire import pack, unpack

_MAGIC = b"VLAREC\x01\n"
# Begins every frame: where one is damaged, it tells whether others follow.
_SYNC = b"\xf5VLA"
_HEAD = struct.Struct("<4sII")
# Of the recordings beside one that is not there.
_NAMED = 8
_log = logging.getLogger(__name__)


class Recorder:
    """Writes `path`, an `on_tick` of the loop; whatever is there is replaced. header: plain values, what is run.

    images: keep the images that the policy was shown, as PNG. Each tick is with the operating system before the next
    begins, so that only a crash of the machine can lose any; images are a little later. What goes wrong with them is
    raised at the next tick, or at the end.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], images: bool = False):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._changing = threading.Lock()
        self._problem: Exception | None = None
        self._images: queue.SimpleQueue[tuple[int, Mapping[str, Image]] | None] = queue.SimpleQueue()
        self._encoder = threading.Thread(target=self._encode, name="recorder", daemon=True) if images else None
        # A process that still writes to one of before writes to a file that has no name any more.
        path.unlink(missing_ok=True)
        # Without a buffer of our own: what was written is out of this process.
        self._file = path.open("wb", buffering=0)
        self._file.write(_MAGIC)
        self._write({"header": dict(header)})
        if self._encoder is not None:
            self._encoder.start()

    def __call__(self, tick: Tick) -> None:
        observation, answer = tick.observation, tick.answer
        self._write(
            {
                "tick": tick.index,
                "now": tick.now,
                "wall": tick.wall,
                "time": observation.time,
                "state": observation.state,
                "instruction": observation.instruction,
                "image_times": dict(observation.image_times),
                "asked": tick.asked,
                "answer": None if answer is None else chunk_document(answer),
                "thought_s": tick.thought,
                "ready": tick.ready,
                "wanted": tick.wanted,
                "command": tick.command.values,
                "held": tick.command.held,
                "broken": list(tick.broken),
                "allowed": tick.allowed,
                "since": tick.since,
                "human": tick.human,
            }
        )
        if self._encoder is not None and observation.images:
            self._images.put((tick.index, observation.images))
        self._raise()

    def close(self, result: Run, error: str | None = None) -> None:
        """The last frame: how it ended."""
        if self._encoder is not None:
            self._images.put(None)
            self._encoder.join()
        outcome = result.outcome
        events = [[event.time, event.what, event.reason] for event in result.events]
        ended = {"success": outcome.success, "reason": outcome.reason, "progress": outcome.progress, "error": error}
        self._write({"end": ended, "events": events, "last": None if result.last is None else _last(result.last)})
        self._file.close()
        self._raise()

    def _encode(self) -> None:
        while (given := self._images.get()) is not None:
            index, images = given
            try:
                encoded = {name: encode_image(image, "png") for name, image in images.items()}
                self._write({"shown": index, "images": encoded})
            except Exception as problem:
                self._problem = problem
                return

    def _raise(self) -> None:
        if self._problem is not None:
            problem, self._problem = self._problem, None
            raise problem

    def _write(self, frame: Mapping[str, Any]) -> None:
        data = pack(frame)
        with self._changing:
            self._file.write(_HEAD.pack(_SYNC, len(data), _checksum(data)) + data)


def _last(broken: Broken) -> dict[str, Any]:
    seen, answer = broken.observation, broken.answer
    return {
        "tick": broken.index,
        "now": broken.now,
        "state": None if seen is None else seen.state,
        # Whatever a policy may have said.
        "answer": chunk_document(answer) if isinstance(answer, ActionChunk) else None,
        "wanted": broken.wanted,
        "sent": broken.sent,
    }


class Recording:
    """A file that a `Recorder` wrote. header: its; ticks: maps as written; end: None for a run that was cut short, its
    `last` how far the tick had come that an exception ended.

    A damaged end is dropped with a warning. ValueError for none, a file of another kind, and for damage anywhere else.
    """

    def __init__(self, path: Path):
        frames = list(_frames(path))
        if not frames or "header" not in frames[0]:
            raise ValueError(f"{path}: expected a recording, got a file without its first frame")
        self.path, self.header = path, frames[0]["header"]
        images = {frame["shown"]: frame["images"] for frame in frames[1:] if "shown" in frame}
        self.ticks: list[dict[str, Any]] = [
            {**frame, "images": images.get(frame["tick"], {})} for frame in frames[1:] if "tick" in frame
        ]
        self.end: dict[str, Any] | None = frames[-1] if "end" in frames[-1] else None
        if [tick["tick"] for tick in self.ticks] != list(range(len(self.ticks))):
            raise ValueError(f"{path}: expected every tick once, in order")

    def observation(self, index: int) -> Observation:
        """What was seen in a tick, with the images that were kept."""
        tick = self.ticks[index]
        images = {name: decode_image(data) for name, data in tick["images"].items()}
        return Observation(tick["state"], images, tick["instruction"], tick["time"], tick["image_times"])

    def answer(self, index: int) -> ActionChunk | None:
        """The chunk that the planner had in a tick."""
        found = self.ticks[index]["answer"]
        return None if found is None else read_chunk(found)

    def command(self, index: int) -> Command:
        """The command of a tick."""
        tick = self.ticks[index]
        return Command(tick["command"], tick["now"], tick["held"])


def _frames(path: Path) -> Iterator[dict[str, Any]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        beside = ", ".join(sorted(other.name for other in path.parent.glob("*.rec"))[:_NAMED]) or "none"
        raise ValueError(f"{path}: expected a recording, got {error.strerror}; there are {beside}") from error
    if not data.startswith(_MAGIC):
        raise ValueError(f"{path}: expected a recording, got {data[:8]!r} at its beginning")
    place = len(_MAGIC)
    while place < len(data):
        frame = _frame(data, place)
        if frame is None:
            follows = data.find(_SYNC, place + 1)
            while follows >= 0 and _frame(data, follows) is None:
                follows = data.find(_SYNC, follows + 1)
            if follows < 0:
                _log.warning("%s: cut short; the last %d bytes are damaged and dropped", path, len(data) - place)
                return
            raise ValueError(f"{path}: expected whole frames, got damage at byte {place} of {len(data)}")
        yield unpack(frame)
        place += _HEAD.size + len(frame)


def _frame(data: bytes, place: int) -> bytes | None:
    """The whole frame at a place, None where there is none."""
    begin = place + _HEAD.size
    if begin > len(data):
        return None
    sync, length, checksum = _HEAD.unpack(data[place:begin])
    frame = data[begin : begin + length]
    return frame if sync == _SYNC and len(frame) == length and _checksum(frame) == checksum else None


def _checksum(data: bytes) -> int:
    # With the length, which no other checks.
    return zlib.crc32(data, len(data))
