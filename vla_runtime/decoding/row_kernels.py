"""Everything between two computed branches of a denoising decode, one program a row: sums, norms, sampler updates.

Without attention rows do not see each other, so that what lies between the last computed branch of one step and the
first of a later one is one kernel, however many steps that is. `add_and_norm` is the sum of kept outputs before a
branch with the norm behind it; `denoise_rows` finishes a step, runs the steps that compute no branch, and begins the
next one. Both exist as torch lines, which are the reference and run on every device, and as Triton kernels, which are
operators of their own (`vla::`) on CUDA. Knows tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vla_runtime.decoding.triton_kernels import announce, fused, on_device_of

# The columns of a step's coefficients, see `denoise.StepTable`.
SAMPLE_IN, ANSWER_IN, KEPT, CLEAN, BEFORE, ANSWER, NOISE = range(7)


class RowNorm(NamedTuple):
    """A layer norm over the last axis [D]."""

    weight: Tensor
    bias: Tensor
    eps: float


class RowNetwork(NamedTuple):
    """What maps rows to slots and back: embed_DA, embed_D, places_TD, the last norm, out_AD, out_A."""

    embed: Tensor
    embed_bias: Tensor
    places: Tensor
    norm: RowNorm
    out: Tensor
    out_bias: Tensor


class Begun(NamedTuple):
    """The start of a step that computes branches: kept outputs to add to its slots, the norm of its first branch, and
    where both go, [B, L, D]. given_BPD: slots of given rows in front of the chunk's.
    """

    before: Tensor
    norm: RowNorm
    given: Tensor
    slots: Tensor
    normed: Tensor


class Finished(NamedTuple):
    """The rest of step `step`, and the steps up to `end` that compute no branch. after, kept: places int32 to add to
    the slots [B, L, D] of the step, and to those of every step without branches.
    """

    step: int
    end: int
    slots: Tensor
    after: Tensor
    kept: Tensor


def add_and_norm(slots: Tensor, outputs: Tensor, places: Tensor, norm: RowNorm, normed: Tensor) -> None:
    """Add kept outputs to slots, in place, and write their norm.

    Args:
        slots: [B, L, D].
        outputs: [N, B, L, D], all that are kept.
        places: int32 [n], which of them.
        norm: of the branch that follows.
        normed: [B, L, D], where the norm of the sum goes.
    """
    slots.add_(outputs.index_select(0, places).sum(0))
    normed.copy_(F.layer_norm(slots, slots.shape[-1:], *norm))


def denoise_rows(
    sample: Tensor,
    last: Tensor,
    noise: Tensor,
    table: Tensor,
    outputs: Tensor,
    network: RowNetwork,
    finished: Finished | None,
    begun: Begun | None,
    clip: bool,
) -> None:
    """Finish one step, run those that compute nothing, and begin the next, all in place.

    Args:
        sample: [B, T, A], what is denoised.
        last: [B, T, A], the guess of the clean sample at the step before, for multistep samplers.
        noise: [K, B, T, A], or without elements for a sampler that draws none.
        table: [K, 7], `denoise.StepTable`'s coefficients.
        outputs: [N, B, L, D], all kept outputs.
        network: rows to slots and back.
        finished: which steps; None at the start of a decode.
        begun: which step is begun; None at its end.
        clip: whether the guess of the clean sample is cut to [-1, 1].
    """
    rows = sample.shape[1]

    def update(k: int, slots: Tensor) -> None:
        hidden = F.layer_norm(slots[:, -rows:], slots.shape[-1:], *network.norm)
        answer = F.linear(hidden, network.out, network.out_bias).to(sample.dtype)
        row = table[k]
        guess = sample * row[SAMPLE_IN] + answer * row[ANSWER_IN]
        guess = guess.clamp(-1, 1) if clip else guess
        new = sample * row[KEPT] + guess * row[CLEAN] + last * row[BEFORE] + answer * row[ANSWER]
        sample.copy_(new + noise[k] * row[NOISE] if noise.numel() else new)
        last.copy_(guess)

    def embedded() -> Tensor:
        return F.linear(sample.to(network.places.dtype), network.embed, network.embed_bias) + network.places

    if finished is not None:
        update(finished.step, finished.slots + outputs.index_select(0, finished.after).sum(0))
        total = outputs.index_select(0, finished.kept).sum(0)[:, -rows:]
        for k in range(finished.step + 1, finished.end):
            update(k, embedded() + total)
    if begun is not None:
        start = torch.cat([begun.given, embedded()], 1)
        begun.slots.copy_(start + outputs.index_select(0, begun.before).sum(0))
        begun.normed.copy_(F.layer_norm(begun.slots, begun.slots.shape[-1:], *begun.norm))


class TorchRows:
    """The two operations as torch lines."""

    add_and_norm = staticmethod(add_and_norm)
    denoise_rows = staticmethod(denoise_rows)


class TritonRows:
    """The two operations as Triton kernels; rows in float32, whatever the network's precision."""

    @staticmethod
    def add_and_norm(slots: Tensor, outputs: Tensor, places: Tensor, norm: RowNorm, normed: Tensor) -> None:
        """As `row_kernels.add_and_norm`."""
        torch.ops.vla.add_and_norm(slots, outputs, places, *norm, normed)

    @staticmethod
    def denoise_rows(
        sample: Tensor, last: Tensor, noise: Tensor, table: Tensor, outputs: Tensor, network: RowNetwork,
        finished: Finished | None, begun: Begun | None, clip: bool,
    ) -> None:  # fmt: skip
        """As `row_kernels.denoise_rows`."""
        embed, embed_bias, places, norm, out, out_bias = network
        nothing = sample.new_empty(0)
        steps = (0, 0) if finished is None else (finished.step, finished.end)
        ended = [nothing] * 3 if finished is None else [finished.slots, finished.after, finished.kept]
        begins = (
            [nothing] * 6 if begun is None else [begun.before, *begun.norm[:2], begun.given, begun.slots, begun.normed]
        )
        torch.ops.vla.denoise_rows(
            sample, last, noise, table, outputs, embed, embed_bias, places, *norm[:2], out, out_bias, norm.eps,
            0.0 if begun is None else begun.norm.eps, *steps, clip, ended, begins,
        )  # fmt: skip


