"""Chunks as CUDA graphs: everything between the tensors of an observation and the rows of a chunk in one of them.

A graph holds images, proprioception, the context's keys and values, and all steps of the decode; its inputs come from
the host, and the rows go back there, which is the only time the host waits. Where rounds of masked diffusion may end
early the host asks after each, so that what encodes and a round are graphs of their own. Knows neither contract units
nor sessions' noise.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from math import inf
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from policies.batch import Batch, Committed
from policies.chunks import ChunkDecoder, EagerChunks, TextCache
from policies.decoders import Facts, GraphDecoder, MaskedDecoder
from policies.decoding import Decode, asks_between_rounds
from policies.heads.discrete_diffusion import DiscreteDiffusion
from vla_runtime.control.clock import Clock, SystemClock
from vla_runtime.decoding.graphs import Captured, CapturedBackbone, GraphResources, tensors_of, with_tensors
from vla_runtime.decoding.guidance import Guide

# Graphs that are kept, and replays whose time is.
_KEPT, _TIMED = 64, 20
_log = logging.getLogger(__name__)


class PolicyGraphs:
    """All graphs of a policy, shared by its sessions, in any thread.

    Args:
        head: after `with_steps`.
        backbone: what encodes and steps.
        text: its instructions.
        new: makes decoders that ask the device nothing.
        decode: what is asked for.
        make: what captures, by default `Captured`.
    """

    def __init__(
        self,
        head: Any,
        backbone: Any,
        text: TextCache,
        new: Callable[[], Any],
        decode: Decode,
        make: Callable[..., Any] | None = None,
    ):
        make = make or partial(Captured, resources=GraphResources())
        self._head, self._text, self._deadline = head, text, decode.deadline
        self._chunks = None if asks_between_rounds(head, decode) else ChunkGraphs(backbone, text, new, make)
        masked = isinstance(head, DiscreteDiffusion)
        self._passes: Any = CapturedBackbone(backbone, make) if masked else None

    def decoder(self) -> ChunkDecoder:
        """A decoder for one session."""
        if self._chunks is not None:
            return self._chunks.session()
        timed = self.timed_decoder()
        assert timed is not None
        return timed

    def timed_decoder(self) -> ChunkDecoder | None:
        """A decoder for one session that can end early; None of heads without rounds."""
        if self._passes is None:
            return None
        return EagerChunks(self._passes, self._text, MaskedDecoder(self._head, self._passes, self._deadline))

    def capture(
        self, batch: Batch, noise: dict[str, Tensor], committed: Sequence[Committed | None], first: int | None
    ) -> None:
        """Capture every kind of decode.

        Args:
            batch: an observation of the right shapes.
            noise: of the right shapes.
            committed: given rows of every kind, None among them.
            first: the step that a warm start begins with, None without one.
        """
        timed = self.timed_decoder()
        for given in committed:
            if timed is not None:
                timed(batch, given, noise)
            if self._chunks is not None:
                self._chunks.capture(batch, given, noise, first)
                if timed is not None:
                    # Once more, for the time it takes, by which sessions with a deadline choose.
                    self._chunks(batch, given, noise, None, 0, False)
        if self._chunks is not None:
            self._chunks.ready = True


class ChunkGraphs:
    """A policy's chunks as CUDA graphs: one for each of cold, warm, with rows given, and in full for the guard.

    Each kind is captured when it is first asked for, and then shared by all sessions, in any thread.

    Args:
        backbone: what encodes.
        text: its instructions.
        new: makes a decoder whose `run` asks the device nothing, one for each size of a batch, since its buffers lie
            where graphs know them.
        make: what captures, by default `Captured`.
        clock: says how long a capture took.
    """

    def __init__(
        self,
        backbone: Any,
        text: TextCache,
        new: Callable[[], GraphDecoder],
        make: Callable[..., Any] | None = None,
        clock: Clock | None = None,
    ):
        self._backbone, self._text, self._new, self._make = backbone, text, new, make or Captured
        self._clock = clock or SystemClock()
        self._decoders: dict[int, GraphDecoder] = {1: new()}
        self._known: OrderedDict[Hashable, Any] = OrderedDict()
        self._taken: deque[float] = deque(maxlen=_TIMED)
        self._lock = Lock()
        self.ready = False

    def session(self) -> GraphChunks:
        """A decoder for one session."""
        return GraphChunks(self, self._decoders[1].session())

    @property
    def caches(self) -> bool:
        """Whether branches are reused, so that there is a decode in full beside the one by plan."""
        return self._decoders[1].caches

    def capture(self, batch: Batch, committed: Committed | None, noise: dict[str, Tensor], first: int | None) -> None:
        """Make the graphs that calls like this one need: by plan and in full, cold and warm."""
        for full in (False, True) if self.caches else (False,):
            self(batch, committed, noise, None, 0, full)
            if first is not None:
                self(batch, committed, noise, torch.zeros_like(noise["start"]), first, full)

    def takes(self) -> float:
        """Seconds of the slowest of the last replays; infinite before the first."""
        with self._lock:
            return max(self._taken, default=inf)

    @torch.no_grad()
    def __call__(
        self,
        batch: Batch,
        committed: Committed | None,
        noise: dict[str, Tensor],
        warm: Tensor | None,
        first: int,
        full: bool,
    ) -> tuple[Tensor, Tensor]:
        """Rows [B, T, A] and the decoder's numbers, both on the host.

        Args:
            batch: observations, on the host.
            committed: rows that are given.
            noise: of the head.
            warm: a guess of the rows, None to begin with noise.
            first: the first step that is taken.
            full: whether nothing is reused.
        """
        names = tuple(sorted(batch.images))
        images = tuple(batch.images[name] for name in names)
        value = (images, batch.state_BS, self._text(batch.instructions), tuple(noise.values()), committed, warm)
        given = tensors_of(value)
        key = (committed is None, warm is None, first, full, *(tuple(one.shape) for one in given))
        with self._lock:
            began = self._clock.now()
            new = key not in self._known
            if new:
                self._known[key] = self._captured(value, names, tuple(noise), first, full, given)
                if self.ready:
                    # Another instruction's length, or another size of a batch: what asked for it has waited.
                    _log.warning(
                        "decode.graphs: a graph was captured in mid-run, which took %.1f s; an instruction or a batch "
                        "of another size needs one of its own", self._clock.now() - began,
                    )  # fmt: skip
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            rows, numbers = self._known[key](*given)
            if not new:
                self._taken.append(self._clock.now() - began)
        return rows, numbers

    def _captured(
        self, value: Any, names: tuple[str, ...], drawn: tuple[str, ...], first: int, full: bool, given: list[Tensor]
    ) -> Any:
        batch = len(value[1])
        if batch not in self._decoders:
            self._decoders[batch] = self._new()
        decoder = self._decoders[batch]

        def run(*values: Tensor) -> tuple[Tensor, Tensor]:
            images, state, text, noise, committed, warm = with_tensors(value, values)
            scene = self._backbone.encode_scene(dict(zip(names, images, strict=True)), state, *text)
            context = self._backbone.postpone(*scene)
            named = dict(zip(drawn, noise, strict=True))
            return decoder.run_numbered(context, committed, named, batch, warm, first, full)

        device = next(self._backbone.parameters()).device
        return self._make(run, given, device, True)


class GraphChunks:
    """A session's chunks over graphs that it shares with others."""

    def __init__(self, graphs: ChunkGraphs, session: Facts):
        self._graphs, self._session = graphs, session

    @property
    def facts(self) -> dict[str, float]:
        """Numbers about the last chunk."""
        return self._session.facts

    def begin(self, deadline: float | None) -> None:
        """As `ChunkDecoder`; a graph takes the time it takes."""

    def in_time(self, deadline: float) -> bool:
        """Whether a chunk can be expected within so many seconds, by those before."""
        return self._graphs.takes() <= deadline

    def __call__(
        self,
        batch: Batch,
        committed: Committed | None,
        noise: dict[str, Tensor],
        warm: Tensor | None = None,
        first: int = 0,
        guide: Guide | None = None,
    ) -> Tensor:
        if guide is not None:
            raise ValueError("decode.guide: expected no decode.graphs beside it, got both")
        rows, numbers = self._graphs(batch, committed, noise, warm, first, self._session.full)
        self._session.tell(numbers, first)
        return rows
