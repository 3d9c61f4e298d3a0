"""Splicing on a virtual clock: motion never jumps, whatever the delay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.osc_arm import delta_spec
from vla_runtime.control.joins import Live
from vla_runtime.control.schedule import ActionSchedule
from vla_runtime.types import ActionChunk, ActionSpec, Group, SpecMismatch

PERIOD = 0.1
LINE = ActionSpec((Group("x", ("x",), "absolute", "m", (-1e6,), (1e6,)),))


def ramp(observed, position, rows=10):
    """A plan that moves on by one unit a row from where the robot was seen."""
    return ActionChunk((position + 1 + np.arange(rows, dtype=np.float32))[:, None], observed, PERIOD, observed)


class FromItsFirstRow(ActionSchedule):
    """What one would write first: a chunk is played from when it comes."""

    def splice(self, chunk, now, until=None):
        self._live = [Live(replace(chunk, start=now), now)]


class ByTheClock(ActionSchedule):
    """What one would write next: rows are due when they were meant to be, however late the chunk."""

    def splice(self, chunk, now, until=None):
        self._live = [Live(chunk, now)]


def largest_step(delays, ticks=80, kind=ActionSchedule):
    """Observe, think for the next delay, splice, at once observe again; the largest step the robot makes."""
    schedule, position, steps = kind(LINE, PERIOD), 0.0, []
    delays = [*delays, *delays[-1:]]
    observed, seen = 0.0, 0.0
    arrives = delays.pop(0)
    for tick in range(ticks):
        now = tick * PERIOD
        if now >= arrives - 1e-9:
            schedule.splice(ramp(observed, seen), now)
            observed, seen = now, position
            arrives = now + (delays.pop(0) if len(delays) > 1 else delays[0])
        if schedule.chunk is None:
            continue
        goal = float(schedule.command_at(now).values[0])
        steps.append(abs(goal - position))
        position = goal
    return max(steps)


@pytest.mark.parametrize(
    ("delays", "from_its_first_row", "by_the_clock"),
    [([0.3], 2, 4), ([0.7, 0.3], 2, 8), ([0.3, 0.3, 0.8, 0.3], 4, 5), ([0.3, 1.3, 0.3], 9, 4)],
    ids=["steady", "cold", "spike", "runs dry"],
)
def test_no_step_is_larger_than_the_motion(delays, from_its_first_row, by_the_clock):
    # A plan observed while another is running starts in the past of what runs, so its rows continue it.
    assert largest_step(delays) == 1
    assert largest_step(delays, kind=FromItsFirstRow) == from_its_first_row
    assert largest_step(delays, kind=ByTheClock) == by_the_clock


def test_start_moves_only_by_the_time_held():
    schedule = ActionSchedule(LINE, PERIOD)
    schedule.splice(ramp(0.0, 0.0), now=0.7)
    assert schedule.chunk.start == pytest.approx(0.7)
    assert schedule.command_at(0.7).values[0] == 1
    schedule.splice(ramp(1.0, 3.0), now=1.3)
    assert schedule.chunk.start == 1.0
    assert schedule.command_at(1.3).values[0] == 7


def test_held_when_the_plan_ends_and_marked():
    schedule = ActionSchedule(LINE, PERIOD)
    schedule.splice(ramp(0.0, 0.0, rows=2), now=0.0)
    for tick, (value, held) in enumerate([(1, False), (2, False), (2, True), (2, True)]):
        command = schedule.command_at(tick * PERIOD)
        assert (command.values[0], command.held) == (value, held)


def test_nothing_to_hold_before_the_first_chunk():
    with pytest.raises(ValueError, match="expected a chunk"):
        ActionSchedule(LINE, PERIOD).command_at(0.0)


@pytest.mark.parametrize(
    ("actions", "period", "message"),
    [
        (np.zeros((3, 6), np.float32), PERIOD, r"float32 \[7\]"),
        (np.full((3, 7), np.nan, np.float32), PERIOD, "position.x"),
        (np.zeros((0, 7), np.float32), PERIOD, "T >= 1"),
        (np.zeros((3, 7), np.float32), PERIOD / 2, "control period only"),
    ],
)
def test_bad_chunks_are_refused(actions, period, message):
    with pytest.raises(SpecMismatch, match=message):
        ActionSchedule(delta_spec(), PERIOD).splice(ActionChunk(actions, 0.0, period, 0.0), 0.0)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=12))
def test_no_row_earlier_than_one_already_played(arrivals):
    """Rows of one chunk are played in order, whenever commands are asked for."""
    schedule, now = ActionSchedule(LINE, PERIOD), 0
    for wait, rows in arrivals:
        observed = now * PERIOD
        now += wait
        schedule.splice(ramp(observed, 0.0, rows), now * PERIOD)
        played = [float(schedule.command_at((now + k) * PERIOD).values[0]) for k in range(15)]
        assert played == sorted(played)


def test_goals_of_rows_alone_are_connected_for_a_faster_controller():
    """No staircase: between two rows a controller goes straight; at a row's own time it says the row, bit for bit."""
    group = Group("joints", ("a", "b"), "absolute", "rad", (-3.0, -3.0), (3.0, 3.0))
    grip = Group("gripper", ("g",), "binary", "", (-1.0,), (1.0,), open=-1.0, close=1.0)
    schedule = ActionSchedule(ActionSpec((group, grip)), PERIOD / 5)
    columns = [np.linspace(0, 1, 8), np.linspace(0, -1.5, 8) ** 2, np.sign(np.arange(8) - 3.5)]
    rows = np.stack(columns, 1).astype(np.float32)
    schedule.splice(ActionChunk(rows, 0.0, PERIOD, 0.0), 0.0)
    said = np.stack([schedule.command_at(k * PERIOD / 5).values for k in range(40)])
    assert np.array_equal(said[::5], rows)
    for k in range(35):
        between = rows[k // 5] + (rows[k // 5 + 1] - rows[k // 5]) * (k % 5) / 5
        np.testing.assert_allclose(said[k, :2], between[:2], atol=1e-6)
        assert said[k, 2] == rows[k // 5, 2]
    assert np.array_equal(said[35:], np.repeat(rows[7:], 5, axis=0))
