"""What docs/faults.md promises, where no other file tests it; and that what it names exists."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered import PERIOD, Numbered, Recording

from envs.delayed import DelayedEnv, Faults
from vla_runtime.control.clock import VirtualClock
from vla_runtime.control.limits import Limits
from vla_runtime.control.loop import run
from vla_runtime.control.planner import Delayed
from vla_runtime.control.safety import Safety, Timeouts
from vla_runtime.control.trace import Run
from vla_runtime.types import SpecMismatch

ROOT = Path(__file__).parent.parent.parent
ROWS = re.findall(r"^\| (.*) \|$", (ROOT / "docs/faults.md").read_text(), re.M)[1:]


def test_every_row_names_a_test_that_exists():
    assert len(ROWS) >= 20
    for row in ROWS:
        named = re.findall(r"\[`(\w+)`\]\(\.\./(tests/\S+\.py)\)", row)
        assert named, row
        for name, file in named:
            assert f"def {name}(" in (ROOT / file).read_text(), (file, name)


def played(delays=(0.0,), env=None, steps=60, clock=None, policy=None, **options):
    """The inner environment's commands, and the run."""
    inner = Recording()
    env = inner if env is None else env(inner)
    env.reset(0, 0, 0)
    source = iter(chain(delays, repeat(delays[-1])))
    policy = policy or Numbered(inner)
    result = Run()
    run(
        env, policy, policy.spec, clock or VirtualClock(), replan=4, max_steps=steps, result=result,
        planner=lambda session, wall: Delayed(session, wall, source), **options,
    )  # fmt: skip
    return (env if isinstance(env, Recording) else inner).applied, result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": np.full((16, 2), np.nan, np.float32)}, "finite"),
        ({"actions": np.zeros((16, 3), np.float32)}, r"got"),
        ({"actions": np.zeros((2, 2), np.float32)}, "expected at least loop.replan = 4 rows"),
        ({"period": 0.07}, "chunk period"),
        ({"actions": np.zeros((0, 2), np.float32)}, "rows, got 0|T >= 1"),
    ],
)
def test_an_answer_that_breaks_its_spec_ends_the_run(change, message):
    class Odd(Numbered):
        def predict(self, observations, committed=None, deadline=None):
            chunk = super().predict(observations, committed, deadline)
            return replace(chunk, **change) if len(self.asked) == 3 else chunk

    env = Recording()
    with pytest.raises(SpecMismatch, match=message):
        played(policy=Odd(env))


def test_a_policy_that_hangs_for_a_second_costs_a_second():
    commands, result = played((0.0, 1.0, 0.0), steps=40)
    held = [index for index, one in enumerate(commands) if one.held]
    # Asked in tick 4, answered in tick 24; the first plan lasts to tick 16.
    assert held == list(range(16, 24))
    assert [round(float(value) * 100) for value in commands[24].values] == [1, 12]
    assert result.steps == 40


def test_a_policy_that_never_answers_again_stops_the_robot():
    safety = Safety(Timeouts(plan=0.5))
    commands, result = played((0.0, 1e6), safety=safety)
    assert result.outcome.reason == "stopped"
    (event,) = safety.events
    # The first plan covers 0.8 s.
    assert event.time == pytest.approx(0.8 + 0.5, abs=2 * PERIOD)
    assert all(one.held for one in commands[16:])


def test_a_frozen_camera_stops_the_robot():
    safety = Safety(Timeouts(observation=0.4))
    commands, result = played(env=lambda env: DelayedEnv(env, Faults(freeze=1.0, freeze_s=60.0)), safety=safety)
    (event,) = safety.events
    assert event.reason.startswith("observation: expected one within 0.4 s")
    # Frames are looked at when a plan is due, every fourth period.
    assert 0.4 < event.time <= 0.4 + 5 * PERIOD
    assert all(one.held for one in commands[round(event.time / PERIOD) :])
    assert result.outcome.reason == "stopped"


@pytest.mark.parametrize(("late", "stopped"), [(0.2, False), (0.5, True)])
def test_late_frames_are_used_until_they_are_too_old(late, stopped):
    safety = Safety(Timeouts(observation=0.4))
    _, result = played(env=lambda env: DelayedEnv(env, Faults(late=late)), safety=safety)
    assert (result.outcome.reason == "stopped") == stopped == bool(safety.events)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda images: {}, "expected images of"),
        (lambda images: {name: image[:7] for name, image in images.items()}, "expected"),
    ],
)
def test_a_camera_that_is_missing_or_of_another_size_ends_the_run(spoil, message):
    class Spoiled(Recording):
        def observe(self, cameras=()):
            seen = super().observe(cameras)
            return replace(seen, images=spoil(dict(seen.images))) if seen.time > 0.3 else seen

    spoiled = Spoiled()
    with pytest.raises(SpecMismatch, match=message):
        played(env=lambda inner: spoiled)
    # The last command keeps the robot where it is.
    assert len(spoiled.applied) == 9
    assert [one.held for one in spoiled.applied[-2:]] == [False, True]
    assert not spoiled.applied[-1].values.any()


