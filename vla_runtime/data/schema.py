"""The LeRobot v3.0 layout as values: paths, features, arrow schemas and the documents in `meta/`.

It stands beside the line, between what was recorded and what lies on disk, and knows neither
environments nor files: everything here is a pure function of its arguments. Follows the layout that
LeRobot's own writer (codebase version v3.0) produces, so that LeRobot can load a set written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from vla_runtime.types import ActionSpec, CameraSpec, EnvSpec

CODEBASE_VERSION = "v3.0"
CHUNKS_SIZE = 1000
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200

INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
OWN = "meta/vla_runtime.json"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

STATE = "observation.state"
FRESH = "image_fresh"
# Rows whose action was answered but not executed as it stands: something pushed.
DISTURBED = "disturbed"
IMAGES = ("embedded", "video")
SCALARS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
_ARROW = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

Features = dict[str, dict[str, Any]]


def image_key(camera: str) -> str:
    """The feature that holds the images of `camera`."""
    return f"observation.images.{camera}"


def choose(cameras: Sequence[CameraSpec], names: str | Sequence[str] | None, where: str) -> tuple[CameraSpec, ...]:
    """Those of `cameras` that `names` asks for, in its order; all for None.

    ValueError, with `where` they are looked for, for a name that is not there or there twice.
    """
    known = {camera.name: camera for camera in cameras}
    wanted = list(known) if names is None else [names] if isinstance(names, str) else list(names)
    if set(wanted) - known.keys() or len(set(wanted)) < len(wanted):
        raise ValueError(f"cameras: expected some of {list(known)}, each once, got {wanted}; {where} has these")
    return tuple(known[name] for name in wanted)


def frames_per_second(period: float) -> int | float:
    """1 / period in Hz, as an int where it is whole (LeRobot's own sets hold an int)."""
    rate = 1.0 / period
    return round(rate) if abs(rate - round(rate)) < 1e-6 else rate


def features(spec: EnvSpec, actions: Mapping[str, ActionSpec], images: str) -> Features:
    """The features of `meta/info.json`, in the order of the columns.

    actions: {"action": ..., "action.delta": ..., "action.absolute": ...}, whichever are recorded.
    images: "embedded" (PNG in the data files) or "video" (MP4). ValueError for another word, for a name
    with a slash, and for a camera of odd size in a video.
    """
    if images not in IMAGES:
        raise ValueError(f"images: expected one of {list(IMAGES)}, got {images!r}")
    found: Features = {}
    for camera in spec.cameras:
        if images == "video" and (camera.height % 2 or camera.width % 2):
            raise ValueError(
                f"images=video: expected even height and width, got {camera.height}x{camera.width} of camera "
                f"{camera.name!r}; use images=embedded or another camera size"
            )
        found[image_key(camera.name)] = _image_feature(camera.shape, images, frames_per_second(spec.period))
    found[STATE] = {"dtype": "float32", "shape": [spec.state.size], "names": list(spec.state.names)}
    for name, action in actions.items():
        found[name] = {"dtype": "float32", "shape": [action.size], "names": list(action.names)}
    for name in (FRESH, DISTURBED):
        found[name] = {"dtype": "bool", "shape": [1], "names": None}
    for name, dtype in SCALARS.items():
        found[name] = {"dtype": dtype, "shape": [1], "names": None}
    for name in found:
        if "/" in name:
            raise ValueError(f"feature {name!r}: expected a name without '/', which separates columns in meta/episodes")
    return found


def _image_feature(shape: tuple[int, int, int], images: str, fps: int | float) -> dict[str, Any]:
    feature: dict[str, Any] = {
        "dtype": "image" if images == "embedded" else "video",
        "shape": list(shape),
        "names": ["height", "width", "channels"],
    }
    if images == "video":
        feature["info"] = {
            "video.height": shape[0],
            "video.width": shape[1],
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": fps,
            "video.channels": shape[2],
            "has_audio": False,
        }
    return feature


def data_schema(features: Features) -> pa.Schema:
    """The arrow schema of the data files, with the metadata by which Hugging Face `datasets` knows images.

    Videos have no column; vectors of one dimension are scalars, as `datasets` stores them.
    """
    fields: list[pa.Field] = []
    known: dict[str, dict[str, Any]] = {}
    for name, feature in features.items():
        if feature["dtype"] == "video":
            continue
        if feature["dtype"] == "image":
            fields.append(pa.field(name, _IMAGE))
            known[name] = {"_type": "Image"}
            continue
        value: dict[str, Any] = {"dtype": feature["dtype"], "_type": "Value"}
        size = int(feature["shape"][0])
        scalar = _ARROW[feature["dtype"]]
        fields.append(pa.field(name, scalar if size == 1 else pa.list_(scalar, size)))
        known[name] = value if size == 1 else {"feature": value, "length": size, "_type": "Sequence"}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": known}})})


def info(features: Features, fps: int | float, robot: str, episodes: int, frames: int, tasks: int) -> dict[str, Any]:
    """The document `meta/info.json`."""
    video = any(feature["dtype"] == "video" for feature in features.values())
    return {
        "codebase_version": CODEBASE_VERSION,
        "robot_type": robot,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": CHUNKS_SIZE,
        "data_files_size_in_mb": DATA_FILE_MB,
        "video_files_size_in_mb": VIDEO_FILE_MB,
        "fps": fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA,
        "video_path": VIDEO if video else None,
        "features": features,
    }


def tasks_table(tasks: Sequence[str]) -> pa.Table:
    """`meta/tasks.parquet`: one row a task, with the metadata that makes pandas restore `task` as its index."""
    column = {"metadata": None, "numpy_type": "int64", "pandas_type": "int64"}
    index = {"metadata": None, "numpy_type": "object", "pandas_type": "unicode"}
    unnamed = {"name": None, "field_name": None, "numpy_type": "object", "pandas_type": "unicode"}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [{**unnamed, "metadata": {"encoding": "UTF-8"}}],
        "columns": [
            {"name": "task_index", "field_name": "task_index", **column},
            {"name": "task", "field_name": "task", **index},
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.3",
    }
    schema = pa.schema([("task_index", pa.int64()), ("task", pa.string())], metadata={"pandas": json.dumps(pandas)})
    return pa.table({"task_index": range(len(tasks)), "task": list(tasks)}, schema=schema)


def next_file(chunk: int, file: int) -> tuple[int, int]:
    """The (chunk_index, file_index) after this one."""
    return (chunk + 1, 0) if file == CHUNKS_SIZE - 1 else (chunk, file + 1)
