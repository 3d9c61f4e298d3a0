"""VLAPolicy: transforms, a backbone and a head, as a Policy that anything on the line can ask.

Contract units and numpy outside, [-1, 1] and tensors inside; the only place where one becomes the other. It
knows no environment and no file: `policies.checkpoint` makes one from a folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from policies.batch import Batch, Committed
from policies.decoders import Before, CapturedDecoder, Decoder, MaskedDecoder, WarmStart, neutral_row
from policies.decoding import PLAIN, Decode, decoder_for, require_precision, running, with_steps
from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.threads import one_thread
from policies.together import Together, can_answer_together
from policies.tokenizers.bins import Bins
from policies.tokenizers.bspline import BSpline
from vla_runtime.decoding.guidance import Guide, soft_weights
from vla_runtime.transforms import Normalise
from vla_runtime.types import ActionChunk, Float, Observation, PolicySpec, SpecMismatch


class VLAPolicy:
    """Policy over a backbone and a head. state, action: how contract units become [-1, 1]; max_committed is the spec's.

    decode: how; the head's own plain way by default; `trained_spec` is the spec as it was given, before it says how the
    policy decodes. Nothing of an episode is kept here: sessions may be
    interleaved at will. ValueError for a decode that the head or the backbone cannot do.
    """

    def __init__(
        self,
        spec: PolicySpec,
        backbone: nn.Module,
        head: nn.Module,
        state: Normalise,
        action: Normalise,
        decode: Decode = PLAIN,
    ):
        self._own_head, self.trained_spec = head.eval(), spec
        self.backbone, self.head = backbone.eval(), with_steps(self._own_head, decode)
        self._warm_start, self._guide = decode.warm_start, bool(decode.guide)
        self._running = running(backbone, decode)
        self._new_decoder, facts = decoder_for(self.head, self._running, decode, spec.weights)
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

    def decoding(self, decode: Decode) -> VLAPolicy:
        """The same policy, with the same weights, decoding in another way. ValueError for one it cannot do."""
        return VLAPolicy(self.trained_spec, self.backbone, self._own_head, self.state, self.action, decode)

    def decoder(self) -> Decoder:
        """What a session decodes with: (context, committed, noise, batch) -> actions float [B, T, A] in [-1, 1]."""
        return self._new_decoder()

    def context(self, batch: Batch) -> Any:
        """What a decoder is given of B samples."""
        return self._running.encode(batch)

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
        return self._spec.period, neutral.to(self.device), kept.to(self.device)

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

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
        wanted = self._spec.observation_offsets
        for observations in seen:
            if len(observations) != len(wanted):
                raise SpecMismatch(
                    f"observations: expected {len(wanted)}, one for each of the periods {list(wanted)} before now, "
                    f"got {len(observations)}"
                )
            for observation in observations:
                self._spec.state.validate(observation.state)
                for camera in self._spec.cameras:
                    if camera.name not in observation.images:
                        raise SpecMismatch(
                            f"camera {camera.name!r}: expected an image, got {sorted(observation.images)}"
                        )
                    camera.validate(observation.images[camera.name])
        images = {
            camera.name: torch.from_numpy(
                np.stack([np.concatenate([one.images[camera.name] for one in sample], axis=2) for sample in seen])
            )
            for camera in self._spec.cameras
        }
        states = self.state.forward(np.stack([[one.state for one in sample] for sample in seen]))
        told = torch.from_numpy(states.reshape(len(seen), -1))
        return Batch(images, told, tuple(sample[-1].instruction for sample in seen)).to(self.device)

    def committed(self, rows: Float | None) -> Committed | None:
        """Rows [c, A] in contract units as one sample's given rows. SpecMismatch for too many."""
        most = self._spec.max_committed
        if rows is None or len(rows) == 0:
            return None
        if len(rows) > most:
            raise SpecMismatch(f"committed: expected at most {most} rows, got {len(rows)}")
        padded = np.zeros((1, most, self._spec.action.size), np.float32)
        padded[0, : len(rows)] = self.action.forward(rows)
        return Committed(torch.from_numpy(padded).to(self.device), torch.tensor([len(rows)], device=self.device))

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


