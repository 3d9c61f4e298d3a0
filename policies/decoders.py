"""What a session decodes with: a head's own decode, or masked rounds with a deadline.

Each is callable as a head's own `decode`, which is the reference, and says facts about its last chunk. What a user may
ask for is `policies.decoding`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from policies.batch import Committed
from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.timing import finish
from vla_runtime.control.clock import SystemClock
from vla_runtime.decoding.prefix import RefreshedPrefix


class Decoder(Protocol):
    """Decodes one chunk after another."""

    @property
    def facts(self) -> dict[str, float]:
        """Numbers about the last chunk."""
        ...

    def __call__(
        self, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int = 1, *warm: Any
    ) -> Tensor: ...


class Facts(Protocol):
    """One session's view of what its decodes say in numbers. full: whether the next chunk is to be decoded in full."""

    full: bool
    facts: dict[str, float]

    def tell(self, numbers: Tensor | None, first: int) -> None:
        """Read the numbers of a chunk that began at step `first`."""
        ...


class GraphDecoder(Protocol):
    """A decoder whose work can be a CUDA graph, since it asks the device nothing."""

    @property
    def caches(self) -> bool:
        """Whether branches are reused, so that a decode in full differs from one by plan."""
        ...

    def session(self) -> Facts:
        """What reads the numbers, for one session."""
        ...

    def run_numbered(
        self, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int, warm: Tensor | None,
        first: int, full: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Rows [B, T, A] in [-1, 1], and numbers about them, without elements where there are none."""
        ...


class NoFacts:
    """Of decoders that say nothing about a chunk."""

    def __init__(self) -> None:
        self.full = False
        self.facts: dict[str, float] = {}

    def tell(self, numbers: Tensor | None, first: int) -> None:
        """Nothing to read."""


class PlainDecoder:
    """A head's own `decode`."""

    caches = False

    def __init__(self, head: Any, backbone: Any):
        self._head, self._backbone = head, backbone
        self.facts: dict[str, float] = {}

    def session(self) -> Facts:
        """As `GraphDecoder`."""
        return NoFacts()

    def run_numbered(
        self, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int, warm: Tensor | None,
        first: int, full: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `GraphDecoder`."""
        rows = self._head.decode(self._backbone, context, committed, noise, batch)
        return rows, rows.new_empty(0)

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

    caches = False

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

    def session(self) -> Facts:
        """As `GraphDecoder`."""
        return RoundFacts()

    def run_numbered(
        self, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int, warm: Tensor | None,
        first: int, full: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `GraphDecoder`: all rounds there are, whatever the time."""
        found = self._head.decode_rounds(self._backbone, context, committed, noise, batch)
        rounds = torch.full_like(found.confidence_BL[:, 0], found.rounds).mean()
        numbers = torch.stack([rounds, found.forced_B.float().mean(), found.confidence_BL.float().mean()])
        return self._head.chunk(found.ids_BL, committed), numbers


class RoundFacts:
    """Of rounds that no deadline can cut."""

    def __init__(self) -> None:
        self.full = False
        self.facts: dict[str, float] = {}

    def tell(self, numbers: Tensor | None, first: int) -> None:
        """Read how many rounds were made, how many tokens the last one forced, and how sure they were."""
        assert numbers is not None
        rounds, forced, confidence = numbers.tolist()
        self.facts = {"rounds": rounds, "forced": forced, "confidence": confidence, "late": 0.0, "cut": 0.0}


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
