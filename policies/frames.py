"""Samples of a data set that decodings are judged and timed on: what a policy sees, and the chunk that answered it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from policies.vla import VLAPolicy
from vla_runtime.data.joined import Joined
from vla_runtime.data.reader import Dataset
from vla_runtime.types import ActionChunk, Observation

# Chunks before the judged one, for warm starts: the first begins with noise, the others warm, as in the loop.
EARLIER = 2


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """What a policy sees, the chunk that answered it if one is known, and, for warm starts, what it saw before.

    seen: one observation per offset, oldest first; before: the same at earlier questions, oldest first.
    """

    seen: tuple[Observation, ...]
    chunk: ActionChunk | None
    before: tuple[tuple[Observation, ...], ...] = ()
    episode: int = 0

    @property
    def observation(self) -> Observation:
        """The newest."""
        return self.seen[-1]


def frames(
    dataset: Dataset | Joined, offsets: Sequence[int], recorded: int, judged: int, apart: int, seed: int = 0
) -> tuple[list[Frame], list[Frame]]:
    """Samples drawn from a data set: some to record, one an episode, and others to judge by, of other episodes.

    Those to judge by are spread over as many episodes as there are. offsets: the policy's. apart: only samples that
    have `EARLIER` before them, each so many rows from the next, which is what a warm start needs; 0 for all. ValueError
    for a set without that many samples or episodes.
    """

    def place(index: int) -> tuple[int, int]:
        return dataset.episode_of(index), round(dataset.answer(index).observed / dataset.period)

    usable = [index for index in range(len(dataset)) if dataset.foreseeable(index)]
    places = {place(index): index for index in usable}

    def earlier(index: int) -> list[int | None]:
        episode, row = place(index)
        return [places.get((episode, row - back * apart)) for back in range(EARLIER if apart else 0, 0, -1)]

    of_episode: dict[int, list[int]] = {}
    drawn = np.random.default_rng(seed).permutation([index for index in usable if None not in earlier(index)])
    for index in drawn.tolist():
        of_episode.setdefault(dataset.episode_of(index), []).append(index)
    episodes = list(of_episode.values())
    others = [index for turn in zip_longest(*episodes[recorded:]) for index in turn if index is not None]
    if len(episodes) <= recorded or len(others) < judged:
        raise ValueError(
            f"calibrate: expected a data set with usable samples of {recorded} episodes to record and {judged} of "
            f"others, got {len(episodes)} episodes and {len(others)} samples of others; record more, with "
            f"image_stride=1, or take warm_start=[], since a warm start needs {EARLIER} samples before, {apart} "
            "rows apart"
        )

    def frame(index: int) -> Frame:
        before = tuple(dataset.seen(one, offsets) for one in earlier(index) if one is not None)
        return Frame(dataset.seen(index, offsets), dataset.answer(index), before, dataset.episode_of(index))

    return [frame(indices[0]) for indices in episodes[:recorded]], [frame(index) for index in others[:judged]]


def overlap(policy: VLAPolicy) -> int:
    """Rows from one chunk to the next, for warm starts. ValueError where chunks are executed whole."""
    executed = policy.spec.executed or policy.spec.horizon
    if executed >= policy.spec.horizon:
        raise ValueError(
            f"warm_start: expected a policy that executes less than its {policy.spec.horizon} rows, got {executed}; "
            "nothing of a chunk is left to begin the next with"
        )
    return executed
