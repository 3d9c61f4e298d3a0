"""Camera images to bytes and back: PNG for one image, H.264 in MP4 for an episode.

Knows nothing of data sets. Frames are uint8 [H, W, 3] RGB. Videos have a constant rate, a key frame
every second frame (any frame is reached by decoding at most two) and no reordered frames, so that
episodes join into one file by copying packets.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image as Pillow

from vla_runtime.types import Image

_CODEC = "libx264"
# One thread: the same frames give the same bytes on every machine.
_OPTIONS = {"crf": "18", "g": "2", "bf": "0", "preset": "veryfast", "threads": "1"}


def encode_png(image: Image) -> bytes:
    """uint8 [H, W, 3] -> PNG, without loss."""
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def encode_video(path: Path, frames: Sequence[Image], fps: int | float) -> None:
    """Write `frames` as an MP4 of constant rate. ValueError where PyAV comes without an H.264 encoder."""
    if _CODEC not in av.codecs_available:
        raise ValueError(
            f"images=video: expected PyAV with the encoder {_CODEC!r}, got a build without it; "
            "install the wheel of 'av' from PyPI, or use images=embedded"
        )
    height, width, _ = frames[0].shape
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(_CODEC, rate=_rate(fps), options=dict(_OPTIONS))
        assert isinstance(stream, av.VideoStream)
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
        self._container = av.open(str(path), "w", format="mp4")
        self._stream: av.VideoStream | None = None

    def append(self, episode: Path) -> int:
        """Copy the packets of another MP4 to the end of this one; returns how many frames that were."""
        count = 0
        with av.open(str(episode)) as source:
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
    """Single frames of an MP4 by their number; the file is opened on first use and kept open."""

    def __init__(self, path: Path, fps: int | float):
        self._path, self._rate = path, _rate(fps)
        self._container: av.container.InputContainer | None = None

    def read(self, number: int) -> Image:
        """Frame `number` (from 0) as uint8 [H, W, 3]; ValueError when the file has no such frame."""
        if self._container is None:
            self._container = av.open(str(self._path))
            self._container.streams.video[0].thread_count = 1
        stream = self._container.streams.video[0]
        assert stream.time_base is not None
        wanted = round(number / (self._rate * stream.time_base))
        self._container.seek(wanted, stream=stream, backward=True)
        for frame in self._container.decode(stream):
            if frame.pts is not None and frame.pts >= wanted:
                if frame.pts != wanted:
                    break
                return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        raise ValueError(f"{self._path}: expected a frame {number}, got a file without it; it is damaged")

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None


def _rate(fps: int | float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)
