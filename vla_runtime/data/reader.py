"""A recorded data set as pairs (Observation, ActionChunk), which is what training reads.

Vectors are read once, images only when their row is asked for: embedded ones through a bounded cache of
encoded bytes, videos by seeking. A damaged folder is refused when it is opened, with what was expected,
what was found and what to do. Knows no policy and no environment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_runtime.data import schema
from vla_runtime.data.episode import Columns
from vla_runtime.data.opening import (
    DatasetError,
    EpisodeRecord,
    damaged,
    read_columns,
    read_episodes,
    read_info,
    read_json,
    read_own,
    read_records,
)
from vla_runtime.data.pictures import Pictures
from vla_runtime.types import ActionChunk, ActionSpec, Observation

__all__ = ["Dataset", "DatasetError", "EpisodeRecord"]

_CACHE_BYTES = 2 * 1024**3


class Dataset:
    """A folder written by `vla_runtime.collect`; `dataset[i]` is the i-th row whose images are fresh.

    horizon: rows of each ActionChunk, at least 1; rows beyond the end of the episode hold the robot still.
    control: None for the environment's own action, or "delta" or "absolute" where both were recorded.
    cameras: which there are, in this order; all when None. Raises DatasetError for a folder that is unfinished, damaged
    or of another program, ValueError for arguments that the set cannot serve.
    """

    def __init__(
        self,
        folder: str | Path,
        horizon: int,
        control: str | None = None,
        cameras: str | Sequence[str] | None = None,
        cache_bytes: int = _CACHE_BYTES,
    ):
        if not isinstance(horizon, int) or horizon < 1:
            raise ValueError(f"horizon: expected a whole number of at least 1, got {horizon!r}")
        self.folder, self.horizon = Path(folder), horizon
        self.info = read_info(self.folder)
        self.own, contract, self.actions = read_own(self.folder)
        feature = "action" if control is None else f"action.{control}"
        if feature not in self.actions:
            raise ValueError(
                f"control: expected one of {_controls(self.actions)}, got {control!r}; {self.folder} holds these"
            )
        self.action = self.actions[feature]
        self.feature = feature
        self.contract = replace(contract, cameras=schema.choose(contract.cameras, cameras, str(self.folder)))
        self.cameras = tuple(camera.name for camera in self.contract.cameras)
        self.period = 1.0 / float(self.info["fps"])
        if abs(contract.rate_hz * self.period - 1) > 1e-6:
            what = f"fps in {schema.INFO} as rate_hz of the contract in {schema.OWN}, {contract.rate_hz}"
            raise damaged(self.folder, what, str(self.info["fps"]))
        table = read_episodes(self.folder)
        self.episodes = read_records(self.folder, self.own, table, self.info)
        self._columns = read_columns(self.folder, self.info, table)
        self._starts = np.flatnonzero(self._columns[schema.FRESH])
        self._episode_of = self._columns["episode_index"]
        self._pictures = Pictures(self.folder, self.info, table, cache_bytes)

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.folder)

    @property
    def initial_states(self) -> frozenset[str]:
        """Hashes of the states that the episodes began in, so that a rollout can mark those seen in training."""
        return frozenset(record.initial_state for record in self.episodes)

    @property
    def features(self) -> Mapping[str, Any]:
        """The features of meta/info.json."""
        features: Mapping[str, Any] = self.info["features"]
        return features

    def statistics(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        """meta/stats.json: {feature: {min, max, mean, std, count, q01, ...}} as float64 arrays."""
        document = read_json(self.folder, schema.STATS, "the statistics of a data set")
        sizes = {schema.STATE: self.contract.state.size, self.feature: self.action.size}
        try:
            found = {
                name: {key: np.array(row, np.float64) for key, row in rows.items()} for name, rows in document.items()
            }
        except (AttributeError, TypeError, ValueError) as error:
            raise damaged(self.folder, f"numbers in {schema.STATS}", str(error)) from error
        for name, size in sizes.items():
            for key in ("min", "max", "q01", "q99"):
                row = found.get(name, {}).get(key)
                if row is None or row.shape != (size,) or not np.isfinite(row).all():
                    got = "none" if row is None else f"{row.tolist()}"
                    raise damaged(self.folder, f"{size} finite numbers {key!r} of {name} in {schema.STATS}", got)
        return found

    def statistics_id(self) -> str:
        """16 hex digits of meta/stats.json: equal sets have equal ones, and a policy states it in its contract."""
        return hashlib.sha256((self.folder / schema.STATS).read_bytes()).hexdigest()[:16]

    def contents_id(self) -> str:
        """16 hex digits of what training learns from: numbers, instructions, cameras, and the statistics of images."""
        digest = hashlib.sha256(self.statistics_id().encode())
        for name in (schema.STATE, self.feature, schema.FRESH, schema.DISTURBED):
            digest.update(np.ascontiguousarray(self._columns[name]).tobytes())
        digest.update(repr([(one.instruction, one.start, one.length) for one in self.episodes]).encode())
        kinds = {name: feature["dtype"] for name, feature in self.features.items()}
        digest.update(repr((self.contract.document(), kinds)).encode())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[Observation, ActionChunk]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> tuple[Observation, ActionChunk]:
        """Sample i: what was observed, and float32 [horizon, A] of what was answered from then on."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample: expected 0 to {len(self) - 1}, got {i}")
        row = int(self._starts[i])
        return self.observation(row), self.chunk(row)

    def seen(self, i: int, offsets: Sequence[int]) -> tuple[Observation, ...]:
        """What was observed at sample i and before: one observation per offset, as a PolicySpec's, oldest first.

        Before the episode's beginning stands its first observation, as in the loop. ValueError where the images of
        such a moment were not rendered.
        """
        row = self.row(i)
        first = self.episodes[int(self._episode_of[row])].start
        rows = [max(row + offset, first) for offset in offsets]
        for offset, one in zip(offsets, rows, strict=True):
            if not self._columns[schema.FRESH][one]:
                raise ValueError(
                    f"observation_offsets: expected moments whose images {self.folder} holds, got {offset}; its "
                    "image_stride must divide them all"
                )
        return tuple(self.observation(one) for one in rows)

    def row(self, i: int) -> int:
        """The row of the set at which sample i begins."""
        return int(self._starts[i])

    def answer(self, i: int) -> ActionChunk:
        """The chunk of sample i, without decoding any image."""
        return self.chunk(self.row(i))

    def episode_of(self, i: int) -> int:
        """Which of `episodes` sample i is of."""
        return int(self._episode_of[self.row(i)])

    def column(self, name: str) -> NDArray[np.float32]:
        """A numeric feature of all rows, [F] or [F, D]."""
        return self._columns[name]

    def foreseeable(self, i: int) -> bool:
        """Whether nothing disturbs the motion while the chunk of sample i is played.

        Where something does, the chunk's later rows answer a push that nobody could have seen coming.
        """
        row = self.row(i)
        record = self.episodes[int(self._episode_of[row])]
        last = min(row + self.horizon, record.start + record.length) - 1
        return not bool(self._columns[schema.DISTURBED][row:last].any())

    def observation(self, row: int) -> Observation:
        """What was observed at a row of the set; between fresh rows the images are the last ones rendered."""
        record = self.episodes[int(self._episode_of[row])]
        time = self._time(row)
        fresh = self._columns[schema.FRESH][record.start : row + 1]
        age = int(np.argmax(fresh[::-1])) if fresh.any() else len(fresh) - 1
        images = {camera: self._pictures.read(camera, record.index, row - record.start) for camera in self.cameras}
        return Observation(
            state=self._columns[schema.STATE][row],
            images=images,
            instruction=record.instruction,
            time=time,
            image_times=dict.fromkeys(images, time - age * self.period),
        )

    def chunk(self, row: int) -> ActionChunk:
        """The actions from a row of the set on; beyond the end of the episode, what keeps the robot still."""
        record = self.episodes[int(self._episode_of[row])]
        actions = self._columns[self.feature][row : min(row + self.horizon, record.start + record.length)]
        missing = self.horizon - len(actions)
        if missing:
            still = self.action.hold(actions[-1])
            actions = np.concatenate([actions, np.tile(still, (missing, 1))])
        time = self._time(row)
        return ActionChunk(actions=actions, start=time, period=self.period, observed=time)

    def episode(self, index: int) -> Columns:
        """All numeric columns of one episode, [T] or [T, D] each."""
        if not 0 <= index < len(self.episodes):
            raise IndexError(f"episode: expected 0 to {len(self.episodes) - 1}, got {index}")
        record = self.episodes[index]
        return {name: values[record.start : record.start + record.length] for name, values in self._columns.items()}

    def close(self) -> None:
        self._pictures.close()

    def _time(self, row: int) -> float:
        """Seconds since the episode began; the timestamp column holds the same in float32."""
        return int(self._columns["frame_index"][row]) * self.period


def _controls(actions: Mapping[str, ActionSpec]) -> list[str | None]:
    return [None if name == "action" else name.removeprefix("action.") for name in actions]
