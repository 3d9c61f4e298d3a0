"""What is read back: exactly what was written, and nothing of a damaged set."""

import io
import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image as Pillow

from vla_runtime.data.frames import FrameReader, encode_png
from vla_runtime.data.lerobot import Dataset, DatasetError
from vla_runtime.data.pictures import Pictures
from vla_runtime.data.unfinished import save_settings


def test_round_trip_is_exact(embedded):
    data = Dataset(embedded.folder, horizon=4)
    assert len(data) == 18
    i = 0
    for episode in embedded.episodes:
        for row in range(episode.length):
            observation, chunk = data[i]
            assert np.array_equal(observation.state, episode.columns["observation.state"][row])
            assert observation.state.dtype == np.float32
            for camera, images in episode.images.items():
                assert np.array_equal(observation.images[camera], images[episode.shown[row]])
            count = min(4, episode.length - row)
            assert np.array_equal(chunk.actions[:count], episode.columns["action"][row : row + count])
            assert chunk.actions.shape == (4, 4)
            assert chunk.actions.dtype == np.float32
            assert chunk.start == chunk.observed == observation.time == pytest.approx(row / 20)
            assert chunk.period == pytest.approx(0.05)
            i += 1
    assert data[0][0].instruction == "lift the cube"
    assert data[7][0].instruction == "drop the cube"
    assert np.array_equal(data[-1][0].state, data[17][0].state)
    with pytest.raises(IndexError, match="expected 0 to 17, got 18"):
        data[18]


@pytest.mark.parametrize("control", ["delta", "absolute"])
def test_rows_beyond_the_end_hold_the_robot_still(embedded, control):
    data = Dataset(embedded.folder, horizon=5, control=control)
    _, chunk = data[6]
    last = embedded.episodes[0].columns[f"action.{control}"][-1]
    assert np.array_equal(chunk.actions[0], last)
    still = last if control == "absolute" else np.array([0, 0, 0, last[3]], np.float32)
    assert np.array_equal(chunk.actions[1:], np.tile(still, (4, 1)))
    data.action.validate(chunk.actions[-1])


def test_dataset_exposes_what_training_needs(embedded):
    data = Dataset(embedded.folder, horizon=1)
    assert data.contract.action.names == embedded.spec.action.names
    assert data.initial_states == {"state0", "state1", "state2"}
    assert [record.begin_seed for record in data.episodes] == [77, 78, 79]
    assert [(record.start, record.length) for record in data.episodes] == [(0, 7), (7, 5), (12, 6)]
    assert np.array_equal(data.episode(1)["action.absolute"], embedded.episodes[1].columns["action.absolute"])
    assert data.statistics()["action"]["mean"].shape == (4,)
    with pytest.raises(IndexError, match="expected 0 to 2, got 3"):
        data.episode(3)


def test_only_fresh_rows_begin_a_sample(factory, tmp_path):
    made = factory(tmp_path / "strided", stride=3)
    data = Dataset(made.folder, horizon=2)
    assert [data.row(i) for i in range(len(data))] == [0, 3, 6, 7, 10, 12, 15]
    stale = data.observation(5)
    assert np.array_equal(stale.images["front"], data.observation(3).images["front"])
    assert stale.time == pytest.approx(0.25)
    assert stale.image_times["front"] == pytest.approx(0.15)


