"""Stops that latch, hands that take over, and that nothing stale survives either."""

from __future__ import annotations

from itertools import repeat

import numpy as np
import pytest
from numbered import PERIOD, Numbered, Recording

from vla_runtime.control.clock import VirtualClock
from vla_runtime.control.loop import run
from vla_runtime.control.planner import Delayed
from vla_runtime.control.safety import Safety, Timeouts


def driven(told, steps=40, timeouts=None, delay=0.0, env=None):
    """A run to whose safety things are told: {tick: function of (safety, now)}; commands, safety, policy."""
    env, safety = env or Recording(), Safety(timeouts or Timeouts())
    policy = Numbered(env)
    env.reset(0, 0, 0)

    def on_tick(tick):
        if tick.index + 1 in told:
            told[tick.index + 1](safety, (tick.index + 1) * PERIOD)

    run(
        env, policy, policy.spec, VirtualClock(), replan=4, max_steps=steps, on_tick=on_tick, safety=safety,
        planner=lambda session, wall: Delayed(session, wall, repeat(delay)),
    )  # fmt: skip
    return env.applied, safety, policy


def held(applied):
    return [index for index, one in enumerate(applied) if one.held]


def test_without_events_nothing_changes():
    applied, safety, _ = driven({})
    assert not held(applied)
    assert not safety.events


def test_a_stop_latches_until_it_is_reset_and_motion_begins_anew():
    applied, safety, policy = driven({
        10: lambda safety, now: safety.stop(now, "red button"),
        13: lambda safety, now: safety.stop(now, "again"),
        20: lambda safety, now: safety.reset(now),
    })  # fmt: skip
    assert held(applied) == list(range(10, 20))
    assert [(event.what, event.reason) for event in safety.events] == [("stopped", "red button"), ("reset", "")]
    # The first command after the reset is the first row of a plan that saw the world then.
    assert round(float(applied[20].values[1]) * 100) == 0
    assert any(time == pytest.approx(20 * PERIOD) for time, _ in policy.asked)
    assert safety.stopped is None


def test_an_answer_to_an_older_question_is_never_acted_upon():
    applied, safety, policy = driven({
        9: lambda safety, now: safety.stop(now, "red button"),
        10: lambda safety, now: safety.reset(now),
    }, delay=0.2)  # fmt: skip
    # Asked at tick 8, answered at tick 12: the stop lies between.
    again = [index for index in held(applied) if index >= 9]
    first = max(again) + 1
    plan = round(float(applied[first].values[0]) * 100)
    assert policy.asked[plan][0] >= safety.since - 1e-9
    assert first >= 14  # asked at 10 at the earliest, and 0.2 s later


def test_takeover_and_return():
    applied, safety, _ = driven({
        8: lambda safety, now: safety.take_over(now),
        15: lambda safety, now: safety.give_back(now),
    })  # fmt: skip
    assert held(applied) == list(range(8, 15))
    assert [event.what for event in safety.events] == ["taken over", "given back"]
    assert round(float(applied[15].values[1]) * 100) == 0
    # A robot that is held still on a velocity interface is told zero, never a pose.
    assert all((applied[index].values == 0).all() for index in held(applied))


class Led(Recording):
    """A human moves the joints in some ticks."""

    led = range(0)

    def apply(self, command):
        before = self._joints.copy()
        super().apply(command)
        if len(self.applied) - 1 in self.led:
            self._joints = before + 0.05


@pytest.mark.parametrize("waits_for", ["reset", "heartbeat"])
def test_what_was_moved_unseen_while_it_might_not_move_stays_there(waits_for):
    """Nobody said that a hand took over: where the robot stood before is a place to go to now."""
    env = Led(control="absolute")
    env.led = range(4, 12)
    seen = []

    def free(safety, now):
        seen.append(env.observe().state[:2].copy())
        safety.reset(now) if waits_for == "reset" else safety.beat(now)

    told = {12: free}
    if waits_for == "reset":
        told[2] = lambda safety, now: safety.stop(now, "red button")
    timeouts = None if waits_for == "reset" else Timeouts(heartbeat=10.0)
    applied, *_ = driven(told, steps=20, timeouts=timeouts, delay=2 * PERIOD, env=env)
    assert not np.allclose(applied[11].values, seen[0], atol=0.1)
    for tick in (12, 13):
        assert applied[tick].held
        np.testing.assert_allclose(applied[tick].values, seen[0], atol=1e-6)
    assert not applied[14].held


def test_a_human_moves_a_robot_that_takes_poses_and_it_stays_where_it_is_left():
    env = Led(control="absolute")
    env.led = range(8, 13)
    seen = {}

    def look(tick):
        return lambda safety, now: seen.update({tick: env.observe().state[:2].copy()})

    def at(tick, do):
        return lambda safety, now: (look(tick)(safety, now), do(safety, now))

    told = {tick: look(tick) for tick in range(9, 17)}
    applied, _, policy = driven({
        **told,
        8: at(8, lambda safety, now: safety.take_over(now)),
        15: at(15, lambda safety, now: safety.give_back(now)),
    }, env=env)  # fmt: skip
    assert held(applied) == list(range(8, 15))
    # Told where it is, however it came there: nobody is pulled back, nor when the human has let go.
    for tick in range(8, 15):
        np.testing.assert_allclose(applied[tick].values, seen[tick], atol=1e-6)
    np.testing.assert_allclose(seen[14], seen[13])
    # What moves it next was planned from there, and begins with its first row.
    assert round(float(applied[15].values[1]) * 100) == 0
    assert any(time == pytest.approx(15 * PERIOD) for time, _ in policy.asked)


