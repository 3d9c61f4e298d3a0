"""VLAPolicy: transforms, a backbone and a head, as a Policy that anything on the line can ask.

Contract units and numpy outside, [-1, 1] and tensors inside; the only place where one becomes the other. It
knows no environment and no file: `policies.checkpoint` makes one from a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from policies.batch import Batch, Committed
from policies.captured import PolicyGraphs
from policies.chunks import ChunkDecoder, EagerChunks, TextCache, context_of
from policies.decoders import Decoder
from policies.decoding import PLAIN, Decode, decoder_for, require_precision, running, with_steps
from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.precision import precision_of, require_speed
from policies.session import VLASession
from policies.threads import one_thread
from policies.together import Together, can_answer_together
from policies.tokenizers.bins import Bins
from policies.tokenizers.bspline import BSpline
from policies.warm_start import Before, WarmStart, neutral_row
from vla_runtime.decoding.graphs import require_cuda
from vla_runtime.question import check_committed, check_observations
from vla_runtime.transforms import Normalise
from vla_runtime.types import ActionChunk, Float, Observation, PolicySpec


class VLAPolicy:
    """Policy over a backbone and a head. state, action: how contract units become [-1, 1]; max_committed is the spec's.

    decode: how; the head's own plain way by default; `trained_spec` is the spec as it was given, before it says how the
    policy decodes; capture: what makes graphs, by default `Captured`. Nothing of an episode is kept here: sessions may
    be interleaved at will. ValueError for a decode that the head or the backbone cannot do.
    """

    def __init__(
        self,
        spec: PolicySpec,
        backbone: nn.Module,
        head: nn.Module,
        state: Normalise,
        action: Normalise,
        decode: Decode = PLAIN,
        capture: Callable[..., Any] | None = None,
    ):
        self.own_head, self.trained_spec = head.eval(), spec
        self.backbone, self.head = backbone.eval(), with_steps(self.own_head, decode)
        self._warm_start, self._guide = decode.warm_start, bool(decode.guide)
        if decode.graphs:
            require_speed(precision_of(backbone))
            if capture is None:
                require_cuda(self.device)
        self._running = running(backbone, decode)
        self._text = TextCache(self._running)
        self._new_decoder, facts = decoder_for(self.head, self._running, decode, spec.weights)
        self._graphs: PolicyGraphs | None = None
        if decode.graphs:
            self._graphs = PolicyGraphs(self.head, self._running, self._text, self._new_decoder, decode, capture)
        self._lock, self._ready = Lock(), self._graphs is None and not decode.compile
        precision = require_precision(backbone, decode)
        tokenizer = getattr(self.head, "tokenizer", None)
        self._tokenizer = tokenizer if isinstance(tokenizer, BSpline) else None
        self._spec = replace(
            spec,
            decode={"mode": decode.mode, "precision": precision, **facts},
            # Guidance needs no training: any rows can be given.
            max_committed=spec.horizon - 1 if self._guide else spec.max_committed,
            curves=self._tokenizer is not None,
            pins=isinstance(self.head, DiscreteDiffusion) and isinstance(tokenizer, Bins),
        )
        self.state, self.action = state, action
        self._binary = [
            (spec.action.slices[group.name], group.open, group.close)
            for group in spec.action.groups
            if group.kind == "binary" and group.open is not None and group.close is not None
        ]

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VLAPolicy:
        """The policy of a checkpoint folder, or a shipped one by its name, decoding as its checkpoint says."""
        from policies.checkpoint import load_policy

        return load_policy(folder)

    def decoding(self, decode: Decode, capture: Callable[..., Any] | None = None) -> VLAPolicy:
        """The same policy, with the same weights, decoding in another way. ValueError for one it cannot do.

        capture: what makes graphs, by default `Captured`, which needs a GPU.
        """
        return VLAPolicy(self.trained_spec, self.backbone, self.own_head, self.state, self.action, decode, capture)

    def decoder(self) -> Decoder:
        """What decodes from a context, one operation after another: (context, committed, noise, batch) -> actions float
        [B, T, A] in [-1, 1].
        """
        return self._new_decoder()

    def chunk_decoder(self) -> ChunkDecoder:
        """What a session decodes with, from observations on; captured where graphs are asked for."""
        if self._graphs is not None:
            return self._graphs.decoder()
        return EagerChunks(self._running, self._text, self._new_decoder())

    def timed_decoder(self) -> ChunkDecoder | None:
        """What a session decodes with instead where a question has a deadline and `chunk_decoder` cannot heed it."""
        return None if self._graphs is None else self._graphs.timed_decoder()

    def context(self, batch: Batch) -> Any:
        """What a decoder is given of B samples."""
        return context_of(self._running, self._text, batch)

    def warm_start(self) -> WarmStart | None:
        """What a session begins its chunks with, or None for noise."""
        if self._warm_start is None:
            return None
        return WarmStart(self._warm_start, self._spec.decode["steps"], *self._memory())

    def before(self) -> Before | None:
        """What a session remembers of its last chunk in order to draw the next to it, or None."""
        return Before(*self._memory()) if self._guide else None

    def _memory(self) -> tuple[float, Tensor, Tensor]:
        """What `Before` needs to know of an action."""
        kept = torch.ones(self._spec.action.size, dtype=torch.bool)
        for part, _, _ in self._binary:
            kept[part] = False
        neutral = neutral_row(self._spec.action, self.action)
        return self._spec.period, neutral.to(self.input_device), kept.to(self.input_device)

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    @property
    def input_device(self) -> torch.device:
        """Where batches, given rows and noise are made: on the host where a graph takes them from there."""
        return self.device if self._graphs is None else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of what is computed."""
        return next(self.backbone.parameters()).dtype

    @property
    def precision(self) -> str:
        """Of the weights."""
        return str(self._spec.decode["precision"])

    @one_thread()
    def begin(self, seed: int) -> VLASession:
        """A session whose noise is drawn from `seed`."""
        return VLASession(self, seed)

    def close(self) -> None: ...

    @torch.no_grad()
    def make_ready(self) -> None:
        """Capture, or compile, every kind of decode there is, so that chunks of an episode need not wait for it (but
        for prompts of another length, where they are not padded). Nothing after the first time, and nothing where
        nothing is captured or compiled.
        """
        with self._lock:
            if self._ready:
                return
            spec: PolicySpec = self._spec
            head: Any = self.head
            images = {one.name: np.zeros((one.height, one.width, 3), np.uint8) for one in spec.cameras}
            blank = Observation(np.zeros(spec.state.size, np.float32), images, "nothing", 0.0)
            batch = self.batch([[blank] * len(spec.observation_offsets)])
            noise = head.draw(1, torch.Generator())
            row = np.zeros((1, spec.action.size), np.float32)
            kinds = [None, self.committed(row)] if spec.max_committed else [None]
            warm = self.warm_start()
            if self._graphs is not None:
                self._graphs.capture(batch, noise, kinds, None if warm is None else warm.first)
            else:
                chunks = self.chunk_decoder()
                for given in kinds:
                    chunks(batch, given, noise)
            self._ready = True

    @one_thread()
    def together(self) -> Together:
        """What answers several sessions in one pass. ValueError for a way to decode that cannot."""
        reason = can_answer_together(dict(self._spec.decode))
        if reason is not None:
            raise ValueError(f"batch: expected a policy whose chunks stand for themselves, got {reason}; take batch=1")
        return Together(self)

    def batch(self, seen: Sequence[Sequence[Observation]]) -> Batch:
        """B samples as tensors, each of one observation per offset, oldest first.

        SpecMismatch for an observation that is not what the spec says, and for too few or too many.
        """
        for observations in seen:
            check_observations(self._spec, observations)
        images = {
            camera.name: torch.from_numpy(
                np.stack([np.concatenate([one.images[camera.name] for one in sample], axis=2) for sample in seen])
            )
            for camera in self._spec.cameras
        }
        states = self.state.forward(np.stack([[one.state for one in sample] for sample in seen]))
        told = torch.from_numpy(states.reshape(len(seen), -1))
        return Batch(images, told, tuple(sample[-1].instruction for sample in seen)).to(self.input_device)

    def committed(self, rows: Float | None) -> Committed | None:
        """Rows [c, A] in contract units as one sample's given rows. SpecMismatch for too many, for another width
        and for values that are not finite.
        """
        check_committed(self._spec, rows)
        if rows is None or len(rows) == 0:
            return None
        most = self._spec.max_committed
        padded = np.zeros((1, most, self._spec.action.size), np.float32)
        padded[0, : len(rows)] = self.action.forward(rows)
        device = self.input_device
        return Committed(torch.from_numpy(padded).to(device), torch.tensor([len(rows)], device=device))

    def chunk(self, unit_TA: Tensor, time: float, committed: Float | None, facts: Mapping[str, float]) -> ActionChunk:
        """A normalised chunk in contract units, with its curve where there is one and no rows were given."""
        rows, period = self.actions(unit_TA[None])[0], self._spec.period
        if committed is not None and len(committed):
            rows[: len(committed)] = committed  # as they were given: normalising and back may move the last bit
        elif self._tokenizer is not None:
            curve, curved = self._tokenizer.curve(rows, period), self._tokenizer.smooth
            return ActionChunk(rows, time, period, time, curve, curved, facts)
        return ActionChunk(rows, time, period, time, facts=facts)

    def actions(self, unit_BTA: Tensor) -> Float:
        """Normalised rows to contract units float32 [B, T, A]; a gripper is open or closed, nothing between."""
        values = self.action.backward(unit_BTA.float().cpu().numpy())
        for part, opened, closed in self._binary:
            nearer = np.abs(values[..., part] - closed) < np.abs(values[..., part] - opened)
            values[..., part] = np.where(nearer, np.float32(closed), np.float32(opened))
        return values
