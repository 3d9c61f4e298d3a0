"""Single images of a data set, read when they are asked for.

Embedded images go through a bounded cache of encoded bytes, an episode at a time; videos are sought in.
Knows nothing of samples or actions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vla_runtime.data import schema
from vla_runtime.data.frames import FrameReader
from vla_runtime.data.opening import damaged
from vla_runtime.pictures import decode_picture
from vla_runtime.types import Image


class Pictures:
    """Images by (camera, episode, row of the episode). Copies into other processes carry no open files."""

    def __init__(self, folder: Path, info: Mapping[str, Any], table: pa.Table, cache_bytes: int):
        self._folder, self._info, self._cache_bytes = folder, info, cache_bytes
        self._video = {
            name.removeprefix("observation.images."): feature["dtype"] == "video"
            for name, feature in info["features"].items()
            if name.startswith("observation.images.")
        }
        wanted = [name for name in table.column_names if name.startswith(("data/", "videos/"))]
        self._places = table.select(wanted).to_pylist()
        self._groups = _row_groups([(place["data/chunk_index"], place["data/file_index"]) for place in self._places])
        self._clear()

    def _clear(self) -> None:
        self._parquet: dict[Path, pq.ParquetFile] = {}
        self._readers: dict[Path, FrameReader] = {}
        self._encoded: OrderedDict[tuple[str, int], pa.Array] = OrderedDict()
        self._held = 0

    def __getstate__(self) -> dict[str, Any]:
        closed = dict(self.__dict__)
        for name in ("_parquet", "_readers", "_encoded"):
            closed.pop(name)
        return closed

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    def read(self, camera: str, episode: int, row: int) -> Image:
        if self._video[camera]:
            return self._frame(camera, episode, row)
        try:
            return decode_picture(self._bytes(camera, episode)[row].as_py())
        except ValueError as error:
            what = f"an image of {camera!r} in row {row} of episode {episode}"
            raise damaged(self._folder, what, f"one that cannot be used ({error})") from error

    def _frame(self, camera: str, episode: int, row: int) -> Image:
        place, prefix = self._places[episode], f"videos/{schema.image_key(camera)}"
        path = self._folder / schema.VIDEO.format(
            video_key=schema.image_key(camera),
            chunk_index=place[f"{prefix}/chunk_index"],
            file_index=place[f"{prefix}/file_index"],
        )
        fps = self._info["fps"]
        reader = self._readers.get(path)
        if reader is None:
            reader = self._readers[path] = FrameReader(path, fps)
        return reader.read(round(place[f"{prefix}/from_timestamp"] * fps) + row)

    def _bytes(self, camera: str, episode: int) -> pa.Array:
        key = (camera, episode)
        if key in self._encoded:
            self._encoded.move_to_end(key)
            return self._encoded[key]
        place, name = self._places[episode], schema.image_key(camera)
        path = self._folder / schema.DATA.format(
            chunk_index=place["data/chunk_index"], file_index=place["data/file_index"]
        )
        if path not in self._parquet:
            self._parquet[path] = pq.ParquetFile(path, memory_map=True)
        try:
            table = self._parquet[path].read_row_group(self._groups[episode], columns=[f"{name}.bytes"])
        except (pa.ArrowInvalid, OSError) as error:
            raise damaged(self._folder, f"readable images of {camera!r} in {path.name}", str(error)) from error
        array = table.column(name).combine_chunks().field("bytes")
        self._encoded[key] = array
        self._held += array.nbytes
        while self._held > self._cache_bytes and len(self._encoded) > 1:
            self._held -= self._encoded.popitem(last=False)[1].nbytes
        return array

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        for file in self._parquet.values():
            file.close()
        self._clear()
        # Arrow keeps what it was given back for later.
        pa.default_memory_pool().release_unused()


def _row_groups(files: list[tuple[int, int]]) -> list[int]:
    """The row group of each episode within its file: they are written one behind the other."""
    counts: dict[tuple[int, int], int] = {}
    groups = []
    for file in files:
        groups.append(counts.get(file, 0))
        counts[file] = groups[-1] + 1
    return groups
