"""Denoising and flow decoded with all that can be known beforehand computed beforehand, and branches reused by plan.

Exact, up to rounding: the coefficients of every step, the keys and values of its time, the context's and the
given rows' slots. Optional, and not exact: a caching schedule. A decoder belongs to one session, since it
holds buffers; the plain `decode` of the heads is its reference.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from policies.batch import Committed
from policies.heads.diffusion import Diffusion, Flow
from policies.heads.slots import keep_committed
from vla_runtime.decoding.bac import Schedule
from vla_runtime.decoding.denoise import StepTable, denoise_exact, step_table
from vla_runtime.decoding.feature_cache import FeatureCache
from vla_runtime.decoding.guidance import Guide, mixed_in

# Of how many updates the similarity is watched, about: each costs a fifth of a branch.
WATCHED = 20
_log = logging.getLogger(__name__)


class PreparedDecoder:
    """Callable as (context, committed, noise, batch) -> actions float [B, T, A], as the head's `decode`.

    schedule: which branches are computed when; None computes all of them. ValueError for a backbone without
    blocks where there is a schedule, and for a schedule of another depth or number of steps.
    """

    def __init__(self, head: Diffusion | Flow, backbone: Any, schedule: Schedule | None = None):
        self._network, self._backbone = head.network, backbone
        device = head.network.places.device
        self._table: StepTable | None = None
        if isinstance(head, Diffusion):
            self._table = step_table(head.denoising)
            times = torch.tensor(self._table.timesteps, device=device).float() / head.denoising.train_steps
        else:
            times = torch.arange(head.steps, device=device) / head.steps
        self._steps = len(times)
        self._schedule = schedule
        self.cache = None if schedule is None else self._planned(schedule)
        with torch.no_grad():
            self._times = head.network.time(head.network.waves(times))
            self._prepared = backbone.prepared(self._times, self.cache)
        self._begin_session()

    def _begin_session(self) -> None:
        self._bounds = {} if self._schedule is None else self._schedule.guard
        self._guard = self.guard()
        # Those of the given rows and of the chunk's, and of the latter alone.
        self._slots: Tensor | None = None
        self._rows: Tensor | None = None

    def twin(self) -> PreparedDecoder:
        """A decoder for another session of the same policy: the same weights and coefficients, its own buffers."""
        other = copy(self)
        other.cache = None if self._schedule is None else self._planned(self._schedule)
        other._prepared = self._prepared.twin(other.cache)
        other._begin_session()
        return other

    @property
    def facts(self) -> dict[str, float]:
        """Numbers about the last chunk."""
        return self._guard.facts

    def guard(self) -> Guard:
        """What heeds the cache of chunks decoded here: one for everyone who asks for them."""
        return Guard(self.cache, self._bounds)

    @property
    def steps(self) -> int:
        """K: denoising or flow steps of a decode that begins with noise."""
        return self._steps

    @torch.no_grad()
    def __call__(
        self,
        context: Any,
        committed: Committed | None,
        noise: dict[str, Tensor],
        batch: int = 1,
        warm: Tensor | None = None,
        first: int = 0,
        guide: Guide | None = None,
    ) -> Tensor:
        """A chunk float [B, T, A] in [-1, 1]. warm: a guess of it, to begin with at step `first` instead of noise.
        guide: of diffusion, what it is drawn to.

        ValueError for a first step other than 0 without a guess.
        """
        rows = self.run(context, committed, noise, batch, warm, first, guide, self._guard.full)
        self._guard.tell(self.gap(), first)
        return rows

    @property
    def caches(self) -> bool:
        """Whether branches are reused, so that a decode in full differs from one by plan."""
        return self.cache is not None

    def session(self) -> Guard:
        """What reads the numbers of `run_numbered`, for one session."""
        return self.guard()

    def run_numbered(
        self, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int, warm: Tensor | None,
        first: int, full: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The chunk, and the gap of its cache, without elements where there is none."""
        rows = self.run(context, committed, noise, batch, warm, first, full=full)
        gap = self.gap()
        return rows, rows.new_empty(0) if gap is None else gap

    def gap(self) -> Tensor | None:
        """How much less alike than in calibration reused outputs of the last chunk were, for every sample [B]."""
        return None if self.cache is None else self.cache.gap()

    @torch.no_grad()
    def run(
        self,
        context: Any,
        committed: Committed | None,
        noise: dict[str, Tensor],
        batch: int = 1,
        warm: Tensor | None = None,
        first: int = 0,
        guide: Guide | None = None,
        full: bool = False,
    ) -> Tensor:
        """The chunk alone: work of the device, which is asked nothing, so that it can be captured.

        full: reuse nothing.
        """
        if first and warm is None:
            raise ValueError(f"warm start: expected a guess to begin with at step {first}, got none")
        self._begin(context, committed, batch, first, full)
        if self._table is not None:
            touch = partial(mixed_in, guide=guide, table=self._table, start=noise["start"])
            sample = denoise_exact(self._predict, noise, self._table, warm, first, lambda found, k: touch(found, k=k))
            sample = sample if guide is None else guide.mixed(sample, guide.target)
        else:
            sample = noise["start"]
            if warm is not None:
                sample = warm * (first / self._steps) + sample * (1 - first / self._steps)
            for k in range(first, self._steps):
                sample = torch.add(sample, self._predict(sample, k), alpha=1 / self._steps)
        return keep_committed(sample.clamp(-1, 1), committed)

    def _begin(self, context: Any, committed: Committed | None, batch: int, first: int, full: bool) -> None:
        self._prepared.begin(context, first, full)
        prefix = self._network.prefix(committed, batch)
        rows = self._network.rows
        if self._slots is None or len(self._slots) != batch:
            self._slots = torch.cat([prefix, prefix.new_zeros(batch, rows, prefix.shape[2])], dim=1)
            self._rows = self._slots[:, -rows:]
        else:
            self._slots[:, :-rows] = prefix

    def _predict(self, sample: Tensor, k: int) -> Tensor:
        slots, network = self._slots, self._network
        assert slots is not None
        torch.add(network.embed(sample.to(slots.dtype)), network.places, out=self._rows)
        return network.out(self._prepared.step(k, slots, network.rows)).to(sample.dtype)  # type: ignore[no-any-return]

    def _planned(self, schedule: Schedule) -> FeatureCache:
        if not hasattr(self._backbone, "blocks"):
            raise ValueError(f"decode.schedule: expected a backbone with blocks, got {self._backbone.name}")
        blocks = self._backbone.blocks()
        if set(schedule.blocks) != set(blocks) or schedule.steps != self._steps:
            raise ValueError(
                f"decode.schedule: expected {len(blocks)} blocks and {self._steps} steps, "
                f"got {len(schedule.blocks)} and {schedule.steps}"
            )
        places = {block: index for index, block in enumerate(blocks)}
        plan = [{places[block] for block in schedule.updated(k)} for k in range(self._steps)]
        known = [
            (step, places[block], cosine)
            for block, alike in schedule.expected.items()
            for step, cosine in zip(schedule.blocks[block][1:], alike, strict=True)
        ]
        expected: dict[int, dict[int, float]] = {}
        # Sorted by step: what is watched is spread over the decode.
        for step, place, cosine in sorted(known)[:: max(1, round(len(known) / WATCHED))]:
            expected.setdefault(place, {})[step] = cosine
        return FeatureCache(plan, len(blocks), expected)


