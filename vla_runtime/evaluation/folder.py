"""A run's folder: config.yaml, episodes.jsonl, summary.json, and the promise that nothing in it is lost.

One row is written and synced to disk per finished episode. The same folder resumes, another config in it
is refused, and so is a second process.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from vla_runtime.disk import write_text
from vla_runtime.wire import without_password

Row = dict[str, Any]
AnyRow = TypeVar("AnyRow", bound=Mapping[str, Any])


class Job(NamedTuple):
    """One episode of a run. latency: seconds from an observation to its chunk, or a file of recorded ones."""

    task: int
    episode: int
    latency: float | str = 0.0

    def __str__(self) -> str:
        return f"task {self.task} episode {self.episode} latency {latency_label(self.latency)}"


def job_of(row: Mapping[str, Any]) -> Job:
    """Which episode of its run a row is. KeyError, TypeError or ValueError for one that does not say so."""
    task, episode, latency = row["task"], row["episode"], row["loop"]["latency"]
    if type(task) is not int or type(episode) is not int:
        raise TypeError(f"expected task and episode as whole numbers, got {task!r} and {episode!r}")
    if isinstance(latency, str):
        return Job(task, episode, latency)
    seconds = float(latency)
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"expected a latency from 0 on, got {latency!r}")
    return Job(task, episode, seconds)


def latency_label(latency: float | str) -> str:
    """As short as can be: seconds, or the name of the file they were recorded in."""
    return Path(latency).stem if isinstance(latency, str) else f"{latency:g}s"


def in_order(rows: Iterable[AnyRow]) -> list[AnyRow]:
    """By task, episode and latency, recorded ones last."""

    def key(row: Mapping[str, Any]) -> tuple[int, int, bool, float, str]:
        job = job_of(row)
        recorded = isinstance(job.latency, str)
        return job.task, job.episode, recorded, 0.0 if recorded else float(job.latency), str(job.latency)

    return sorted(rows, key=key)


_log = logging.getLogger(__name__)

# How a run is carried out, not what it measures: may differ when it is resumed.
_BOOKKEEPING = ("out", "workers", "require", "timeout", "merge")
# What makes an episode beside its configuration.
_SAME = ("weights", "decode", "statistics", "contract", "control", "versions")
# Of a policy that is served: where it is. What it is, rows say.
_WAY_TO_POLICY = ("address", "timeout", "token", "ca", "proxy")


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that must be equal for two runs to be the same run."""
    found = {key: value for key, value in config.items() if key not in _BOOKKEEPING}
    if "address" in found.get("policy", {}):
        found["policy"] = {key: value for key, value in found["policy"].items() if key not in _WAY_TO_POLICY}
    return found


