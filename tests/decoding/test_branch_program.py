"""Plans compiled into programs: what is added where is what the plan says, step by step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_runtime.decoding.branch_program import compile_plan

BRANCHES = 4


def walked(plan, first):
    """For every step: what is added to the stream, as (branch, step in which it was computed), in order."""
    newest, found = {}, []
    for step in range(first, len(plan)):
        computed = range(BRANCHES) if step == first else plan[step]
        newest |= dict.fromkeys(computed, step)
        found.append([(branch, newest[branch]) for branch in range(BRANCHES)])
    return found


def run(program, steps):
    """The same of a program: places are written and read as a decode does."""
    places, found = {}, {}
    for stretch in program.stretches:
        added = []
        for update in stretch.updates:
            added += [places[place] for place in update.before]
            places[update.place] = (update.branch, stretch.step)
        added += [places[place] for place in stretch.after]
        found[stretch.step] = added
        for step in range(stretch.step + 1, stretch.end):
            found[step] = [places[place] for place in stretch.kept]
    return [found[step] for step in steps], places


@settings(max_examples=60, deadline=None)
@given(
    plan=st.lists(st.sets(st.integers(0, BRANCHES - 1)), min_size=1, max_size=8),
    first=st.integers(0, 7),
    watched=st.sets(st.tuples(st.integers(0, BRANCHES - 1), st.integers(1, 7))),
)
def test_a_program_adds_what_its_plan_adds_and_keeps_what_is_compared(plan, first, watched):
    plan[0], first = set(range(BRANCHES)), first % len(plan)
    expected = {}
    for branch, step in watched:
        if step < len(plan) and branch in plan[step]:
            expected.setdefault(branch, {})[step] = 0.9
    program = compile_plan(plan, BRANCHES, first, expected)
    steps = range(first, len(plan))
    found, places = run(program, steps)
    assert found == walked(plan, first)
    assert program.evaluations == BRANCHES + sum(len(plan[step]) for step in steps[1:])
    assert max(places) < program.places
    # What is compared at the end is still there, and was computed as it was in calibration.
    pairs = {(branch, step) for branch, each in expected.items() for step in each if step > first}
    for one in program.watched:
        (branch, old), (same, new) = places[one.old], places[one.new]
        assert branch == same
        pairs.discard((branch, new))
        assert old == max(step for step in range(new) if branch in plan[step])
    # Not compared: updates whose last one was another than in calibration, since the decode began after it.
    assert all(max(step for step in range(new) if branch in plan[step]) < first for branch, new in pairs)


def test_a_first_step_beyond_the_plan_is_refused():
    with pytest.raises(ValueError, match=r"expected a first step in \[0, 1\), got 1"):
        compile_plan([{0}], 1, 1)
