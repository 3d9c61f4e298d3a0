"""Assembles finished attempts into a LeRobot v3.0 data set.

Rows go to Parquet files, one row group an episode; videos to one MP4 a camera, episode behind episode.
Both start a new file when the next episode would pass the size limit. Every file is complete before it
has its name, and `meta/info.json` comes last: a folder without it is not a data set. Equal parts in equal
order give equal bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_runtime.data import schema, statistics
from vla_runtime.data.episode import Columns, Part
from vla_runtime.data.frames import VideoFile
from vla_runtime.disk import publish, replacing, write_json
from vla_runtime.types import ActionSpec, EnvSpec

_MB = 1024**2
# Room for the images of one episode.
_DICTIONARY_BYTES = 512 * _MB


def column(table: pa.Table, name: str) -> Any:
    """A column as numpy: [T] for scalars, [T, D] for vectors."""
    values = table.column(name).combine_chunks()
    if pa.types.is_fixed_size_list(values.type):
        return values.flatten().to_numpy(zero_copy_only=False).reshape(-1, values.type.list_size)
    return values.to_numpy(zero_copy_only=False)


class Writer:
    """Writes one data set: `add` every episode in order, then `finish`.

    actions: the ActionSpec of every recorded action feature. images: "embedded" or "video". data_mb,
    video_mb: size at which a new file is begun.
    """

    def __init__(
        self,
        folder: Path,
        spec: EnvSpec,
        actions: Mapping[str, ActionSpec],
        images: str,
        data_mb: float = schema.DATA_FILE_MB,
        video_mb: float = schema.VIDEO_FILE_MB,
    ):
        if (folder / schema.INFO).exists():
            raise ValueError(f"{folder}: expected a folder without a data set, got a whole one; choose another out=")
        for leftover in ("data", "videos", "meta"):
            shutil.rmtree(folder / leftover, ignore_errors=True)
        self.folder, self.spec = folder, spec
        self.features = schema.features(spec, actions, images)
        self.fps = schema.frames_per_second(spec.period)
        self._images = images
        self._limits = data_mb * _MB, video_mb * _MB
        self._schema = schema.data_schema(self.features)
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._columns: list[Columns] = []
        self._pictures: dict[str, tuple[Any, int]] = {}
        self._frames = 0
        self._data = _DataFiles(folder, self._schema, self._limits[0])
        keys = {camera.name: schema.image_key(camera.name) for camera in spec.cameras}
        self._videos = (
            {camera: _VideoFiles(folder, key, self.fps, self._limits[1]) for camera, key in keys.items()}
            if images == "video"
            else {}
        )

    def add(self, part: Part, instruction: str) -> Columns:
        """Append one successful attempt; returns its numeric columns, [T] or [T, D] each."""
        task = self._tasks.setdefault(instruction, len(self._tasks))
        table = part.table()
        length, index = table.num_rows, len(self._episodes)
        rows = np.arange(length)
        scalars = {
            "timestamp": (rows / self.fps).astype(np.float32),
            "frame_index": rows,
            "episode_index": np.full(length, index),
            "index": rows + self._frames,
            "task_index": np.full(length, task),
        }
        arrays = [
            pa.array(scalars[name]) if name in scalars else table.column(name).combine_chunks()
            for name in self._schema.names
        ]
        table = pa.table(
            [array.cast(field.type) for array, field in zip(arrays, self._schema, strict=True)], self._schema
        )
        chunk, file = self._data.append(table)
        record: dict[str, Any] = {
            "episode_index": index,
            "tasks": [instruction],
            "length": length,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + length,
        }
        for camera, files in self._videos.items():
            record |= files.append(part.video(camera), length)
        numeric = [name for name in self._schema.names if self.features[name]["dtype"] != "image"]
        columns = {name: column(table, name) for name in numeric}
        record |= self._episode_stats(columns, part)
        record |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        self._episodes.append(record)
        self._columns.append(columns)
        self._frames += length
        return columns

    def finish(self, own: Mapping[str, Any]) -> None:
        """Close all files and write `meta/`; `own` becomes meta/vla_runtime.json, which LeRobot ignores."""
        if not self._episodes:
            raise ValueError("data set: expected at least one episode, got none")
        self._data.close()
        for files in self._videos.values():
            files.close()
        with replacing(self.folder / schema.TASKS) as path:
            pq.write_table(schema.tasks_table(list(self._tasks)), path)
        with replacing(self.folder / schema.EPISODES.format(chunk_index=0, file_index=0)) as path:
            pq.write_table(pa.Table.from_pylist(self._episodes), path)
        write_json(self.folder / schema.STATS, self._set_stats())
        write_json(self.folder / schema.OWN, own)
        robot = self.spec.name
        counts = len(self._episodes), self._frames, len(self._tasks)
        write_json(self.folder / schema.INFO, schema.info(self.features, self.fps, robot, *counts))

    def abandon(self) -> None:
        """Close what is open; the folder stays without meta/info.json."""
        self._data.close()
        for files in self._videos.values():
            files.close()

    def _episode_stats(self, columns: Columns, part: Part) -> dict[str, Any]:
        found: dict[str, statistics.Stats] = {}
        for camera, histogram in part.facts["histograms"].items():
            counts, images = np.array(histogram["counts"], np.int64), int(histogram["images"])
            found[schema.image_key(camera)] = statistics.of_histogram(counts, images)
            sums, total = self._pictures.get(camera, (np.zeros_like(counts), 0))
            self._pictures[camera] = (sums + counts, total + images)
        found |= {name: statistics.of_rows(values) for name, values in columns.items()}
        return {f"stats/{name}/{key}": value for name, stats in found.items() for key, value in stats.items()}

    def _set_stats(self) -> dict[str, statistics.Stats]:
        found = {
            schema.image_key(camera): statistics.of_histogram(counts, images)
            for camera, (counts, images) in self._pictures.items()
        }
        for name in self._columns[0]:
            found[name] = statistics.of_rows(np.concatenate([columns[name] for columns in self._columns]))
        return found


class _DataFiles:
    """The Parquet files, one after another."""

    def __init__(self, folder: Path, schema_: pa.Schema, limit: float):
        self._folder, self._schema, self._limit = folder, schema_, limit
        self._position = (0, 0)
        self._bytes = 0.0
        self._writer: pq.ParquetWriter | None = None
        self._temporary = self._final = folder

    def append(self, table: pa.Table) -> tuple[int, int]:
        if self._writer is not None and self._bytes + table.nbytes >= self._limit:
            self.close()
            self._position = schema.next_file(*self._position)
        if self._writer is None:
            chunk, file = self._position
            self._final = self._folder / schema.DATA.format(chunk_index=chunk, file_index=file)
            self._final.parent.mkdir(parents=True, exist_ok=True)
            self._temporary = self._final.with_name(f".tmp-{self._final.name}")
            self._writer = pq.ParquetWriter(
                self._temporary,
                self._schema,
                compression="snappy",
                use_dictionary=_repeating(table),
                dictionary_pagesize_limit=_DICTIONARY_BYTES,
            )
            self._bytes = 0.0
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._bytes += table.nbytes
        return self._position

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            publish(self._temporary, self._final)


def _repeating(table: pa.Table) -> list[str]:
    """The columns that a dictionary makes smaller: numbers, and images where rows repeat them.

    A dictionary of images that all differ would only hold them twice.
    """
    names = [field.name for field in table.schema if not pa.types.is_struct(field.type)]
    if not all(table.column(schema.FRESH).to_pylist()):
        names += [f"{field.name}.bytes" for field in table.schema if pa.types.is_struct(field.type)]
    return names


class _VideoFiles:
    """The MP4 files of one camera, one after another."""

    def __init__(self, folder: Path, key: str, fps: int | float, limit: float):
        self._folder, self._key, self._fps, self._limit = folder, key, fps, limit
        self._position = (0, 0)
        self._file: VideoFile | None = None
        self._final = folder

    def append(self, episode: Path, length: int) -> dict[str, Any]:
        if self._file is not None and self._file.num_bytes + episode.stat().st_size >= self._limit:
            self.close()
            self._position = schema.next_file(*self._position)
        chunk, file = self._position
        if self._file is None:
            self._final = self._folder / schema.VIDEO.format(video_key=self._key, chunk_index=chunk, file_index=file)
            self._final.parent.mkdir(parents=True, exist_ok=True)
            self._file = VideoFile(self._final.with_name(f".tmp-{self._final.name}"), self._fps)
        start = self._file.num_frames
        count = self._file.append(episode)
        if count != length:
            raise ValueError(
                f"{episode}: expected {length} frames, got {count}; move this attempt's folder away, "
                "and the same command makes it again"
            )
        prefix = f"videos/{self._key}"
        return {
            f"{prefix}/chunk_index": chunk,
            f"{prefix}/file_index": file,
            f"{prefix}/from_timestamp": start / self._fps,
            f"{prefix}/to_timestamp": (start + count) / self._fps,
        }

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            publish(self._file.path, self._final)
            self._file = None
