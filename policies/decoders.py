"""What a session decodes with: a head's own way, masked rounds with a deadline, captured graphs, a chunk begun warm.

Each is callable as a head's own `decode`, which is the reference, and says facts about its last chunk. What a user may
ask for is `policies.decoding`.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from policies.batch import Committed
from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.heads.prepared import Guard, PreparedDecoder
from policies.timing import finish
from vla_runtime.control.clock import SystemClock
from vla_runtime.decoding.graphs import Captured, tensors_of, with_tensors
from vla_runtime.decoding.prefix import RefreshedPrefix
from vla_runtime.transforms import Normalise
from vla_runtime.types import ActionSpec


class Decoder(Protocol):
    """Decodes one chunk after another."""

    @property
    def facts(self) -> dict[str, float]:
        """Numbers about the last chunk."""
        ...

    def __call__(
        self, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int = 1, *warm: Any
    ) -> Tensor: ...


# Mean difference of normalised rows below which rows are those of a place, whatever rounding did to them.
_ALIKE = 1e-3


class PlainDecoder:
    """A head's own `decode`."""

    def __init__(self, head: Any, backbone: Any):
        self._head, self._backbone = head, backbone
        self.facts: dict[str, float] = {}

    def __call__(
        self, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int = 1, *warm: Any
    ) -> Tensor:
        actions: Tensor = self._head.decode(self._backbone, context, committed, noise, batch)
        return actions


class MaskedDecoder:
    """Masked diffusion's own `decode`, with a deadline in seconds, and facts about its rounds.

    late: whether the deadline cut rounds off (cut) or had passed when the chunk was there; forced: tokens that the last
    of the planned rounds, or one that was cut short, committed.
    """

    def __init__(self, head: DiscreteDiffusion, backbone: Any, deadline: float | None):
        self._head, self._backbone, self._deadline = head, backbone, deadline
        self._clock = SystemClock()
        self._began: float | None = None
        self._allowed = deadline
        self.facts: dict[str, float] = {}

    def begin(self, deadline: float | None = None) -> None:
        """The observation of the next chunk is here: its deadline counts from now, the encoding included.

        deadline: of this chunk, where it is sooner than that of all.
        """
        self._began = self._clock.now()
        self._allowed = min((one for one in (deadline, self._deadline) if one is not None), default=None)

    def __call__(
        self, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int = 1, *warm: Any
    ) -> Tensor:
        began = self._clock.now() if self._began is None else self._began
        cut = False

        def passed() -> bool:
            if self._allowed is None:
                return False
            # A device that is asked for one round after another has not made them yet.
            finish(self._head.prefix.blank.device)
            return self._clock.now() - began >= self._allowed

        def late() -> bool:
            nonlocal cut
            cut = passed()
            return cut

        if isinstance(self._backbone, RefreshedPrefix):
            self._backbone.begin()
        found = self._head.decode_rounds(self._backbone, context, committed, noise, batch, late)
        self.facts = {
            "rounds": found.rounds,
            "forced": float(found.forced_B.float().mean()),
            "confidence": float(found.confidence_BL.mean()),
            "late": float(cut or passed()),
            "cut": float(cut),
        }
        self._began, self._allowed = None, self._deadline
        return self._head.chunk(found.ids_BL, committed)


class Graphs:
    """Prepared decoders as CUDA graphs: one for each of cold, warm, with rows given, and in full for the guard.

    new: makes a prepared decoder, one for each size of a batch, since its buffers lie where graphs know them; make:
    what captures. Each kind is captured when it is first asked for, and then shared by all who ask, in any thread.
    """

    def __init__(self, new: Callable[[], PreparedDecoder], make: Callable[..., Any] = Captured):
        self._new, self._make = new, make
        self._decoders = {1: new()}
        self._known: dict[tuple[int, bool, bool, int, bool], Any] = {}
        self._lock = Lock()

    @property
    def caches(self) -> bool:
        """Whether branches are reused, so that there is a decode in full beside the one by plan."""
        return self._decoders[1].cache is not None

    def guard(self) -> Guard:
        """As a prepared decoder's."""
        return self._decoders[1].guard()

    def __call__(
        self, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int, warm: Tensor | None,
        first: int, full: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The chunk, and the gap of its cache, without elements where there is none."""
        given = tensors_of((context, tuple(noise.values()), committed, warm))
        key = (batch, committed is None, warm is None, first, full)
        with self._lock:
            if key not in self._known:
                if batch not in self._decoders:
                    self._decoders[batch] = self._new()
                decoder = self._decoders[batch]

                def run(*values: Tensor) -> tuple[Tensor, Tensor]:
                    parts = with_tensors((context, tuple(noise.values()), committed, warm), values)
                    drawn = dict(zip(noise, parts[1], strict=True))
                    rows = decoder.run(parts[0], parts[2], drawn, batch, parts[3], first, full=full)
                    gap = None if decoder.cache is None else decoder.cache.gap()
                    return rows, rows.new_zeros(0) if gap is None else gap

                self._known[key] = self._make(run, given)
            rows, gap = self._known[key](*given)
        return rows, gap


class CapturedDecoder:
    """A session's decoder over graphs that it shares with others; `capture` makes them before the first chunk."""

    def __init__(self, graphs: Graphs):
        self._graphs, self._guard = graphs, graphs.guard()

    @property
    def facts(self) -> dict[str, float]:
        """Numbers about the last chunk."""
        return self._guard.facts

    def __call__(
        self,
        context: Any,
        committed: Committed | None,
        noise: dict[str, Tensor],
        batch: int = 1,
        warm: Tensor | None = None,
        first: int = 0,
    ) -> Tensor:
        rows, gap = self._graphs(context, committed, noise, batch, warm, first, self._guard.full)
        self._guard.tell(gap, first)
        return rows

    def capture(
        self,
        context: Any,
        committed: Committed | None,
        noise: dict[str, Tensor],
        batch: int = 1,
        warm: Tensor | None = None,
        first: int = 0,
    ) -> None:
        """Make the graphs that calls like this one need, by plan and in full, and remember nothing of what they say."""
        for full in (False, True) if self._graphs.caches else (False,):
            self._graphs(context, committed, noise, batch, warm, first, full)


class GuidedFlow(PlainDecoder):
    """A flow's own `decode`, drawn to the chunk before where there is one."""

    def __call__(
        self, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int = 1, *warm: Any
    ) -> Tensor:
        guide = warm[2] if len(warm) > 2 else None
        if guide is None:
            return super().__call__(context, committed, noise, batch)
        actions: Tensor = self._head.decode_guided(self._backbone, context, noise, guide)
        return actions


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
        self._last = rows_1TA, time, instruction


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
