"""A caching plan compiled into a static program: which branches run when, and which kept outputs are added where.

A plan says for every step which residual branches are computed. Since a branch that is not computed adds what it gave
last, whole runs of reused branches are one sum, and all steps up to the next one with a computed branch touch single
rows only. The program names, for every computed branch, the kept outputs to add before it, and for every step with
computed branches the steps without any that follow. Outputs whose similarity is watched keep a place of their own, so
that all of them can be compared once, at the end. Knows neither tensors nor networks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Update:
    """One computed branch. before: places of the kept outputs to add to the residual stream first; place: where its
    own output goes.
    """

    branch: int
    before: tuple[int, ...]
    place: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Step `step` with its updates, and the steps after it, up to `end`, that compute nothing.

    after: places to add after the last update of `step`; kept: places of the newest outputs of all branches, which each
    of the steps without updates adds.
    """

    step: int
    end: int
    updates: tuple[Update, ...]
    after: tuple[int, ...]
    kept: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Watched:
    """Two outputs of one branch to compare: places of the older and the newer, and the cosine of calibration."""

    old: int
    new: int
    expected: float


@dataclass(frozen=True, slots=True)
class BranchProgram:
    """What a decode from one step on runs. places: how many outputs are kept."""

    stretches: tuple[Stretch, ...]
    watched: tuple[Watched, ...]
    places: int

    @property
    def evaluations(self) -> int:
        """Computed branches."""
        return sum(len(stretch.updates) for stretch in self.stretches)


def compile_plan(
    plan: Sequence[Collection[int]],
    branches: int,
    first: int = 0,
    expected: Mapping[int, Mapping[int, float]] | None = None,
) -> BranchProgram:
    """The program of a decode that begins at step `first`, which computes every branch whatever the plan says.

    Args:
        plan: for every step the indices of the branches that are computed.
        branches: how many there are.
        first: the first step that is taken.
        expected: {branch: {step: cosine to the output of the update before}} as calibrated; updates whose last one
            was another than in calibration are not watched.

    ValueError for a first step beyond the plan.
    """
    if not 0 <= first < len(plan):
        raise ValueError(f"cache: expected a first step in [0, {len(plan)}), got {first}")
    every = frozenset(range(branches))
    computed = {step: every if step == first else frozenset(plan[step]) for step in range(first, len(plan))}
    versions = {branch: [step for step in computed if branch in computed[step]] for branch in every}
    calibrated = {branch: [step for step in range(len(plan)) if branch in plan[step]] for branch in every}
    pairs = [
        (branch, old, new, expected[branch][new])
        for branch in sorted(expected or ())
        for old, new in zip(versions[branch], versions[branch][1:], strict=False)
        if expected and new in expected[branch] and _before(calibrated[branch], new) == old
    ]
    # Outputs that are compared at the end must still be there then; all others of a branch share one place.
    own = sorted({(branch, step) for branch, old, new, _ in pairs for step in (old, new)})
    places = {version: branches + index for index, version in enumerate(own)}

    def place(branch: int, step: int) -> int:
        return places.get((branch, step), branch)

    newest: dict[int, int] = {}
    stretches: list[Stretch] = []
    working = [step for step in computed if computed[step]]
    for step, end in zip(working, [*working[1:], len(plan)], strict=True):
        updates: list[Update] = []
        before: list[int] = []
        for branch in range(branches):
            if branch in computed[step]:
                newest[branch] = place(branch, step)
                updates.append(Update(branch, tuple(before), newest[branch]))
                before = [newest[branch]]
            else:
                before.append(newest[branch])
        kept = tuple(newest[branch] for branch in range(branches))
        stretches.append(Stretch(step, end, tuple(updates), tuple(before), kept))
    watched = tuple(Watched(place(branch, old), place(branch, new), cosine) for branch, old, new, cosine in pairs)
    return BranchProgram(tuple(stretches), watched, branches + len(own))


def _before(steps: Sequence[int], step: int) -> int | None:
    """The update before this one."""
    earlier = [one for one in steps if one < step]
    return earlier[-1] if earlier else None