class VLASession:
    """One episode: a stream of noise, a decoder whose buffers are its own, and the chunk before for a warm start."""

    def __init__(self, policy: VLAPolicy, seed: int):
        self._policy = policy
        self._decode = policy.decoder()
        self._warm, self._before = policy.warm_start(), policy.before()
        self._generator = torch.Generator().manual_seed(seed)
        if policy.spec.decode.get("graphs") or policy.spec.decode.get("compile"):
            self._capture()

    @torch.no_grad()
    def _capture(self) -> None:
        """Capture every way to decode there is, so that no chunk of an episode waits for it; sessions after the first
        find them captured.
        """
        policy: Any = self._policy
        decode: Any = self._decode.capture if isinstance(self._decode, CapturedDecoder) else self._decode
        spec = policy.spec
        images = {one.name: np.zeros((one.height, one.width, 3), np.uint8) for one in spec.cameras}
        blank = Observation(np.zeros(spec.state.size, np.float32), images, "nothing", 0.0)
        context = policy.context(policy.batch([[blank] * len(spec.observation_offsets)]))
        noise = {name: value.to(policy.device) for name, value in policy.head.draw(1, torch.Generator()).items()}
        row = np.zeros((1, spec.action.size), np.float32)
        for given in (None, policy.committed(row) if spec.max_committed else None):
            decode(context, given, noise, 1)
            if self._warm is not None:
                decode(context, given, noise, 1, torch.zeros_like(noise["start"]), self._warm.first)

    @torch.no_grad()
    def predict(
        self, observations: Sequence[Observation], committed: Float | None = None, deadline: float | None = None
    ) -> ActionChunk:
        policy: Any = self._policy
        observation = observations[-1]
        if isinstance(self._decode, MaskedDecoder):
            self._decode.begin(deadline)
        noise = self.noise()
        context = policy.context(policy.batch([observations]))
        given = policy.committed(committed)
        facts: dict[str, float] = {}
        if self._before is not None:
            guide = self._guide(observation, given)
            unit = self._decode(context, None, noise, 1, None, 0, guide)
            self._before.keep(unit, observation.time, observation.instruction)
            facts["guided"] = float(guide is not None)
        elif self._warm is None:
            unit = self._decode(context, given, noise, 1)
        else:
            guess = self._warm.guess(observation.time, observation.instruction, _rows(given))
            first = 0 if guess is None else self._warm.first
            unit = self._decode(context, given, noise, 1, guess, first)
            self._warm.keep(unit, observation.time, observation.instruction)
            facts["warm"] = float(guess is not None)
        facts |= self._decode.facts
        chunk: ActionChunk = policy.chunk(unit[0], observation.time, committed, facts)
        return chunk

    def noise(self) -> dict[str, Tensor]:
        """The noise of the next chunk."""
        policy: Any = self._policy
        return {name: value.to(policy.device) for name, value in policy.head.draw(1, self._generator).items()}

    def forget(self) -> None:
        """Motion begins anew: no chunk is drawn to, or begun with, one of before."""
        for memory in (self._warm, self._before):
            if memory is not None:
                memory.forget()

    def _guide(self, observation: Observation, given: Committed | None) -> Guide | None:
        """The given rows and the rest of the chunk before, where it says something of now; None without either."""
        assert self._before is not None
        rows = _rows(given)
        passed = self._before.passed(observation.time, observation.instruction, rows)
        if passed is None and rows is None:
            return None
        count = 0 if rows is None else rows.shape[1]
        if passed is None:
            spec = self._policy.spec
            target = torch.zeros(1, spec.horizon, spec.action.size, device=self._policy.device)
            passed = spec.horizon - count
        else:
            target = self._before.rest(passed)
        if rows is not None:
            target = torch.cat([rows.to(target), target[:, count:]], dim=1)
        return Guide(target, soft_weights(target.shape[1], count, passed))


def _rows(given: Committed | None) -> Tensor | None:
    """The rows [1, c, A] that one sample is given."""
    return None if given is None else given.rows_BPA[:, : int(given.counts_B[0])]
