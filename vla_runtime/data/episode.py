"""One recorded demonstration, and the folder that keeps it until the data set is assembled.

An episode is a table of vectors, a row a control period, and for every camera the images that were
rendered with, for each row, which of them it shows. It knows neither environments nor LeRobot's files.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vla_runtime.data import frames, schema, statistics
from vla_runtime.disk import plain
from vla_runtime.types import Image

Columns = dict[str, NDArray[Any]]

_FACTS = "facts.json"
_TABLE = "rows.parquet"


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One demonstration in memory.

    facts: JSON values about it (task, attempt, seeds, initial state). columns: float32 [T, D] by feature
    name, and image_fresh and disturbed bool [T]. images: {camera: uint8 [H, W, 3] of each rendered moment}. shown:
    int64 [T], which of them each row shows.
    """

    facts: Mapping[str, Any]
    columns: Columns
    images: Mapping[str, Sequence[Image]]
    shown: NDArray[np.int64]

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self.columns.items()} | {"shown": len(self.shown)}
        if len(set(lengths.values())) != 1 or not len(self.shown):
            raise ValueError(f"episode: expected columns of one length of at least 1, got {lengths}")

    @property
    def length(self) -> int:
        return len(self.shown)

    def keep(self, rows: NDArray[np.bool_]) -> Episode:
        """The episode with only the rows where `rows` (bool [T]) is true."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Episode(self.facts, columns, self.images, self.shown[rows])


def write_part(folder: Path, facts: Mapping[str, Any], episode: Episode | None, images: str, fps: int | float) -> None:
    """Write one finished attempt as `folder`, whole or not at all; a failed attempt has facts only.

    images: "embedded" or "video". When the folder exists already (an earlier, interrupted run has finished
    the same attempt after all) that one stays: equal attempts are equal.
    """
    temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    document = dict(facts)
    if episode is not None:
        document["length"] = episode.length
        document["histograms"] = _histograms(episode)
        _write_rows(temporary, episode, images, fps)
    # A process that is killed loses nothing that it wrote; after a power cut the sizes tell what is missing,
    # which is cheaper than waiting for the disk at every attempt.
    document["sizes"] = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
    (temporary / _FACTS).write_text(json.dumps(plain(document), indent=1))
    try:
        temporary.rename(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not (folder / _FACTS).is_file():
            raise


def _histograms(episode: Episode) -> dict[str, Any]:
    found = {}
    used = np.unique(episode.shown)
    for camera, images in episode.images.items():
        chosen = [images[i] for i in used]
        found[camera] = {"counts": statistics.histogram(chosen), "images": statistics.num_sampled(len(chosen))}
    return found


def _write_rows(folder: Path, episode: Episode, images: str, fps: int | float) -> None:
    arrays = {name: vector_array(values) for name, values in episode.columns.items()}
    for camera, pictures in episode.images.items():
        if images == "video":
            path = folder / f"{schema.image_key(camera)}.mp4"
            frames.encode_video(path, [pictures[i] for i in episode.shown], fps)
            continue
        encoded = {i: frames.encode_png(pictures[i]) for i in np.unique(episode.shown)}
        arrays[schema.image_key(camera)] = pa.StructArray.from_arrays(
            [
                pa.array([encoded[i] for i in episode.shown], pa.binary()),
                # LeRobot names an embedded image after the file it came from.
                pa.array([f"frame-{row:06d}.png" for row in range(episode.length)], pa.string()),
            ],
            names=["bytes", "path"],
        )
    pq.write_table(pa.table(arrays), folder / _TABLE)


def vector_array(values: NDArray[Any]) -> pa.Array:
    """[T] or [T, 1] -> scalars, [T, D] -> lists of fixed size D, as the data files hold them."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return (
        flat if values.ndim == 1 or values.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    )


@dataclass(frozen=True, slots=True)
class Part:
    """A finished attempt on disk."""

    folder: Path
    facts: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Part:
        """ValueError when the folder is not as `write_part` left it."""
        try:
            facts = json.loads((folder / _FACTS).read_text())
            sizes = {name: (folder / name).stat().st_size for name in facts["sizes"]}
            complete = sizes == facts["sizes"]
        except (OSError, ValueError, KeyError, TypeError):
            complete = False
        if not complete:
            raise ValueError(
                f"{folder}: expected a recorded attempt, got an incomplete one; the same command makes it again"
            )
        return cls(folder, facts)

    @property
    def success(self) -> bool:
        return bool(self.facts["success"])

    def table(self) -> pa.Table:
        """The rows, embedded images among them."""
        return pq.read_table(self.folder / _TABLE)

    def video(self, camera: str) -> Path:
        return self.folder / f"{schema.image_key(camera)}.mp4"