def test_a_lost_heartbeat_stops_and_must_be_back_before_a_reset():
    def reset(safety, now):
        with pytest.raises(RuntimeError, match=r"expected a heartbeat within 0\.2 s"):
            safety.reset(now)
        safety.beat(now)
        safety.reset(now)

    beats = {tick: (lambda safety, now: safety.beat(now)) for tick in range(1, 11)}
    applied, safety, _ = driven({**beats, 25: reset}, steps=28, timeouts=Timeouts(heartbeat=0.2))
    # Before the first beat has been heard it does not move either.
    assert held(applied) == [0, *range(15, 25)]
    assert "heartbeat: expected one within 0.2 s" in safety.events[0].reason


def test_without_any_heartbeat_nothing_moves_and_no_reset_helps():
    def reset(safety, now):
        with pytest.raises(RuntimeError, match="expected a heartbeat"):
            safety.reset(now)

    applied, safety, _ = driven({12: reset}, steps=20, timeouts=Timeouts(heartbeat=0.2))
    assert held(applied) == list(range(20))
    assert safety.stopped.startswith("heartbeat: expected one within 0.2 s, got none for 0.250 s")


def test_too_long_without_a_plan_stops():
    applied, safety, _ = driven({}, timeouts=Timeouts(plan=0.5), delay=2.0)
    assert safety.stopped is not None
    assert safety.stopped.startswith("plan: expected one within 0.5 s")
    assert held(applied) == list(range(40))
    assert safety.events[0].time == pytest.approx(0.55)


def test_an_observation_that_has_grown_old_stops():
    safety = Safety(Timeouts(observation=0.1))
    assert safety.check(1.0, 0.95, True)
    assert not safety.check(1.2, 0.95, True)
    assert not safety.check(1.25, 1.25, True)  # it latches
    safety.reset(1.3)
    assert safety.check(1.3, 1.3, True)


def test_what_makes_no_sense_is_refused():
    safety = Safety()
    with pytest.raises(RuntimeError, match="expected a stopped robot"):
        safety.reset(0.0)
    with pytest.raises(RuntimeError, match="expected a robot that was taken over"):
        safety.give_back(0.0)
    with pytest.raises(ValueError, match=r"safety\.plan: expected more than 0 seconds"):
        Timeouts(plan=0.0)


def test_commands_stay_in_range_throughout():
    applied, *_ = driven({5: lambda safety, now: safety.stop(now, "x"), 9: lambda safety, now: safety.reset(now)})
    assert np.isfinite([one.values for one in applied]).all()


def test_a_stop_that_comes_and_goes_between_two_ticks_is_a_stop():
    def both(safety, now):
        safety.stop(now - 0.03, "red button")
        safety.reset(now - 0.01)

    applied, _, policy = driven({10: both})
    # No camera was looked at in that tick: it stands, and asks in the next.
    assert applied[10].held
    assert round(float(applied[11].values[1]) * 100) == 0
    assert any(time == pytest.approx(11 * PERIOD) for time, _ in policy.asked)


def test_a_safety_that_outlives_a_run_keeps_its_latch_and_forgets_its_times():
    told = {10: lambda safety, now: safety.stop(now, "x"), 20: lambda safety, now: safety.reset(now)}
    _, safety, _ = driven(told)
    env = Recording()
    policy = Numbered(env)
    for stopped in (False, True):
        if stopped:
            safety.stop(0.0, "latched")
        env.reset(0, 0, 0)
        run(env, policy, policy.spec, VirtualClock(), replan=4, max_steps=10, safety=safety)
        assert held(env.applied) == (list(range(10)) if stopped else [])


def test_how_long_answers_took_before_a_stop_says_nothing_of_later():
    told = {16: lambda safety, now: safety.stop(now, "x"), 20: lambda safety, now: safety.reset(now)}
    env, safety = Recording(), Safety()
    policy = Numbered(env)
    env.reset(0, 0, 0)
    delays = iter([0.4, *[0.05] * 50])
    run(
        env, policy, policy.spec, VirtualClock(), replan=4, max_steps=40, safety=safety, prefix=True,
        on_tick=lambda tick: told.get(tick.index + 1, lambda *_: None)(safety, (tick.index + 1) * PERIOD),
        planner=lambda session, wall: Delayed(session, wall, delays),
    )  # fmt: skip
    after = [rows for time, rows in policy.asked if time > 1.0 + 1e-9]
    assert all(rows is None or len(rows) <= 1 for rows in after)
