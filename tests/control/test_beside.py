"""A planner that thinks in real time, in a thread of its own."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numbered import PERIOD, Numbered, Recording

from vla_runtime.control.clock import SystemClock
from vla_runtime.control.loop import run
from vla_runtime.control.planner import Beside, InStep
from vla_runtime.types import SpecMismatch


class Slow(Numbered):
    """Takes its time, on the machine's clock."""

    def __init__(self, env, seconds, **sizes):
        super().__init__(env, **sizes)
        self.seconds = seconds
        self.clock = SystemClock()

    def predict(self, observations, committed=None, deadline=None):
        self.clock.sleep_until(self.clock.now() + self.seconds)
        return super().predict(observations, committed, deadline)


def beside(policy, steps=30, env=None, **options):
    """A run in real time."""
    env = env or Recording()
    env.reset(0, 0, 0)
    result = run(
        env, policy, policy.spec, SystemClock(), replan=4, max_steps=steps, planner=Beside, **options
    )  # fmt: skip
    return env.applied, result


def test_in_real_time_every_tick_is_served_while_the_policy_thinks():
    env = Recording()
    clock = SystemClock()
    began = clock.now()
    applied, result = beside(Slow(env, 0.12), env=env)
    assert clock.now() - began == pytest.approx(30 * PERIOD, abs=0.5)
    assert [round(one.due / PERIOD) for one in applied] == list(range(30))
    assert result.trace.held >= 2  # 0.12 s, in periods of 0.05 s, before the first chunk
    assert all(delay >= 0.1 for delay in result.trace.delays)
    assert 3 <= result.plans <= 8


def test_in_real_time_the_policy_is_told_how_long_there_is_a_plan():
    class Told(Slow):
        def predict(self, observations, committed=None, deadline=None):
            told.append(deadline)
            return super().predict(observations, committed, deadline)

    env, told = Recording(), []
    beside(Told(env, 0.07, horizon=8), env=env)
    # Before there is a chunk nothing is late; then 8 rows, of which 4 and those of the answer's time are behind it.
    assert told[0] is None
    assert all(2 * PERIOD < left < 8 * PERIOD for left in told[1:])
    told.clear()
    beside(Told(env, 0.01, horizon=8), env=env, stands=True)
    assert set(told) == {None}


def test_what_is_committed_is_executed_in_real_time():
    env = Recording()
    policy = Slow(env, 0.07)
    applied, _ = beside(policy, env=env, prefix=True)
    told = [(round(time / PERIOD), rows) for time, rows in policy.asked if rows is not None]
    assert told
    for at, rows in told:
        executed = [one.values for one in applied[at : at + len(rows)]]
        np.testing.assert_array_equal(executed, rows[: len(executed)])


@pytest.mark.parametrize("problem", [RuntimeError("broken"), SystemExit(3), KeyboardInterrupt()])
def test_what_the_policy_raises_ends_the_run(problem):
    class Raising(Numbered):
        def predict(self, observations, committed=None, deadline=None):
            if self.asked:
                raise problem
            return super().predict(observations, committed, deadline)

    with pytest.raises(type(problem)):
        beside(Raising(Recording()))


@pytest.mark.parametrize("planner", [Beside, InStep])
def test_a_policy_that_answers_nothing_is_told_so(planner):
    class Silent(Numbered):
        def predict(self, observations, committed=None, deadline=None):
            return None

    env = Recording()
    policy = Silent(env)
    env.reset(0, 0, 0)
    with pytest.raises(SpecMismatch, match="predict: expected an ActionChunk, got NoneType"):
        run(env, policy, policy.spec, SystemClock(), replan=4, max_steps=25, planner=planner)


def test_a_policy_that_hangs_for_ever_does_not_keep_the_loop(caplog):
    class Hanging(Numbered):
        def predict(self, observations, committed=None, deadline=None):
            if self.asked:
                threading.Event().wait()
            return super().predict(observations, committed, deadline)

    env = Recording()
    policy = Hanging(env)
    env.reset(0, 0, 0)
    result = run(
        env, policy, policy.spec, SystemClock(), replan=4, max_steps=25,
        planner=lambda session, wall: Beside(session, wall, patience=0.1),
    )  # fmt: skip
    assert result.steps == 25
    assert result.trace.held >= 8  # the only plan ran out
    assert "its thread is left" in caplog.text


def test_what_was_asked_before_motion_began_anew_is_not_told_to_forget():
    """Forgetting belongs to the next question, also where the one before has not been taken up yet."""
    env = Recording()
    env.reset(0, 0, 0)
    seen, order, free = env.observe(("overhead", "hand")), [], threading.Event()

    class Session(Numbered):
        def predict(self, observations, committed=None, deadline=None):
            free.wait(5)
            order.append("asked")
            return super().predict(observations, committed, deadline)

        def forget(self):
            order.append("forgot")

    planner = Beside(Session(env), SystemClock())

    def answered():
        deadline = SystemClock().now() + 10
        while planner.take(0.0) is None:
            assert SystemClock().now() < deadline

    planner.ask([seen], None)
    planner.forget()
    free.set()
    answered()
    planner.ask([seen], None)
    answered()
    planner.close()
    assert order == ["asked", "forgot", "asked"]
