"""Camera images to bytes and back: PNG for one image, H.264 in MP4 for an episode.

Knows nothing of data sets. Frames are uint8 [H, W, 3] RGB. Videos have a constant rate, a key frame
every second frame (any frame is reached by decoding at most two) and no reordered frames, so that
episodes join into one file by copying packets. Videos that were encoded again otherwise are read, too. PyAV is imported
where a video is opened: nothing else needs it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as Pillow

from vla_runtime.types import Image

if TYPE_CHECKING:
    import av

_CODEC = "libx264"
_REMEDY = "restore this file from a copy, or collect the set again into another folder"
# One thread: the same frames give the same bytes on every machine.
_OPTIONS = {"crf": "18", "g": "2", "bf": "0", "preset": "veryfast", "threads": "1"}


def encode_png(image: Image) -> bytes:
    """uint8 [H, W, 3] -> PNG, without loss."""
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def encode_video(path: Path, frames: Sequence[Image], fps: int | float) -> None:
    """Write `frames` as an MP4 of constant rate. ValueError where PyAV comes without an H.264 encoder."""
    av = _pyav()
    if _CODEC not in av.codecs_available:
        raise ValueError(
            f"images=video: expected PyAV with the encoder {_CODEC!r}, got a build without it; "
            "install the wheel of 'av' from PyPI, or use images=embedded"
        )
    height, width, _ = frames[0].shape
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(_CODEC, rate=_rate(fps), options=dict(_OPTIONS))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


class VideoFile:
    """An MP4 that grows by whole episodes; `close` completes it."""

    def __init__(self, path: Path, fps: int | float):
        self.path = path
        self.num_frames = 0
        self.num_bytes = 0
        self._rate = _rate(fps)
        self._container = _pyav().open(str(path), "w", format="mp4")
        self._stream: av.VideoStream | None = None

    def append(self, episode: Path) -> int:
        """Copy the packets of another MP4 to the end of this one; returns how many frames that were."""
        count = 0
        with _pyav().open(str(episode)) as source:
            origin = source.streams.video[0]
            if self._stream is None:
                self._stream = self._container.add_stream_from_template(origin)
                self._stream.time_base = origin.time_base
            assert origin.time_base is not None
            ticks = round(1 / (self._rate * origin.time_base))
            for packet in source.demux(origin):
                if packet.size == 0:  # the flush packet at the end
                    continue
                packet.pts = packet.dts = (self.num_frames + count) * ticks
                packet.duration = ticks
                packet.stream = self._stream
                self.num_bytes += packet.size
                self._container.mux(packet)
                count += 1
        self.num_frames += count
        return count

    def close(self) -> None:
        self._container.close()


class FrameReader:
    """Single frames of a video by their number; the file is opened on first use and kept open."""

    def __init__(self, path: Path, fps: int | float):
        self._path, self._rate = path, _rate(fps)
        self._container: av.container.InputContainer | None = None

    def read(self, number: int) -> Image:
        """Frame `number` (from 0) as uint8 [H, W, 3]; ValueError when the file has no such frame or is no video."""
        av = _pyav()
        try:
            if self._container is None:
                self._container = av.open(str(self._path))
                self._container.streams.video[0].thread_count = 1
            found = self._frame(self._container, number)
        except (av.error.FFmpegError, IndexError) as error:
            self.close()
            raise ValueError(
                f"{self._path}: expected a video with frame {number}, got a file that cannot be read there ({error}); "
                f"{_REMEDY}"
            ) from error
        if found is None:
            raise ValueError(
                f"{self._path}: expected a frame {number}, at {float(number / self._rate):g} s, got a video without a "
                f"frame at that time; {_REMEDY}"
            )
        return np.asarray(found.to_ndarray(format="rgb24"), np.uint8)

    def _frame(self, container: Any, number: int) -> Any:
        stream = container.streams.video[0]
        wanted = round(number / (self._rate * stream.time_base))
        first = stream.start_time or 0
        # A key frame may be followed by frames shown before it, which need what lies before the key frame (an open
        # group of pictures): where the wanted frame is skipped, decoding begins further ahead.
        for ahead in (0, 1, 10, None):
            begin = first if ahead is None else max(first, wanted - round(ahead / stream.time_base))
            container.seek(begin, stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.pts == wanted:
                    return frame
                if frame.pts is not None and frame.pts > wanted:
                    break
            if begin == first:
                return None
        return None

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None


def cut_short(path: Path) -> str | None:
    """What is wrong with a video file by its outline: it is empty, or an MP4 without its end; None where nothing is."""
    size = path.stat().st_size
    if size == 0:
        return "an empty file"
    with path.open("rb") as file:
        place, kinds = 0, set()
        while place < size:
            file.seek(place)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if place == 0 and kind != b"ftyp":
                # Another container; whether it can be read is seen when it is.
                return None
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            elif length == 0:
                length = size - place
            if length < 8 or place + length > size:
                return f"a file cut short: {size} bytes, and its part at byte {place} ends at byte {place + length}"
            kinds.add(kind)
            place += length
    return None if b"moov" in kinds else "a file cut short: without the index (moov) at its end"


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "expected PyAV for a data set with images=video, which is not installed; pip install 'vla_runtime[data]', "
            "or collect with images=embedded"
        ) from error
    return av


def _rate(fps: int | float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)