def test_images_are_read_only_when_asked_for(embedded, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(embedded.folder, folder)
    data = Dataset(folder, horizon=1, cameras=())
    assert data[0][0].images == {}
    data = Dataset(folder, horizon=1, cache_bytes=1)
    assert data._pictures._encoded == {}
    first = data[0][0].images["hand"]
    data[17]
    assert len(data._pictures._encoded) == 1
    assert np.array_equal(data[0][0].images["hand"], first)
    again = pickle.loads(pickle.dumps(data))
    assert np.array_equal(again[0][0].images["hand"], first)
    data.close()


def test_video_images_are_close_and_in_order(video):
    data = Dataset(video.folder, horizon=1)
    for i in (17, 0, 8, 7, 3):
        record = max((r for r in data.episodes if r.start <= i), key=lambda r: r.start)
        episode = video.episodes[record.index]
        want = episode.images["front"][episode.shown[i - record.start]].astype(int)
        error = np.abs(data[i][0].images["front"].astype(int) - want)
        assert error.mean() < 3
    again = pickle.loads(pickle.dumps(data))
    assert np.array_equal(again[4][0].images["front"], data[4][0].images["front"])
    with pytest.raises(ValueError, match=r"expected a frame 18, at 0.9 s, got a video without"):
        FrameReader(video.folder / "videos/observation.images.front/chunk-000/file-000.mp4", 20).read(18)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def _video(folder):
    return folder / "videos/observation.images.front/chunk-000/file-000.mp4"


def _change(folder, name, **values):
    path = folder / f"meta/{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _facts(folder, key, value):
    episodes = json.loads((folder / "meta/vla_runtime.json").read_text())["episodes"]
    episodes[1][key] = value
    _change(folder, "vla_runtime", episodes=episodes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "data/chunk-000/file-000.parquet").unlink(), "file-000.parquet, got no such file"),
        (lambda folder: _cut(folder / "data/chunk-000/file-000.parquet"), "got an unreadable one"),
        (lambda folder: (folder / "meta/vla_runtime.json").unlink(), "written by vla_runtime.collect"),
        (lambda folder: _cut(folder / "meta/vla_runtime.json"), "got a file that is not JSON"),
        (lambda folder: shutil.rmtree(folder / "meta/episodes"), "episode records in meta/episodes, got no file"),
        (lambda folder: _cut(_video(folder)), "a whole video videos/.*file-000.mp4, got a file cut short"),
        (lambda folder: _video(folder).write_bytes(b""), "a whole video videos/.*file-000.mp4, got an empty file"),
        (lambda folder: _change(folder, "info", fps=0), "fps above 0 in meta/info.json, got 0"),
        (lambda folder: _change(folder, "info", fps=10), "fps in meta/info.json as rate_hz of the contract .* got 10"),
        (lambda folder: _change(folder, "info", features=None), "features with dtype, .* in meta/info.json, got None"),
        (lambda folder: _change(folder, "info", total_frames="18"), "total_frames of at least 1 .* got '18'"),
        (
            lambda folder: _change(folder, "vla_runtime", episodes=None),
            "episodes in meta/vla_runtime.json, got NoneType",
        ),
        (lambda folder: _facts(folder, "instruction", None), r"instruction \(str\) of episode 1 in .*json, got None"),
        (lambda folder: _facts(folder, "instruction", ""), r"instruction \(str\) of episode 1 in .*json, got ''"),
        (lambda folder: _facts(folder, "task", "1"), r"task \(int\) of episode 1 in .*json, got '1'"),
        (lambda folder: shutil.rmtree(folder / "videos"), "videos/observation.images.front.*got no such file"),
    ],
)
def test_a_damaged_set_is_refused(video, tmp_path, damage, message):
    folder = tmp_path / "damaged"
    shutil.copytree(video.folder, folder)
    damage(folder)
    with pytest.raises(DatasetError, match=message) as caught:
        Dataset(folder, horizon=1)
    assert "restore this file from a copy" in str(caught.value)
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize(
    ("feature", "values", "message"),
    [
        ("action", None, "4 finite numbers 'min' of action in meta/stats.json, got none"),
        ("action", {"min": [0.0]}, "4 finite numbers 'min' of action in meta/stats.json"),
        ("observation.state", 3, "numbers in meta/stats.json"),
    ],
)
def test_statistics_that_lack_something_are_refused(embedded, tmp_path, feature, values, message):
    folder = tmp_path / "damaged"
    shutil.copytree(embedded.folder, folder)
    stats = json.loads((folder / "meta/stats.json").read_text())
    (folder / "meta/stats.json").write_text(json.dumps({**stats, feature: values or {}}))
    with pytest.raises(DatasetError, match=message):
        Dataset(folder, horizon=1).statistics()


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_set_of_another_program_is_not_called_damaged(embedded, tmp_path, version):
    folder = tmp_path / "foreign"
    shutil.copytree(embedded.folder, folder)
    (folder / "meta/vla_runtime.json").unlink()
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    features = {name: one for name, one in features.items() if name not in ("image_fresh", "disturbed")}
    _change(folder, "info", features=features, codebase_version=version, robot_type="so100")
    with pytest.raises(DatasetError, match=r"expected meta/vla_runtime.json, which only vla_runtime.collect") as caught:
        Dataset(folder, horizon=1)
    told = str(caught.value)
    assert "another program made it" in told
    assert "so100" in told
    assert version in told
    assert not any(word in told for word in ("delete", "damaged", "restore"))


