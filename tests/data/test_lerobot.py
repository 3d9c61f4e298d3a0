"""What is written: LeRobot's files, to the byte."""

import json

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_runtime.data.lerobot import Dataset, DatasetError, Writer

# Written down from LeRobot's documentation and its own v3.0 sets, not from this writer.
META_FILES = {"meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"}
DATA_FILES = {"data/chunk-000/file-000.parquet"}
VIDEO_FILES = {
    "videos/observation.images.front/chunk-000/file-000.mp4",
    "videos/observation.images.hand/chunk-000/file-000.mp4",
}
OWN_FILES = {"meta/vla_runtime.json"}
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
DATA_COLUMNS = {
    "observation.state": pa.list_(pa.float32(), 5),
    "action": pa.list_(pa.float32(), 4),
    "action.delta": pa.list_(pa.float32(), 4),
    "action.absolute": pa.list_(pa.float32(), 4),
    "image_fresh": pa.bool_(),
    "disturbed": pa.bool_(),
    "timestamp": pa.float32(),
    "frame_index": pa.int64(),
    "episode_index": pa.int64(),
    "index": pa.int64(),
    "task_index": pa.int64(),
}
EPISODE_COLUMNS = {
    "episode_index": pa.int64(),
    "tasks": pa.list_(pa.string()),
    "length": pa.int64(),
    "data/chunk_index": pa.int64(),
    "data/file_index": pa.int64(),
    "dataset_from_index": pa.int64(),
    "dataset_to_index": pa.int64(),
    "meta/episodes/chunk_index": pa.int64(),
    "meta/episodes/file_index": pa.int64(),
}
VIDEO_COLUMNS = {
    "chunk_index": pa.int64(),
    "file_index": pa.int64(),
    "from_timestamp": pa.float64(),
    "to_timestamp": pa.float64(),
}
STATISTICS = {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}
INFO = {
    "codebase_version": "v3.0",
    "robot_type": "tiny",
    "total_episodes": 3,
    "total_frames": 18,
    "total_tasks": 2,
    "chunks_size": 1000,
    "data_files_size_in_mb": 100,
    "video_files_size_in_mb": 200,
    "fps": 20,
    "splits": {"train": "0:3"},
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_files_are_lerobots(embedded, video):
    assert files(embedded.folder) == META_FILES | DATA_FILES | OWN_FILES
    assert files(video.folder) == META_FILES | DATA_FILES | VIDEO_FILES | OWN_FILES


def test_info(embedded, video):
    info = json.loads((embedded.folder / "meta/info.json").read_text())
    features = info.pop("features")
    assert info == {**INFO, "video_path": None}
    assert features["observation.images.front"] == {
        "dtype": "image",
        "shape": [16, 24, 3],
        "names": ["height", "width", "channels"],
    }
    assert features["observation.state"]["names"] == [
        "position.x",
        "position.y",
        "position.z",
        "fingers.left",
        "fingers.right",
    ]
    assert features["action"] == {
        "dtype": "float32",
        "shape": [4],
        "names": ["position.x", "position.y", "position.z", "gripper.command"],
    }
    for name in ("image_fresh", "disturbed"):
        assert features[name] == {"dtype": "bool", "shape": [1], "names": None}
    assert features["timestamp"] == {"dtype": "float32", "shape": [1], "names": None}
    info = json.loads((video.folder / "meta/info.json").read_text())
    assert info["video_path"] == "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    assert info["features"]["observation.images.hand"]["dtype"] == "video"
    assert info["features"]["observation.images.hand"]["info"] == {
        "video.height": 16,
        "video.width": 16,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": 20,
        "video.channels": 3,
        "has_audio": False,
    }


def test_data_columns(embedded, video):
    images = {"observation.images.front": IMAGE_TYPE, "observation.images.hand": IMAGE_TYPE}
    schema = pq.read_schema(embedded.folder / "data/chunk-000/file-000.parquet")
    assert {field.name: field.type for field in schema} == images | DATA_COLUMNS
    known = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert known["observation.images.front"] == {"_type": "Image"}
    assert known["action"] == {"feature": {"dtype": "float32", "_type": "Value"}, "length": 4, "_type": "Sequence"}
    assert known["index"] == {"dtype": "int64", "_type": "Value"}
    schema = pq.read_schema(video.folder / "data/chunk-000/file-000.parquet")
    assert {field.name: field.type for field in schema} == DATA_COLUMNS


def test_index_columns(embedded):
    parquet = pq.ParquetFile(embedded.folder / "data/chunk-000/file-000.parquet")
    assert [parquet.metadata.row_group(i).num_rows for i in range(3)] == [7, 5, 6]
    table = parquet.read()
    assert table["index"].to_pylist() == list(range(18))
    assert table["episode_index"].to_pylist() == [0] * 7 + [1] * 5 + [2] * 6
    assert table["frame_index"].to_pylist() == [*range(7), *range(5), *range(6)]
    assert table["task_index"].to_pylist() == [0] * 7 + [1] * 5 + [0] * 6
    assert np.allclose(table["timestamp"].to_numpy(), np.array([*range(7), *range(5), *range(6)]) / 20)


def test_episode_columns(embedded, video):
    for made, features in ((embedded, [*DATA_COLUMNS, "observation.images.front"]), (video, list(DATA_COLUMNS))):
        schema = pq.read_schema(made.folder / "meta/episodes/chunk-000/file-000.parquet")
        have = {field.name: field.type for field in schema}
        for name, expected in EPISODE_COLUMNS.items():
            assert have[name] == expected
        for feature in features:
            assert {name.rpartition("/")[2] for name in have if name.startswith(f"stats/{feature}/")} == STATISTICS
    for name, expected in VIDEO_COLUMNS.items():
        assert have[f"videos/observation.images.front/{name}"] == expected
    assert have["stats/action/mean"] == pa.list_(pa.float64())
    assert have["stats/observation.images.front/mean"] == pa.list_(pa.list_(pa.list_(pa.float64())))
    rows = pq.read_table(video.folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["dataset_from_index"] for row in rows] == [0, 7, 12]
    assert [row["dataset_to_index"] for row in rows] == [7, 12, 18]
    assert [row["videos/observation.images.hand/from_timestamp"] for row in rows] == [0.0, 0.35, 0.6]
    assert [row["tasks"] for row in rows] == [["lift the cube"], ["drop the cube"], ["lift the cube"]]


def test_tasks_are_the_index_of_a_pandas_table(embedded):
    table = pq.read_table(embedded.folder / "meta/tasks.parquet")
    assert table.to_pydict() == {"task_index": [0, 1], "task": ["lift the cube", "drop the cube"]}
    pandas = json.loads(table.schema.metadata[b"pandas"])
    assert pandas["index_columns"] == ["task"]
    assert {column["field_name"]: column["pandas_type"] for column in pandas["columns"]} == {
        "task_index": "int64",
        "task": "unicode",
    }


def test_statistics_equal_numpy(embedded):
    stats = json.loads((embedded.folder / "meta/stats.json").read_text())
    values = np.concatenate([episode.columns["action"] for episode in embedded.episodes]).astype(np.float64)
    assert set(stats["action"]) == STATISTICS
    assert np.allclose(stats["action"]["mean"], values.mean(0), atol=1e-12)
    assert np.allclose(stats["action"]["std"], values.std(0), atol=1e-12)
    assert np.array_equal(stats["action"]["min"], values.min(0))
    assert np.allclose(stats["action"]["q99"], np.quantile(values, 0.99, axis=0), atol=1e-12)
    assert stats["action"]["count"] == [18]
    pixels = np.concatenate([np.stack(episode.images["front"]) for episode in embedded.episodes]) / 255
    front = {name: np.array(value) for name, value in stats["observation.images.front"].items()}
    assert front["mean"].shape == (3, 1, 1)
    assert np.allclose(front["mean"].ravel(), pixels.mean((0, 1, 2)), atol=1e-9)
    assert np.allclose(front["std"].ravel(), pixels.std((0, 1, 2)), atol=1e-9)
    assert np.array_equal(front["max"].ravel(), pixels.max((0, 1, 2)))
    quantile = np.quantile(pixels.reshape(-1, 3), 0.9, axis=0, method="inverted_cdf")
    assert np.allclose(front["q90"].ravel(), quantile)
    rows = pq.read_table(embedded.folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert np.allclose(rows[1]["stats/action/mean"], embedded.episodes[1].columns["action"].astype(np.float64).mean(0))


def test_repeated_images_are_stored_once(factory, tmp_path):
    sizes = {}
    for stride in (1, 30):
        made = factory(tmp_path / str(stride), lengths=(30,), stride=stride)
        parquet = pq.ParquetFile(made.folder / "data/chunk-000/file-000.parquet")
        group = parquet.metadata.row_group(0)
        columns = [group.column(i) for i in range(group.num_columns)]
        sizes[stride] = sum(c.total_compressed_size for c in columns if c.path_in_schema.endswith(".bytes"))
    assert sizes[30] < sizes[1] / 2


def test_video_has_every_frame_at_its_time(video):
    path = video.folder / "videos/observation.images.front/chunk-000/file-000.mp4"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [float(frame.pts * stream.time_base) for frame in container.decode(stream)]
        assert float(stream.average_rate) == 20
    assert len(times) == 18
    assert np.allclose(times, np.arange(18) / 20, atol=1e-6)


@pytest.mark.parametrize("images", ["embedded", "video"])
def test_files_roll_over_at_their_limit(factory, tmp_path, images):
    made = factory(tmp_path / "rolled", images=images, data_mb=1e-5, video_mb=1e-5)
    rows = pq.read_table(made.folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["data/file_index"] for row in rows] == [0, 1, 2]
    assert len([name for name in files(made.folder) if name.startswith("data/")]) == 3
    if images == "video":
        assert [row["videos/observation.images.hand/file_index"] for row in rows] == [0, 1, 2]
        assert [row["videos/observation.images.hand/from_timestamp"] for row in rows] == [0.0, 0.0, 0.0]
    data = Dataset(made.folder, horizon=3)
    whole = factory(tmp_path / "whole", images=images)
    for (a, b), (c, d) in zip(data, Dataset(whole.folder, horizon=3), strict=True):
        assert np.array_equal(a.state, c.state)
        assert np.array_equal(b.actions, d.actions)
        assert np.array_equal(a.images["hand"], c.images["hand"])


def test_equal_episodes_give_equal_bytes(factory, video, tmp_path):
    again = factory(tmp_path / "again", images="video")
    for name in files(video.folder):
        assert (again.folder / name).read_bytes() == (video.folder / name).read_bytes(), name


def test_nothing_temporary_is_left_and_info_comes_last(embedded, factory, tmp_path, monkeypatch):
    def fail(table, path):
        raise OSError("disk full")

    monkeypatch.setattr("vla_runtime.data.writer.pq.write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        factory(tmp_path / "broken")
    assert not (tmp_path / "broken/meta/info.json").exists()
    with pytest.raises(DatasetError, match=r"expected a data set with meta/info.json"):
        Dataset(tmp_path / "broken", horizon=1)
    with pytest.raises(ValueError, match="expected a folder without a data set"):
        Writer(embedded.folder, embedded.spec, embedded.actions, "embedded")


def test_odd_sizes_and_unknown_words_are_refused(tmp_path, embedded):
    from dataclasses import replace

    from vla_runtime.types import CameraSpec

    spec = replace(embedded.spec, cameras=(CameraSpec("front", 15, 16),))
    with pytest.raises(ValueError, match="expected even height and width, got 15x16"):
        Writer(tmp_path, spec, embedded.actions, "video")
    with pytest.raises(ValueError, match="images: expected one of"):
        Writer(tmp_path, spec, embedded.actions, "jpeg")
