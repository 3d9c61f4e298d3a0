"""Frames to H.264 files and filmstrips; needs PyAV (the `data` extra) for the former."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from vla_runtime.types import Image

_STRIP_FRAMES = 6
_STRIP_HEIGHT = 120


def has_video() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def write_video(path: Path, frames: Iterable[Image], rate_hz: float) -> None:
    """Write uint8 [H, W, 3] RGB frames, whose sides are made even, as an H.264 file; atomically.

    ImportError, naming the extra, without PyAV.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("video= expected PyAV, which is not installed; pip install 'vla_runtime[data]'") from error
    from fractions import Fraction

    part = path.with_name(f".{path.name}.part.mp4")
    with av.open(str(part), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate_hz).limit_denominator(1000))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "23", "preset": "veryfast"}
        for index, frame in enumerate(frames):
            even = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
            if index == 0:
                stream.height, stream.width = even.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")))
        container.mux(stream.encode())
    part.rename(path)


def write_strip(path: Path, frames: Sequence[Image]) -> None:
    """Write a few of `frames`, evenly spaced and side by side, as one JPEG; atomically."""
    chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, min(_STRIP_FRAMES, len(frames))).round().astype(int)]
    pictures = [Picture.fromarray(frame) for frame in chosen]
    height = _STRIP_HEIGHT
    small = [picture.resize((round(picture.width * height / picture.height), height)) for picture in pictures]
    strip = Picture.new("RGB", (sum(picture.width for picture in small), height))
    left = 0
    for picture in small:
        strip.paste(picture, (left, 0))
        left += picture.width
    part = path.with_name(f".{path.name}.part")
    strip.save(part, "JPEG", quality=85)
    part.rename(path)