def without_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as files may hold it: tokens, and a proxy's password, are nobody else's business."""
    found = dict(config)
    for group in ("policy", "transport"):
        values = found.get(group) or {}
        hidden: dict[str, Any] = {"token": None} if values.get("token") else {}
        if values.get("proxy"):
            hidden["proxy"] = without_password(values["proxy"])
        if hidden:
            found[group] = {**values, **hidden}
    return found


def config_differences(have: dict[str, Any], want: dict[str, Any], prefix: str = "") -> list[str]:
    """One line for each value that differs, by dotted key."""
    lines = []
    for key in sorted(have.keys() | want.keys()):
        a, b = have.get(key), want.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += config_differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} there, {b!r} asked for")
    return lines


def check_same_run(folder: Path, config: dict[str, Any]) -> None:
    """ValueError with a diff when `folder` holds a run with another config."""
    if (folder / "config.yaml").exists():
        found = config_differences(identity(read_config(folder)), identity(config))
        if found:
            raise ValueError(
                f"out={folder} holds a run with another config; choose another out=:\n  " + "\n  ".join(found)
            )
    elif (folder / "episodes.jsonl").exists():
        raise ValueError(f"out={folder}: expected config.yaml beside episodes.jsonl, got none; choose another out=")


def check_same_parts(
    folder: Path, rows: list[Row], common: Mapping[str, Any], profiles: Mapping[str, str], address: str | None
) -> None:
    """ValueError where rows were made by other software, in another world or with another policy under one name.

    That is: by a policy that has other weights now, or decodes otherwise, by other versions of a simulator, or with a
    profile of latencies that was recorded again since. address: of a server. One that does not say what weights it
    serves is known by it alone.
    """
    for row in rows:
        if address is not None and common["weights"] is None and row["timing"].get("address", address) != address:
            raise ValueError(
                f"out={folder}: expected to go on with the server at {row['timing'].get('address')}, which does not "
                f"say what weights it serves, got {address}; start over in another out="
            )
        found = {what: (row[what], common[what]) for what in _SAME}
        latency = row["loop"]["latency"]
        if latency in profiles:
            found[f"profile {latency}"] = (row["loop"].get("profile"), profiles[latency])
        for what, (then, now) in found.items():
            if then != now:
                raise ValueError(
                    f"out={folder}: expected to go on with the {what} of its rows, {then}, got {now}; something was "
                    "trained, calibrated, recorded or installed again, so start over in another out="
                )


def claim(folder: Path, config: dict[str, Any]) -> None:
    """Write config.yaml into a new folder; ValueError in one that holds another run."""
    check_same_run(folder, config)
    if not (folder / "config.yaml").exists():
        write_text(folder / "config.yaml", yaml.safe_dump(without_secrets(config), sort_keys=False))


def read_config(folder: Path) -> dict[str, Any]:
    """config.yaml of a run; ValueError when the folder is no run."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(
            f"{folder}: expected a run's folder with config.yaml, got none; make one with vla_runtime.rollout"
        )
    remedy = "restore it from a copy, or run it again in another out="
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected readable YAML, got {error}; {remedy}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a mapping, got {type(config).__name__}; {remedy}")
    # What every reader takes for granted.
    for key in ("choices", "env", "policy", "loop"):
        if not isinstance(config.get(key, {}), dict):
            raise ValueError(f"{path}: expected a mapping under {key!r}, got {config[key]!r}; {remedy}")
    return config


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a run; ValueError where there is none, or none that can be read."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        summary = error
    if not isinstance(summary, dict) or type(summary.get("missing")) is not int:
        got = f"{type(summary).__name__}: {summary}" if isinstance(summary, Exception) else f"{summary!r:.60}"
        raise ValueError(
            f"{path}: expected the summary of a run, got {got}; run its command again with out={folder} to write it"
        )
    return summary


def read_rows(folder: Path) -> list[Row]:
    """The finished episodes of a run, in order of completion.

    A damaged last line (the machine went down while it was written) is dropped with a warning; a damaged
    line anywhere else, or the same episode twice, is a ValueError.
    """
    path = folder / "episodes.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows: dict[Job, Row] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        last = not any(rest.strip() for rest in lines[number:])
        try:
            row = json.loads(line)
            key = job_of(row)
        except (ValueError, TypeError, KeyError):
            if last:
                _log.warning("%s: the last line (%d) is damaged and dropped; its episode runs again", path, number)
                break
            raise ValueError(
                f"{path}: expected one JSON object a line (task, episode, loop.latency), line {number} is damaged; "
                "restore the file or start over in another out="
            ) from None
        if key in rows:
            raise ValueError(f"{path}: expected each episode once, line {number} repeats {key}")
        rows[key] = row
    return list(rows.values())


class RowFile:
    """episodes.jsonl, opened to go on after the rows that are whole."""

    def __init__(self, folder: Path, rows: Sequence[Row]):
        self._path = folder / "episodes.jsonl"
        write_text(self._path, _lines(rows))
        self._file = self._path.open("a")

    def append(self, row: Row) -> None:
        """One row, on the disk when this returns."""
        self._file.write(_lines([row]))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def sort_rows(folder: Path) -> list[Row]:
    """Rewrite episodes.jsonl in order of task, episode and latency, and return it."""
    rows = in_order(read_rows(folder))
    write_text(folder / "episodes.jsonl", _lines(rows))
    return rows


def _lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
