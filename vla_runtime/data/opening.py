"""Reads what a data set says about itself, and refuses a folder that is unfinished, damaged or of another program.

Every refusal says what was expected, what was found and what to do. Images are not touched here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vla_runtime.contract import Contract
from vla_runtime.data import schema
from vla_runtime.data.episode import Columns
from vla_runtime.data.frames import cut_short
from vla_runtime.data.unfinished import PARTS, resume_command
from vla_runtime.data.writer import column
from vla_runtime.types import ActionSpec, SpecMismatch

# What is read of each episode in meta/vla_runtime.json, and of each row of meta/episodes.
_FACTS = {"task": int, "instruction": str, "attempt": int, "seed": int, "begin_seed": int, "initial_state": str}
_PLACES = ("episode_index", "length", "dataset_from_index", "data/chunk_index", "data/file_index")


class DatasetError(ValueError):
    """A folder is not, or no longer, a whole data set."""


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """An episode. task, attempt: the arguments of the environment's `reset`; start: the episode's first row."""

    index: int
    task: int
    instruction: str
    attempt: int
    seed: int
    begin_seed: int
    initial_state: str
    start: int
    length: int
    facts: Mapping[str, Any]


def read_info(folder: Path) -> dict[str, Any]:
    """meta/info.json of a finished set."""
    if not (folder / schema.INFO).is_file():
        if (folder / PARTS).is_dir():
            raise DatasetError(
                f"{folder}: expected a finished data set, got one that is still being collected; "
                f"finish it with: {resume_command(folder)}"
            )
        got = "a folder without it" if folder.is_dir() else "no folder"
        raise DatasetError(
            f"{folder}: expected a data set with {schema.INFO}, got {got}; give the out= of a finished "
            "vla_runtime.collect"
        )
    info = read_json(folder, schema.INFO, "the description of a data set")
    features = info.get("features")
    if not (folder / schema.OWN).is_file() and not (isinstance(features, Mapping) and schema.FRESH in features):
        raise DatasetError(
            f"{folder}: expected {schema.OWN}, which only vla_runtime.collect writes, got a LeRobot set "
            f"({info.get('codebase_version')}, robot_type {info.get('robot_type')!r}) without it: another program made "
            "it, and sets of other programs cannot be read yet. Keep it; a set to learn from now is recorded with "
            "collect env=, or from a robot's bags with collect bag= contract="
        )
    if info.get("codebase_version") != schema.CODEBASE_VERSION:
        raise DatasetError(
            f"{folder}: expected a LeRobot set of version {schema.CODEBASE_VERSION} in {schema.INFO}, got "
            f"{info.get('codebase_version')!r}; read it with the version of vla_runtime that wrote it, or collect it "
            "again into another folder"
        )
    _check_info(folder, info)
    return info


def _check_info(folder: Path, info: Mapping[str, Any]) -> None:
    features, fps = info.get("features"), info.get("fps")
    if not isinstance(features, Mapping) or not all(
        isinstance(one, Mapping) and {"dtype", "shape", "names"} <= one.keys() for one in features.values()
    ):
        raise damaged(folder, f"features with dtype, shape and names in {schema.INFO}", repr(features)[:80])
    if missing := {schema.STATE, "action", schema.FRESH, schema.DISTURBED, *schema.SCALARS} - features.keys():
        raise damaged(folder, f"the features {sorted(missing)} in {schema.INFO}", f"only {sorted(features)}")
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps < float("inf"):
        raise damaged(folder, f"fps above 0 in {schema.INFO}", repr(fps))
    for key in ("total_episodes", "total_frames"):
        if type(info.get(key)) is not int or info[key] < 1:
            raise damaged(folder, f"{key} of at least 1 in {schema.INFO}", repr(info.get(key)))


def read_own(folder: Path) -> tuple[dict[str, Any], Contract, dict[str, ActionSpec]]:
    """meta/vla_runtime.json: all of it, the contract, and what each recorded action means."""
    own = read_json(folder, schema.OWN, "a set written by vla_runtime.collect")
    for key, part in (("contract", dict), ("actions", dict), ("episodes", list), ("attempts", list)):
        if not isinstance(own.get(key), part):
            raise damaged(folder, f"{key} in {schema.OWN}", type(own.get(key)).__name__)
    try:
        contract = Contract.read(own["contract"])
        actions = {
            name: Contract.read({**own["contract"], "action": groups}).action for name, groups in own["actions"].items()
        }
    except (SpecMismatch, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{folder / schema.OWN}: expected a contract, got {error}") from error
    if "action" not in actions:
        raise damaged(folder, f"the meaning of action in {schema.OWN}", f"only {sorted(actions)}")
    for index, facts in enumerate(own["episodes"]):
        for key, kind in _FACTS.items():
            if not isinstance(facts, Mapping) or not isinstance(facts.get(key), kind) or facts[key] == "":
                got = repr(facts.get(key)) if isinstance(facts, Mapping) else type(facts).__name__
                raise damaged(folder, f"{key} ({kind.__name__}) of episode {index} in {schema.OWN}", got)
    return own, contract, actions


def read_json(folder: Path, name: str, what: str) -> dict[str, Any]:
    """A JSON object under `folder`; `what` it is, for the error."""
    try:
        document = json.loads((folder / name).read_text())
    except FileNotFoundError as error:
        raise damaged(folder, f"{what} in {name}", "no such file") from error
    except ValueError as error:
        raise damaged(folder, f"{what} in {name}", f"a file that is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise damaged(folder, f"{what} in {name}", f"a {type(document).__name__}")
    return document


def read_episodes(folder: Path) -> pa.Table:
    """The episode records of meta/episodes without their statistics, in order."""
    paths = sorted((folder / "meta/episodes").glob("*/*.parquet"))
    if not paths:
        raise damaged(folder, "episode records in meta/episodes", "no file")
    tables = []
    for path in paths:
        names = [name for name in _parquet(folder, path).schema_arrow.names if not name.startswith("stats/")]
        if missing := set(_PLACES) - set(names):
            raise damaged(folder, f"the columns {sorted(missing)} in {path.relative_to(folder)}", "none")
        tables.append(pq.read_table(path, columns=names))
    return pa.concat_tables(tables).sort_by("episode_index")


def _parquet(folder: Path, path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except FileNotFoundError as error:
        raise damaged(folder, f"{path.relative_to(folder)}", "no such file") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(folder, f"a Parquet file {path.relative_to(folder)}", f"an unreadable one ({error})") from error


def read_records(folder: Path, own: Mapping[str, Any], table: pa.Table, info: Mapping[str, Any]) -> list[EpisodeRecord]:
    """What meta/episodes and meta/vla_runtime.json say of each episode, which must agree in number."""
    rows = table.select(["episode_index", "length", "dataset_from_index"]).to_pylist()
    if not len(rows) == len(own["episodes"]) == info["total_episodes"]:
        counts = f"{len(rows)} in meta/episodes and {len(own['episodes'])} in {schema.OWN}"
        raise damaged(folder, f"{info['total_episodes']} episodes", counts)
    return [
        EpisodeRecord(
            index=row["episode_index"],
            task=facts["task"],
            instruction=facts["instruction"],
            attempt=facts["attempt"],
            seed=facts["seed"],
            begin_seed=facts["begin_seed"],
            initial_state=facts["initial_state"],
            start=row["dataset_from_index"],
            length=row["length"],
            facts=facts,
        )
        for row, facts in zip(rows, own["episodes"], strict=True)
    ]


def read_columns(folder: Path, info: Mapping[str, Any], table: pa.Table) -> Columns:
    """All numeric columns of all data files, [T] or [T, D]; every data and video file must be there and whole."""
    numeric = [name for name, feature in info["features"].items() if feature["dtype"] not in ("image", "video")]
    videos = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
    places = table.select(
        [name for name in table.column_names if name.endswith("_index") or name == "length"]
    ).to_pylist()
    if absent := [name for name in videos if f"videos/{name}/file_index" not in table.column_names]:
        raise damaged(folder, f"where the videos {absent} lie, in meta/episodes", "no such column")
    files: dict[Path, list[int]] = {}
    seen: set[str] = set()
    for place in places:
        path = folder / schema.DATA.format(chunk_index=place["data/chunk_index"], file_index=place["data/file_index"])
        files.setdefault(path, []).append(place["length"])
        for name in videos:
            chunk, file = place[f"videos/{name}/chunk_index"], place[f"videos/{name}/file_index"]
            video = schema.VIDEO.format(video_key=name, chunk_index=chunk, file_index=file)
            if video in seen:
                continue
            seen.add(video)
            if not (folder / video).is_file():
                raise damaged(folder, video, "no such file")
            if problem := cut_short(folder / video):
                raise damaged(folder, f"a whole video {video}", problem)
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in numeric}
    for path, lengths in files.items():
        parquet = _parquet(folder, path)
        metadata = parquet.metadata
        have = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        if have != lengths:
            what = f"{len(lengths)} episodes of {sum(lengths)} rows in {path.relative_to(folder)}"
            raise damaged(folder, what, f"{len(have)} of {sum(have)}")
        missing = set(numeric) - set(parquet.schema_arrow.names)
        if missing:
            raise damaged(folder, f"the columns {sorted(missing)} in {path.relative_to(folder)}", "none")
        try:
            rows = parquet.read(columns=numeric)
        except (pa.ArrowInvalid, OSError) as error:
            name = path.relative_to(folder)
            raise damaged(folder, f"a Parquet file {name}", f"an unreadable one ({error})") from error
        for name in numeric:
            values = np.asarray(column(rows, name))
            size = info["features"][name]["shape"][0]
            vector = info["features"][name]["names"] is not None
            found[name].append(values.reshape(-1, size) if vector else values)
    columns = {name: np.concatenate(values) for name, values in found.items()}
    if len(columns["index"]) != info["total_frames"]:
        raise damaged(folder, f"{info['total_frames']} rows", str(len(columns["index"])))
    return columns


def damaged(folder: Path, expected: str, got: str) -> DatasetError:
    """The error for a part of a data set that is missing or unreadable."""
    return DatasetError(
        f"{folder}: expected {expected}, got {got}; the data set is damaged: restore this file from a copy, "
        "or collect the set again into another folder"
    )
