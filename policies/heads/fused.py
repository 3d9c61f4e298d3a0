"""Denoising and flow decoded as a static program of attention, products and row operations: what a GPU runs.

The same sums as `PreparedDecoder`, which is the reference, in another order: branches that are reused between two
computed ones are added as one sum, a computed branch writes where its output is kept, and everything between the last
branch of one step and the first of a later one is a single row operation. A GPU is bound by how many kernels it is
asked for, not by what they compute.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from policies.backbones.fused_steps import FusedSteps
from policies.batch import Committed
from policies.heads.diffusion import Diffusion, Flow
from policies.heads.prepared import PreparedDecoder
from policies.heads.slots import keep_committed
from vla_runtime.decoding.bac import Schedule
from vla_runtime.decoding.branch_program import BranchProgram, compile_plan
from vla_runtime.decoding.denoise import StepTable
from vla_runtime.decoding.guidance import Guide
from vla_runtime.decoding.row_kernels import (
    BEFORE,
    CLEAN,
    Begun,
    Finished,
    RowNetwork,
    TorchRows,
    TritonRows,
    row_operations,
)


class FusedDecoder(PreparedDecoder):
    """As `PreparedDecoder`. rows: what carries out row operations, by default what the device is fastest with.

    A chunk that is drawn to another one (`guide`) is decoded as `PreparedDecoder` does.
    """

    def __init__(
        self,
        head: Diffusion | Flow,
        backbone: Any,
        schedule: Schedule | None = None,
        rows: type[TorchRows] | type[TritonRows] | None = None,
    ):
        super().__init__(head, backbone, schedule)
        network = head.network
        device = network.places.device
        self._row_operations = rows or row_operations(device)
        self._clip = self._table is not None and self._table.clip
        self._coefficients = _coefficients(self._table, self._steps).to(device)
        self._branches = 3 * len(backbone.decoder.layers)
        self._network_rows: Any = network
        with torch.no_grad():
            self._fused = FusedSteps(backbone.decoder, self._times)
        # Programs are shared by all twins; what they write into is not.
        self._programs: dict[tuple[int, bool], _Program] = {}
        self._begin_fused()

    def _begin_fused(self) -> None:
        self._buffers: dict[tuple[Any, ...], list[Tensor]] = {}
        self._gap: Tensor | None = None

    def twin(self) -> FusedDecoder:
        """As `PreparedDecoder.twin`."""
        other: Any = super().twin()
        other._fused = self._fused.twin()
        other._begin_fused()
        return other  # type: ignore[no-any-return]

    def gap(self) -> Tensor | None:
        """As `PreparedDecoder.gap`."""
        return self._gap

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
        """As `PreparedDecoder.run`."""
        if guide is not None:
            rows = super().run(context, committed, noise, batch, warm, first, guide, full)
            self._gap = super().gap()
            return rows
        if first and warm is None:
            raise ValueError(f"warm start: expected a guess to begin with at step {first}, got none")
        program = self._program(first, full)
        sample = self._started(noise["start"], warm, first)
        network, steps = self._network_rows, self._fused
        # Kernels read every sample's own: an expanded tensor has one for all.
        given = network.prefix(committed, batch).contiguous()
        outputs, slots, normed, last = self._kept(program, given, sample)
        mapped = RowNetwork(
            network.embed.weight, network.embed.bias, network.places, steps.last_norm, network.out.weight,
            network.out.bias,
        )  # fmt: skip
        # A guess of an earlier chunk, which weighs nothing, must not be one that is not finite.
        last.zero_()
        drawn = noise.get("steps", sample.new_empty(0))
        steps.begin(context, program.steps)
        finished: Finished | None = None
        for stretch, tables in zip(program.stretches.stretches, program.tables, strict=True):
            steps.start(stretch.step)
            opening, *later = stretch.updates
            begun = Begun(tables.before[0], steps.norms[opening.branch], given, slots, normed)
            self._rows_between(sample, last, drawn, program, outputs, mapped, finished, begun)
            steps.compute(opening.branch, stretch.step, normed, outputs[opening.place])
            for update, before in zip(later, tables.before[1:], strict=True):
                norm = steps.norms[update.branch]
                self._row_operations.add_and_norm(slots, outputs, before, norm, normed)
                steps.compute(update.branch, stretch.step, normed, outputs[update.place])
            finished = Finished(stretch.step, stretch.end, slots, tables.after, tables.kept)
        self._rows_between(sample, last, drawn, program, outputs, mapped, finished, None)
        self._gap = program.gap(outputs)
        if self.cache is not None:
            self.cache.evaluations += program.stretches.evaluations
        return keep_committed(sample.clamp_(-1, 1), committed)

    def _rows_between(
        self, sample: Tensor, last: Tensor, drawn: Tensor, program: _Program, outputs: Tensor, network: RowNetwork,
        finished: Finished | None, begun: Begun | None,
    ) -> None:  # fmt: skip
        self._row_operations.denoise_rows(
            sample, last, drawn, program.table, outputs, network, finished, begun, self._clip
        )

    def _started(self, start: Tensor, warm: Tensor | None, first: int) -> Tensor:
        if warm is None:
            return start.clone()
        if self._table is None:
            return warm * (first / self._steps) + start * (1 - first / self._steps)
        return warm * self._table.signal[first] + start * self._table.level[first]

    def _kept(self, program: _Program, given: Tensor, sample: Tensor) -> list[Tensor]:
        """Buffers, made once for every shape: kept outputs [N, B, L, D], slots and their norm [B, L, D], the guess."""
        batch, ahead, width = given.shape
        key = (program.stretches.places, *given.shape, given.dtype)
        if key not in self._buffers:
            slots = given.new_empty(batch, ahead + sample.shape[1], width)
            outputs = given.new_empty(program.stretches.places, *slots.shape)
            self._buffers[key] = [outputs, slots, torch.empty_like(slots), torch.zeros_like(sample)]
        return self._buffers[key]

    def _program(self, first: int, full: bool) -> _Program:
        key = (first, full)
        if key not in self._programs:
            every = range(self._branches)
            plan = [every] * self._steps if self.cache is None or full else self.cache.plan
            watched = None if self.cache is None or full else self.cache.expected
            made = compile_plan(plan, self._branches, first, watched)
            table = self._coefficients.clone()
            # Without a guess before it a multistep update is one of first order: both shares go to this guess.
            table[first, CLEAN] += table[first, BEFORE]
            table[first, BEFORE] = 0
            self._programs[key] = _Program(made, table)
        return self._programs[key]


class _Program:
    """A compiled plan with what it needs on the device: places to add as tensors, and the table of coefficients."""

    def __init__(self, stretches: BranchProgram, table: Tensor):
        self.stretches, self.table = stretches, table
        self.steps = tuple(stretch.step for stretch in stretches.stretches)
        device = table.device

        @cache
        def places(values: tuple[int, ...]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        self.tables = [
            _Tables([places(update.before) for update in one.updates], places(one.after), places(one.kept))
            for one in stretches.stretches
        ]
        pairs = [place for one in stretches.watched for place in (one.old, one.new)]
        self._pairs = torch.tensor(pairs, dtype=torch.int32, device=device)
        self._expected = torch.tensor([one.expected for one in stretches.watched], device=device)

    def gap(self, outputs: Tensor) -> Tensor | None:
        """The mean over what is watched of how much lower the cosine is than in calibration, float [B]."""
        if not self.stretches.watched:
            return None
        # [W, 2, B, L D]; all inner products of a pair are one product of matrices.
        flat = outputs.index_select(0, self._pairs).float().view(len(self._expected), 2, outputs.shape[1], -1)
        pairs = flat.transpose(1, 2).flatten(0, 1)
        inner = torch.bmm(pairs, pairs.transpose(1, 2)).view(len(flat), -1, 2, 2)
        lengths = (inner[..., 0, 0] * inner[..., 1, 1]).clamp_min(1e-16).sqrt()
        return (self._expected[:, None] - inner[..., 0, 1] / lengths).mean(0)


class _Tables:
    def __init__(self, before: list[Tensor], after: Tensor, kept: Tensor):
        self.before, self.after, self.kept = before, after, kept


def _coefficients(table: StepTable | None, steps: int) -> Tensor:
    """A sampler's steps as float [K, 7]; Euler's method on a flow adds 1 / K of the answer."""
    if table is None:
        return torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 1 / steps, 0.0]] * steps)
    columns = (table.sample_in, table.answer_in, table.kept, table.clean, table.before, table.answer, table.noise)
    return torch.tensor(columns).T.contiguous()
