"""Frames of videos that others encoded, and what is said of files that are none."""

from __future__ import annotations

import sys

import av
import numpy as np
import pytest

from vla_runtime.data.frames import FrameReader, cut_short

COUNT, RATE = 40, 20


def shade(number):
    return 5 * number + 20


def encoded(path, codec="libx264", skip=None, fmt="mp4", **options):
    with av.open(str(path), "w", format=fmt) as container:
        stream = container.add_stream(codec, rate=RATE, options={"crf": "10", **options})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(COUNT):
            if number == skip:
                continue
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), shade(number), np.uint8), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"bf": "0", "g": "2"},
        {"bf": "3", "g": "10"},
        {"bf": "3", "g": "10", "x264-params": "open-gop=1:scenecut=0"},
        {"bf": "0", "g": "200", "fmt": "matroska"},
    ],
    ids=["own", "reordered", "open groups", "another container"],
)
def test_every_frame_is_found_in_any_order(tmp_path, options):
    path = encoded(tmp_path / "video.mp4", **options)
    assert cut_short(path) is None
    reader = FrameReader(path, RATE)
    for number in np.random.default_rng(0).permutation(COUNT):
        assert abs(float(reader.read(int(number)).mean()) - shade(number)) < 2
    with pytest.raises(ValueError, match=r"expected a frame 40, at 2 s, got a video without a frame"):
        reader.read(COUNT)
    reader.close()


def test_a_frame_that_is_missing_is_named(tmp_path):
    reader = FrameReader(encoded(tmp_path / "video.mp4", skip=7, bf="0"), RATE)
    assert reader.read(8).mean() == pytest.approx(shade(8), abs=2)
    with pytest.raises(ValueError, match=r"video.mp4: expected a frame 7, at 0.35 s, got a video without a frame"):
        reader.read(7)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda data: b"", "an empty file"),
        (lambda data: data[: len(data) // 2], "cut short"),
        (lambda data: data[:-9], ""),
    ],
)
def test_an_mp4_that_is_not_whole_is_seen_without_decoding(tmp_path, keep, message):
    path = encoded(tmp_path / "video.mp4", bf="0")
    path.write_bytes(keep(path.read_bytes()))
    assert message in cut_short(path)


def test_what_is_no_video_names_the_file(tmp_path):
    (tmp_path / "video.mp4").write_bytes(b"x" * 1000)
    assert cut_short(tmp_path / "video.mp4") is None
    with pytest.raises(ValueError, match=r"video.mp4: expected a video with frame 0, got a file that cannot be read"):
        FrameReader(tmp_path / "video.mp4", RATE).read(0)


def test_without_pyav_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"expected PyAV .* pip install 'vla_runtime\[data\]'"):
        FrameReader(tmp_path / "video.mp4", RATE).read(0)
