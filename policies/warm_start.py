"""The chunk before as a guess of the next: what a decode may begin with instead of noise, or be drawn to."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vla_runtime.transforms import Normalise
from vla_runtime.types import ActionSpec

# Mean difference of normalised rows below which rows are those of a place, whatever rounding did to them.
_ALIKE = 1e-3


class Before:
    """The chunk before as a guess of the next: shifted by the time that has passed, its end held.

    neutral_A: the row that moves nothing, in [-1, 1]; NaN where the last row is held, as absolute goals and grippers
    are. kept_A: bool, what is executed as it was decoded, which a gripper that is open or closed is not.
    """

    def __init__(self, period: float, neutral_A: Tensor, kept_A: Tensor):
        self._period, self._neutral, self._kept = period, neutral_A, kept_A
        self._last: tuple[Tensor, float, str] | None = None

    def guess(self, time: float, instruction: str, given_1cA: Tensor | None = None) -> Tensor | None:
        """Rows float [1, T, A] for a chunk from `time` on; None where the chunk before says nothing of it.

        given_1cA: rows that will be executed first. Where they are in the chunk before says how many of it have passed,
        also when the robot has held meanwhile.
        """
        passed = self.passed(time, instruction, given_1cA)
        return None if passed is None else self.rest(passed)

    def passed(self, time: float, instruction: str, given_1cA: Tensor | None = None) -> int | None:
        """Rows that lie between the chunk before and one from `time` on; None where it says nothing of it.

        Where several places of the chunk before hold the given rows, as in one that stands still, it is the nearest to
        what time says; where none does, since the chunk was refused or its rows were changed, it is what time says.
        """
        if self._last is None or self._last[2] != instruction:
            return None
        rows, found = self._last[0], round((time - self._last[1]) / self._period)
        if given_1cA is not None and given_1cA.shape[1]:
            windows = rows.unfold(1, given_1cA.shape[1], 1).transpose(2, 3)
            apart = (windows - given_1cA[:, None].to(rows))[..., self._kept].abs().mean((0, 2, 3))
            alike: list[int] = torch.nonzero(apart <= _ALIKE).flatten().tolist()
            by_time = found
            found = min(alike, key=lambda place: abs(place - by_time), default=by_time)
        return found if 0 <= found < rows.shape[1] else None

    def rest(self, passed: int) -> Tensor:
        """Rows float [1, T, A]: what is left of the chunk before, its end held."""
        assert self._last is not None
        rows = self._last[0]
        end = torch.where(self._neutral.isnan(), rows[:, -1], self._neutral)
        return torch.cat([rows[:, passed:], end[:, None].expand(-1, passed, -1)], dim=1)

    def forget(self) -> None:
        """There is no chunk before."""
        self._last = None

    def keep(self, rows_1TA: Tensor, time: float, instruction: str) -> None:
        """Remember a chunk that answers an observation of `time`."""
        self._last = rows_1TA.to(self._neutral.device), time, instruction


class WarmStart(Before):
    """The chunk before as what denoising begins with. share: of `steps` that are then taken; the rest as `Before`."""

    def __init__(self, share: float, steps: int, period: float, neutral_A: Tensor, kept_A: Tensor):
        super().__init__(period, neutral_A, kept_A)
        self.first = self.begins(share, steps)

    @staticmethod
    def begins(share: float, steps: int) -> int:
        """The first step that is taken."""
        return steps - max(1, round(share * steps))


def neutral_row(action: ActionSpec, normalise: Normalise) -> Tensor:
    """What `WarmStart` holds: zero motion for groups of kind delta and velocity, NaN for the others; float [A]."""
    row = torch.from_numpy(normalise.forward(np.zeros(action.size, np.float32))).clone()
    for group in action.groups:
        if group.kind not in ("delta", "velocity"):
            row[action.slices[group.name]] = torch.nan
    return row
