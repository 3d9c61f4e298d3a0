"""Recordings in other people's formats, and episodes looked at while they go."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
from mcap.reader import make_reader
from PIL import Image
from recorded import recorded

from vla_runtime.compose import load
from vla_runtime.control.recorder import Recording
from vla_runtime.evaluation.live import LiveView
from vla_runtime.rollout import rollout


def test_an_mcap_file_holds_what_the_recording_does(tmp_path):
    path, *_ = recorded(tmp_path, images=True)
    found, code = rollout(load("rollout", [f"replay={path}", f"export={tmp_path / 'one.mcap'}"]))
    recording = Recording(path)
    assert (code, found["equal"]) == (0, True)
    with (tmp_path / "one.mcap").open("rb") as file:
        read = make_reader(file).iter_messages()
        messages = [(channel.topic, one.log_time, json.loads(one.data)) for _, channel, one in read]
    assert len(messages) == found["messages"]
    commands = [(time, one["values"]) for topic, time, one in messages if topic == "/command"]
    assert len(commands) == len(recording.ticks) == 30
    for (time, values), tick in zip(commands, recording.ticks, strict=True):
        assert time == round(tick["now"] * 1e9)
        assert np.array_equal(np.float32(values), tick["command"])
    images = [one for topic, _, one in messages if topic.startswith("/images/")]
    assert images
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(images[0]["data"]))))
    assert np.array_equal(pixels, recording.observation(0).images[images[0]["frame_id"]])


def test_an_episode_can_be_looked_at(tmp_path):
    options = ["env=reach", "env.size=16", "policy=hold", "env.tasks=[0]", "env.max_steps=12", "episodes=1"]
    summary, _ = rollout(load("rollout", [*options, "video=none", "viz=rrd", f"out={tmp_path / 'run'}"]))
    assert summary["errors"] == 0
    (path,) = (tmp_path / "run" / "views").iterdir()
    assert path.suffix == ".rrd"
    assert path.stat().st_size > 1000


def test_a_view_that_cannot_keep_up_drops_ticks_and_never_waits(tmp_path, monkeypatch, caplog):
    import threading

    from envs.reach import Reach

    held = threading.Event()
    monkeypatch.setattr(LiveView, "_show", lambda self: (held.wait(10), self._waiting.get()))
    view = LiveView(Reach().spec, "one", tmp_path / "one.rrd")
    for _ in range(100):
        view("a tick")
    assert view.dropped == 36
    for _ in range(64):
        view._waiting.get()
    held.set()
    view.close()
    assert "36 ticks were not shown" in caplog.text
