"""How well a policy answers on held-out frames: decoded chunks against recorded ones.

It knows samples and policies, and neither losses nor optimisers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from policies.batch import Committed
from policies.samples import Samples
from policies.vla import VLAPolicy
from vla_runtime.types import ActionSpec


def validate(policy: VLAPolicy, samples: Samples, indices: Sequence[int], batch_size: int = 32) -> dict[str, float]:
    """Decoded chunks against recorded ones.

    l1: mean over all normalised rows, none given. l1_given: over the rest, in the first `batch_size` samples, when
    half of the rows that may be given are; absent for a policy that takes none. switch_recall: share of the
    gripper's switches that the decoded chunk makes, too, to the same side and at most one row away; absent when
    there is none to find. token_accuracy: share of tokens equal to those of the recorded chunk; absent for heads
    without tokens.
    """
    head: Any = policy.head
    backbone: Any = policy.backbone
    error, count, found, switches, right, tokens = 0.0, 0, 0, 0, 0, 0
    for first in range(0, len(indices), batch_size):
        batch, actions = samples.batch(list(indices[first : first + batch_size]))
        noise = _noise(policy, len(batch), first)
        with torch.no_grad():
            context = backbone.encode(batch.to(policy.device))
            if hasattr(head, "decode_tokens"):
                decoded, ids = head.decode_tokens(backbone, context, None, noise, len(batch))
                right += int((ids.cpu() == head.tokenizer.encode(actions)).sum())
                tokens += ids.numel()
            else:
                decoded = head.decode(backbone, context, None, noise, len(batch))
        decoded = decoded.cpu()
        error += float((decoded - actions).abs().mean(dim=(1, 2)).sum())
        count += len(batch)
        for dim in binary_dimensions(policy.spec.action):
            one, all_ = switches_found(actions[..., dim], decoded[..., dim])
            found, switches = found + one, switches + all_
    figures = {"l1": error / max(1, count)}
    if policy.spec.max_committed and len(indices):
        figures["l1_given"] = _with_rows_given(policy, samples, list(indices[:batch_size]))
    if switches:
        figures["switch_recall"] = found / switches
    if tokens:
        figures["token_accuracy"] = right / tokens
    return figures


def _with_rows_given(policy: VLAPolicy, samples: Samples, indices: list[int]) -> float:
    head: Any = policy.head
    backbone: Any = policy.backbone
    batch, actions = samples.batch(indices)
    most = policy.spec.max_committed
    given = (most + 1) // 2
    counts = torch.full((len(batch),), given, device=policy.device)
    committed = Committed(actions[:, :most].to(policy.device), counts)
    with torch.no_grad():
        context = backbone.encode(batch.to(policy.device))
        decoded = head.decode(backbone, context, committed, _noise(policy, len(batch), 0), len(batch)).cpu()
    return float((decoded - actions)[:, given:].abs().mean())


def _noise(policy: VLAPolicy, count: int, seed: int) -> dict[str, Tensor]:
    head: Any = policy.head
    drawn = head.draw(count, torch.Generator().manual_seed(seed))
    return {key: value.to(policy.device) for key, value in drawn.items()}


def binary_dimensions(action: ActionSpec) -> list[int]:
    """Indices of the dimensions of binary groups."""
    return [
        index
        for group in action.groups
        if group.kind == "binary"
        for index in range(action.slices[group.name].start, action.slices[group.name].stop)
    ]


def switches_found(truth_BT: Tensor, answer_BT: Tensor) -> tuple[int, int]:
    """Of the changes of sign along the rows of `truth_BT`: those `answer_BT` makes within one row, and all."""
    found, switches = 0, 0
    for one, other in zip(truth_BT.sign(), answer_BT.sign(), strict=True):
        for row in (one[1:] != one[:-1]).nonzero().flatten().tolist():
            switches += 1
            near = range(max(0, row - 1), min(len(one) - 1, row + 2))
            found += any(bool(other[k] != other[k + 1]) and bool(other[k + 1] == one[row + 1]) for k in near)
    return found, switches