def test_other_folders_are_refused(embedded, tmp_path):
    with pytest.raises(DatasetError, match="got no folder"):
        Dataset(tmp_path / "nothing", horizon=1)
    folder = tmp_path / "old"
    shutil.copytree(embedded.folder, folder)
    info = folder / "meta/info.json"
    info.write_text(info.read_text().replace("v3.0", "v2.1"))
    with pytest.raises(DatasetError, match=r"of version v3.0 in meta/info.json, got 'v2.1'; read it with the version"):
        Dataset(folder, horizon=1)


def test_an_unfinished_set_names_the_command_that_finishes_it(tmp_path):
    save_settings(tmp_path, {"episodes": 3}, ["env=lift", "episodes=3", "out=elsewhere"])
    with pytest.raises(DatasetError, match="still being collected") as caught:
        Dataset(tmp_path, horizon=1)
    assert f"python -m vla_runtime.collect env=lift episodes=3 out={tmp_path}" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": 0}, "horizon: expected a whole number of at least 1, got 0"),
        ({"horizon": 1, "control": "velocity"}, r"control: expected one of \[None, 'delta', 'absolute'\]"),
        (
            {"horizon": 1, "cameras": ("top",)},
            r"cameras: expected some of \['front', 'hand'\], each once, got \['top'\]",
        ),
        ({"horizon": 1, "cameras": ("hand", "hand")}, r"each once, got \['hand', 'hand'\]"),
    ],
)
def test_arguments_that_the_set_cannot_serve(embedded, arguments, message):
    with pytest.raises(ValueError, match=message):
        Dataset(embedded.folder, **arguments)


def test_an_image_that_is_damaged_or_16_bit_is_named_with_its_place(embedded, monkeypatch):
    buffer = io.BytesIO()
    Pillow.fromarray(np.full((8, 8), 900, np.uint16)).save(buffer, "PNG")
    data = Dataset(embedded.folder, horizon=4)
    whole = encode_png(embedded.episodes[0].images["front"][0])
    for stored, reason in ((whole[:20], "got OSError: Truncated"), (buffer.getvalue(), "got 16 bits a channel")):
        monkeypatch.setattr(Pictures, "_bytes", lambda *_, stored=stored: pa.array([stored] * 18))
        expected = rf"expected an image of '\w+' in row 2 of episode 0, got one that cannot .* {reason}"
        with pytest.raises(DatasetError, match=expected):
            data[2]


def test_cameras_are_those_that_were_chosen_in_their_order(embedded):
    both, chosen = Dataset(embedded.folder, 1), Dataset(embedded.folder, 1, cameras=("hand", "front"))
    assert list(chosen[3][0].images) == ["hand", "front"]
    assert [camera.name for camera in chosen.contract.cameras] == ["hand", "front"]
    one = Dataset(embedded.folder, 1, cameras=("hand",))
    assert list(one[3][0].images) == [camera.name for camera in one.contract.cameras] == ["hand"]
    assert np.array_equal(one[3][0].images["hand"], both[3][0].images["hand"])


def test_the_id_of_the_contents_tells_what_training_sees(embedded, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(embedded.folder, folder)
    first = Dataset(folder, 3)
    assert first.contents_id() == Dataset(embedded.folder, 3).contents_id()
    own = folder / "meta/vla_runtime.json"
    own.write_text(own.read_text().replace('"drop the cube"', '"throw the cube"'))
    other = Dataset(folder, 3)
    assert other.statistics_id() == first.statistics_id()
    others = (other, Dataset(embedded.folder, 3, control="absolute"), Dataset(embedded.folder, 3, cameras=("hand",)))
    assert len({one.contents_id() for one in (first, *others)}) == 4
