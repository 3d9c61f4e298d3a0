"""Outputs of residual branches, kept over the steps of a decode: what a static plan computes, and what it reuses.

A branch adds its output to a residual stream. At a step where the plan does not compute it, the output it
gave last is added to the stream of now, and neither the branch nor its norm runs. At a step that computes
nothing at all, the kept outputs are added at once, as their sum. Buffers are made at the first step and
written in place from then on, so that shapes and addresses never change and a captured graph may hold them;
nothing is read back. The key of a plan is a step number and nothing else: control ticks would do as well.
Where it is told how alike an output and the one it replaces were in calibration, it says how far they are from
that now. Knows no networks and no robots.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class FeatureCache:
    """Kept outputs of `branches` branches. plan: for every step the indices of the branches that are computed.

    expected: {branch: {step: cosine to the output of the update before}} as calibrated. evaluations counts computed
    branches since it was made. ValueError unless the first step computes all of them; RuntimeError for a step
    beyond the plan.
    """

    def __init__(
        self,
        plan: Sequence[Collection[int]],
        branches: int,
        expected: Mapping[int, Mapping[int, float]] | None = None,
    ):
        self.plan = [frozenset(one) for one in plan]
        if not self.plan or self.plan[0] != frozenset(range(branches)):
            raise ValueError(f"cache: expected a first step that computes all {branches} branches, got {plan[:1]}")
        if any(not one <= self.plan[0] for one in self.plan):
            raise ValueError(f"cache: expected branches 0 to {branches - 1}, got {sorted(frozenset().union(*plan))}")
        self.branches = branches
        self.expected = expected or {}
        updates = [[step for step, computed in enumerate(self.plan) if index in computed] for index in range(branches)]
        self._before = [dict(zip(steps[1:], steps, strict=False)) for steps in updates]
        self._gaps: list[Tensor] = []
        self._updated = [0] * branches
        self.evaluations = 0
        # Outputs of all branches [N, B, L, D], made at the first step.
        self._kept: Tensor | None = None
        self._each: Sequence[Tensor] = ()
        self._sum: Tensor | None = None
        self._first = 0
        self._step = -1
        self._summed = self._full = False

    @property
    def steps(self) -> int:
        """How many steps the plan has."""
        return len(self.plan)

    def hit_rate(self, first: int = 0) -> float:
        """The share of branches that a decode from step `first` on takes as they were kept."""
        later = self.plan[first + 1 :]
        return sum(self.branches - len(one) for one in later) / (self.branches * (len(later) + 1))

    def reset(self, first: int = 0, full: bool = False) -> None:
        """Begin again with step `first`, which computes everything; nothing that was kept is used after it.

        full: compute everything at every step, whatever the plan says.
        """
        self._first, self._step, self._summed, self._full = first, first - 1, False, full
        self._gaps.clear()
        self._updated = [first] * self.branches

    def advance(self) -> None:
        """Go on to the next step."""
        self._step += 1
        if self._step >= len(self.plan):
            raise RuntimeError(f"cache: expected {len(self.plan)} steps, got one more; reset it before each decode")

    @property
    def idle(self) -> bool:
        """Whether this step computes no branch."""
        return not self._full and self._step != self._first and not self.plan[self._step]

    def reuses(self, index: int) -> bool:
        """Whether this step takes the branch's output as it was kept."""
        return not (self._full or self._step == self._first or index in self.plan[self._step])

    def kept(self, index: int) -> Tensor:
        """The output that a branch gave last."""
        return self._each[index]

    def branch(self, index: int, compute: Callable[[], Tensor]) -> Tensor:
        """The output of a branch at this step: computed and kept, or as it was kept."""
        if self.reuses(index):
            return self._each[index]
        output = compute()
        if self._kept is None or self._kept.shape[1:] != output.shape or self._kept.dtype != output.dtype:
            self._kept = output.new_zeros(self.branches, *output.shape)
            self._each = self._kept.unbind()
        kept = self._each[index]
        if self._step != self._first:
            self._compare(index, kept, output)
        self._updated[index] = self._step
        self.evaluations += 1
        self._summed = False
        kept.copy_(output)
        return output

    def gap(self) -> Tensor | None:
        """How much less alike than in calibration outputs were to those they replaced: a mean over this decode's
        updates for every sample [B], 0 and below where nothing has changed. None where nothing is known.
        """
        return torch.stack(self._gaps).mean(0) if self._gaps else None

    def _compare(self, index: int, kept: Tensor, output: Tensor) -> None:
        known = self.expected.get(index, {}).get(self._step)
        # An update whose last one was another than in calibration (a later first step) says nothing.
        if known is not None and self._before[index][self._step] == self._updated[index]:
            # In fp32, whatever theirs: what they differ by is less than bf16 can say.
            alike = torch.cosine_similarity(kept.flatten(1).float(), output.flatten(1).float(), dim=1)
            self._gaps.append(known - alike)

    def total(self) -> Tensor:
        """The sum of all kept outputs."""
        assert self._kept is not None
        if self._sum is None or self._sum.shape != self._kept.shape[1:] or self._sum.dtype != self._kept.dtype:
            self._sum, self._summed = torch.empty_like(self._kept[0]), False
        if not self._summed:
            torch.sum(self._kept, 0, out=self._sum)
            self._summed = True
        return self._sum


class CachedSteps:
    """A backbone whose steps reuse branch outputs; in all else it is the backbone. Same signatures, same shapes.

    It must offer `cached_step(context, slots, mask, cond, cache)`. Each `begin` starts a decode.
    """

    def __init__(self, backbone: Any, cache: FeatureCache):
        self._backbone, self.cache = backbone, cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def begin(self, first: int = 0, full: bool = False) -> None:
        """Forget the decode before; the next step is step `first` of the plan. full: reuse nothing this time."""
        self.cache.reset(first, full)

    def step(
        self, context: Any, slots_BLD: Tensor, mask_LL: Tensor | None = None, cond_BD: Tensor | None = None
    ) -> Tensor:
        """As the backbone's own, for the next step of the plan."""
        self.cache.advance()
        hidden: Tensor = self._backbone.cached_step(context, slots_BLD, mask_LL, cond_BD, self.cache)
        return hidden