class Stepped(VirtualClock):
    """Now and then it is set back, or forward."""

    def __init__(self, steps):
        super().__init__()
        self._steps = iter(steps)
        self.deadlines, self.late = [], 0

    def sleep_until(self, deadline):
        self.deadlines.append(deadline)
        self.late += self._now > deadline
        super().sleep_until(deadline)
        self._now += next(self._steps, 0.0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-2.0, 0.3), max_size=30), st.lists(st.floats(0.0, 0.6), min_size=1, max_size=8))
def test_a_clock_that_is_stepped_back_costs_no_tick_and_doubles_none(jumps, delays):
    clock = Stepped(jumps)
    commands, result = played(tuple(delays), clock=clock)
    assert [round(one.due / PERIOD) for one in commands] == list(range(60))
    assert result.steps == 60
    # Periods that a step forward has swallowed are left out; else one follows another, none is waited for twice.
    periods = np.diff(clock.deadlines) / PERIOD
    np.testing.assert_allclose(periods, np.round(periods), atol=1e-6)
    assert (np.round(periods) >= 1).all()
    swallowed = sum(int(max(step, 0.0) / PERIOD + 1e-9) for step in jumps)
    assert len(periods) <= np.round(periods).sum() <= len(periods) + swallowed
    assert result.trace.overruns == clock.late


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0.0, 0.6), min_size=1, max_size=8), st.floats(0, 0.3), st.floats(0, 0.6), st.floats(0, 0.2),
    st.integers(0, 3), st.integers(0, 2**31),
)  # fmt: skip
def test_whatever_the_line_does_commands_stay_inside_their_limits(delays, late, lost, freeze, action_late, seed):
    faults = Faults(late=late, lost=lost, freeze=freeze, action_late=action_late)
    inner = Recording()
    limits = Limits(inner.spec.action, PERIOD, {"joints": {"speed": 0.1, "acceleration": 3.0}})
    spec = inner.spec.action
    generator = np.random.default_rng(seed)

    class Wild(Numbered):
        def predict(self, observations, committed=None, deadline=None):
            chunk = super().predict(observations, committed, deadline)
            return replace(chunk, actions=generator.uniform(-3, 3, chunk.actions.shape).astype(np.float32))

    safety = Safety(Timeouts(plan=0.5, observation=0.5))
    commands, result = played(
        tuple(delays), lambda env: DelayedEnv(env, faults), policy=Wild(inner), limits=limits, safety=safety
    )
    assert len(commands) == result.steps == 60
    values = np.stack([one.values for one in commands])
    assert (values >= spec.low).all()
    assert (values <= spec.high).all()
    assert np.linalg.norm(values, axis=1).max() <= 0.1 * (1 + 1e-5)
    # Faster than any change from full speed to a stop, which nothing holds back.
    assert np.linalg.norm(np.diff(values, axis=0), axis=1).max() <= 3.0 * PERIOD * (1 + 1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0.0, 0.3), min_size=1, max_size=6),
    st.integers(0, 2**31),
    st.sets(st.integers(2, 50), max_size=4),
)
def test_goals_move_no_faster_than_allowed_from_the_first_and_after_every_stop(delays, seed, stops):
    """Absolute goals, in step or late: from where the robot was seen, never at once to anywhere."""
    inner = Recording(control="absolute", size=16)
    generator = np.random.default_rng(seed)

    class Wild(Numbered):
        def predict(self, observations, committed=None, deadline=None):
            chunk = super().predict(observations, committed, deadline)
            return replace(chunk, actions=generator.uniform(-3, 3, chunk.actions.shape).astype(np.float32))

    safety, steps = Safety(), []

    def on_tick(tick):
        seen = tick.observation.state[:2]
        begins = tick.index == 0 or (tick.allowed and not previous[-1].allowed) or tick.since != previous[-1].since
        steps.append(np.linalg.norm(tick.command.values - (seen if begins else previous[-1].command.values)))
        previous.append(tick)
        now = (tick.index + 1) * PERIOD
        if tick.index in stops:
            safety.stop(now, "somebody")
        elif safety.stopped:
            safety.reset(now)

    previous = []
    limits = Limits(inner.spec.action, PERIOD, {"joints": {"speed": 0.4}})
    played(tuple(delays), lambda env: inner, policy=Wild(inner), limits=limits, safety=safety, on_tick=on_tick)
    moved = [step for step, tick in zip(steps, previous, strict=True) if tick.allowed]
    assert max(moved) <= 0.4 * PERIOD * (1 + 1e-4) + 1e-6
