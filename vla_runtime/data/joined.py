"""Several recorded data sets as one, for training on all of them.

They must mean the same by the same numbers; statistics are computed anew over all rows, since extremes and
quantiles of parts do not add up. Knows no policy and no environment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_runtime.contract import require_match
from vla_runtime.data import statistics
from vla_runtime.data.reader import Dataset, EpisodeRecord
from vla_runtime.types import ActionChunk, Observation

# Commands read a set once, in order: more than a few episodes of pictures would lie about unused.
_CACHE_BYTES = 64 * 1024**2


class Joined:
    """`sets` one after another; what is read from a Dataset for training is read from this alike.

    SpecMismatch for sets whose contracts differ, ValueError for none.
    """

    def __init__(self, sets: Sequence[Dataset]):
        if not sets:
            raise ValueError("data: expected at least one data set, got none")
        first = sets[0]
        for other in sets[1:]:
            for have, want in ((other, first), (first, other)):
                mine, theirs = (replace(one.contract, action=one.action) for one in (have, want))
                require_match(mine, theirs, str(have.folder), str(want.folder))
        self._sets = tuple(sets)
        self._ends = list(accumulate(len(one) for one in sets))
        self.contract, self.action, self.feature = first.contract, first.action, first.feature
        self.cameras, self.period, self.horizon = first.cameras, first.period, first.horizon

    @classmethod
    def of(
        cls,
        folders: str | Path | Sequence[str | Path],
        horizon: int,
        control: str | None,
        cameras: str | Sequence[str] | None = None,
    ) -> Dataset | Joined:
        """One data set, or several joined; arguments and errors as for Dataset."""
        names = [folders] if isinstance(folders, (str, Path)) else list(folders)
        sets = [Dataset(name, horizon, control, cameras, _CACHE_BYTES) for name in names]
        return sets[0] if len(sets) == 1 else cls(sets)

    def close(self) -> None:
        for one in self._sets:
            one.close()

    @property
    def name(self) -> str:
        return ", ".join(one.name for one in self._sets)

    @property
    def episodes(self) -> tuple[EpisodeRecord, ...]:
        """Those of all sets, in order; where they lie is said in each one's own rows."""
        return tuple(record for one in self._sets for record in one.episodes)

    @property
    def initial_states(self) -> frozenset[str]:
        return frozenset().union(*(one.initial_states for one in self._sets))

    def statistics(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        """As a Dataset's, of states and actions only."""
        found = {}
        for name in ("observation.state", self.feature):
            rows = statistics.of_rows(self.column(name))
            found[name] = {key: np.array(row, np.float64) for key, row in rows.items()}
        return found

    def statistics_id(self) -> str:
        """16 hex digits; equal sets in equal order have equal ones."""
        return hashlib.sha256("".join(one.statistics_id() for one in self._sets).encode()).hexdigest()[:16]

    def contents_id(self) -> str:
        """As a Dataset's; equal sets in equal order have equal ones."""
        return hashlib.sha256("".join(one.contents_id() for one in self._sets).encode()).hexdigest()[:16]

    def column(self, name: str) -> NDArray[np.float32]:
        """As a Dataset's."""
        return np.concatenate([one.column(name) for one in self._sets])

    def __len__(self) -> int:
        return self._ends[-1]

    def __iter__(self) -> Iterator[tuple[Observation, ActionChunk]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> tuple[Observation, ActionChunk]:
        which, inner = self._place(i)
        return self._sets[which][inner]

    def answer(self, i: int) -> ActionChunk:
        """The chunk of sample i."""
        which, inner = self._place(i)
        return self._sets[which].answer(inner)

    def seen(self, i: int, offsets: Sequence[int]) -> tuple[Observation, ...]:
        """As a Dataset's."""
        which, inner = self._place(i)
        return self._sets[which].seen(inner, offsets)

    def foreseeable(self, i: int) -> bool:
        """As a Dataset's."""
        which, inner = self._place(i)
        return self._sets[which].foreseeable(inner)

    def episode_of(self, i: int) -> int:
        """Which of `episodes` sample i is of."""
        which, inner = self._place(i)
        before = sum(len(one.episodes) for one in self._sets[:which])
        return before + self._sets[which].episode_of(inner)

    def _place(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"sample: expected 0 to {len(self) - 1}, got {i}")
        which = int(np.searchsorted(self._ends, i, side="right"))
        return which, i - (self._ends[which - 1] if which else 0)
