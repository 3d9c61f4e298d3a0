"""Periods begin at absolute deadlines; what came late is left out by a robot and made up for by a simulator."""

from __future__ import annotations

from dataclasses import replace
from itertools import repeat

import numpy as np
import pytest
from numbered import PERIOD, Numbered, Recording

from vla_runtime.control.clock import VirtualClock
from vla_runtime.control.loop import run
from vla_runtime.control.planner import Delayed


class Watched(VirtualClock):
    """Remembers until when somebody slept, and when."""

    def __init__(self):
        super().__init__(100.0)
        self.slept = []

    def sleep_until(self, deadline):
        self.slept.append((self.now(), deadline))
        super().sleep_until(deadline)


class Busy(Recording):
    """Takes `taken` seconds of `clock` for a command, by its number."""

    def __init__(self, clock, taken):
        super().__init__()
        self._clock_beside, self._taken = clock, taken

    def apply(self, command):
        super().apply(command)
        # The clock goes on, without anybody sleeping.
        self._clock_beside._now += self._taken(len(self.applied) - 1)


def paced(taken, steps=40, counted=False):
    clock = Watched()
    env = Busy(clock, taken)
    env.reset(0, 0, 0)
    policy = Numbered(env)
    result = run(env, policy, policy.spec, clock, replan=4, max_steps=steps, counted=counted)
    return [deadline for _, deadline in clock.slept], result, clock


def test_periods_end_at_multiples_of_themselves_whatever_a_tick_takes():
    ends, result, clock = paced(lambda index: (0.0, 0.02, 0.049)[index % 3])
    np.testing.assert_allclose(ends, 100.0 + PERIOD * np.arange(1, 41), rtol=0, atol=1e-9)
    assert result.trace.overruns == 0
    assert clock.now() == pytest.approx(100.0 + 40 * PERIOD)


def test_a_tick_that_took_a_little_too_long_is_counted_and_the_next_ones_are_on_time():
    ends, result, _ = paced(lambda index: 0.07 if index == 9 else 0.0)
    np.testing.assert_allclose(ends, 100.0 + PERIOD * np.arange(1, 41), rtol=0, atol=1e-9)
    assert result.trace.overruns == 1


@pytest.mark.parametrize("counted", [False, True])
def test_periods_that_were_missed_are_left_out_by_robots_and_made_up_for_by_simulators(counted):
    """A world whose time is that of its commands would wait for whoever renders it."""
    ends, result, clock = paced(lambda index: 0.33 if index == 9 else 0.0, counted=counted)
    whole = PERIOD * np.arange(1, 41)
    if not counted:
        # Ended 0.28 s late: five whole periods.
        whole[10:] += 5 * PERIOD
    np.testing.assert_allclose(ends, 100.0 + whole, rtol=0, atol=1e-9)
    assert result.trace.overruns == (6 if counted else 1)
    assert clock.now() == pytest.approx(100.0 + whole[-1])


def test_a_first_answer_that_takes_long_is_no_measure_of_those_that_follow():
    """Rows that a policy is told of are as many as will have passed: the slowest of the last answers, warm."""
    env = Recording()
    policy = Numbered(env)
    env.reset(0, 0, 0)
    delays = iter([0.4, *repeat(0.1, 30)])
    run(
        env, policy, policy.spec, VirtualClock(), replan=4, max_steps=80, prefix=True,
        planner=lambda session, wall: Delayed(session, wall, delays),
    )  # fmt: skip
    told = [0 if rows is None else len(rows) for _, rows in policy.asked]
    # Until there is another it is all that is known, and what was promised is kept.
    assert told[:3] == [0, 8, 4]
    assert set(told[3:]) == {2}


def test_observations_a_little_late_do_not_shift_the_rows():
    class Late(Recording):
        def observe(self, cameras=()):
            seen = super().observe(cameras)
            return replace(seen, time=seen.time + 0.0002)

    env = Late()
    policy = Numbered(env, horizon=4)
    env.reset(0, 0, 0)
    run(env, policy, policy.spec, VirtualClock(), replan=4, max_steps=12)
    assert not any(one.held for one in env.applied)
    assert [round(float(one.values[1]) * 100) for one in env.applied] == [0, 1, 2, 3] * 3


def test_what_the_world_did_while_nobody_served_it_is_counted_and_left_out():
    """A process that stood still for a while: a robot goes on without it."""

    class Away(Recording):
        def observe(self, cameras=()):
            seen = super().observe(cameras)
            return replace(seen, time=seen.time + 0.31 * (len(self.applied) >= 6))

    env = Away()
    env.reset(0, 0, 0)
    policy = Numbered(env)
    result = run(env, policy, policy.spec, VirtualClock(), replan=8, max_steps=16)
    assert result.trace.missed == 6
    rows = [round(float(one.values[1]) * 100) for one in env.applied]
    assert rows[:8] == [0, 1, 2, 3, 4, 5, 12, 13]