class Guard:
    """Whether reused outputs still match, chunk by chunk of one session. facts: numbers about the last chunk.

    full: whether the next chunk is to be decoded in full. bounds: {first step: how much less alike than in calibration
    outputs and those that replaced them may be}.
    """

    def __init__(self, cache: FeatureCache | None, bounds: Mapping[int, float]):
        self._cache, self._bounds = cache, bounds
        self.full = False
        self.facts: dict[str, float] = {}

    def tell(self, gap: Tensor | None, first: int) -> None:
        """Say how alike reused outputs and those that replaced them were, beside calibration, and heed it.

        Once they were less alike than the schedule's guard allows, the next chunk is decoded in full, and the one
        after it by plan again. gap: as the cache's, of a chunk that began at step `first`; none where nothing is known.
        """
        self.facts = {}
        if self._cache is None:
            return
        full, self.full = self.full, False
        bound = self._bounds.get(first)
        self.facts["decoded_in_full"] = float(full)
        self.facts["hit_rate"] = 0.0 if full else self._cache.hit_rate(first)
        self.facts["guarded"] = float(bound is not None)
        if full or gap is None or not gap.numel():
            return
        self.facts["cache_gap"] = float(gap.max())
        self.full = bound is not None and not self.facts["cache_gap"] <= bound
        if self.full:
            _log.warning(
                "cache guard: similarity of reused outputs is %.4f below calibration's, more than %.4f: the next chunk "
                "is decoded in full", self.facts["cache_gap"], bound,
            )  # fmt: skip