def row_operations(device: torch.device) -> type[TorchRows] | type[TritonRows]:
    """Triton's where there is a CUDA device and Triton, else torch's."""
    announce(device)
    return TritonRows if fused(device) else TorchRows


def _launch_add_and_norm(
    slots: Tensor, outputs: Tensor, places: Tensor, weight: Tensor, bias: Tensor, eps: float, normed: Tensor
) -> None:
    from vla_runtime.decoding.row_kernels_triton import add_and_norm_kernel, power_of_two

    assert all(one.is_contiguous() for one in (slots, outputs, normed))
    width, rows = slots.shape[-1], slots.shape[:-1].numel()
    with on_device_of(slots):
        add_and_norm_kernel[(rows,)](
            slots, outputs, places, weight, bias, normed, eps, places.numel(), rows, width, power_of_two(width)
        )


def _launch_denoise_rows(
    sample: Tensor, last: Tensor, noise: Tensor, table: Tensor, outputs: Tensor, embed: Tensor, embed_bias: Tensor,
    places: Tensor, weight: Tensor, bias: Tensor, out: Tensor, out_bias: Tensor, eps: float, begun_eps: float,
    step: int, end: int, clip: bool, finished: Sequence[Tensor], begun: Sequence[Tensor],
) -> None:  # fmt: skip
    from vla_runtime.decoding.row_kernels_triton import denoise_rows_kernel, power_of_two

    (batch, rows, size), width = sample.shape, embed.shape[0]
    assert all(one.is_contiguous() for one in (sample, last, noise, table, outputs, embed, out, *finished, *begun))
    length = outputs.shape[2]
    starts = begun[4].numel() > 0
    with on_device_of(sample):
        denoise_rows_kernel[(batch * length,)](
            sample, last, noise, table, outputs, embed, embed_bias, places, weight, bias, out, out_bias,
            finished[0], finished[1], finished[2], begun[0], begun[1], begun[2], begun[3], begun[4], begun[5],
            eps, begun_eps, step, end, finished[1].numel(), finished[2].numel(), begun[0].numel(), batch * length,
            batch * rows, length, rows, size, width, power_of_two(size), power_of_two(width),
            CLIP=clip, DRAWS=noise.numel() > 0, FINISHES=end > step, BEGINS=starts,
        )  # fmt: skip


def _nothing(*_: object) -> None:
    """What a fake tensor sees of an operator that only writes."""


_add_and_norm = torch.library.custom_op(
    "vla::add_and_norm", _launch_add_and_norm, mutates_args=("slots", "normed"), device_types="cuda"
)
_add_and_norm.register_fake(_nothing)
_denoise_rows = torch.library.custom_op(
    "vla::denoise_rows", _launch_denoise_rows, mutates_args=("sample", "last", "begun"), device_types="cuda"
)
_denoise_rows.register_fake(_nothing)
