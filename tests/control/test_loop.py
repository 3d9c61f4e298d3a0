from __future__ import annotations

from itertools import repeat

import numpy as np
import pytest

from envs.reach import Reach
from policies.hold import Hold
from vla_runtime.control.clock import SystemClock, VirtualClock
from vla_runtime.control.limits import Limits
from vla_runtime.control.loop import run
from vla_runtime.control.planner import Delayed
from vla_runtime.control.safety import Safety
from vla_runtime.control.trace import Run, percentiles
from vla_runtime.types import ActionChunk, Command, Observation, PolicySpec, SpecMismatch


class Recording(Reach):
    """Remembers what was asked of it."""

    def reset(self, seed, task, episode):
        self.asked, self.applied = [], []
        return super().reset(seed, task, episode)

    def observe(self, cameras=()):
        self.asked.append(tuple(cameras))
        return super().observe(cameras)

    def apply(self, command):
        self.applied.append(command)
        super().apply(command)


class Script:
    """A policy and session that answers with numbered rows."""

    def __init__(self, env, horizon=4, offsets=(0,), value=0.1):
        spec = env.spec
        self.spec = PolicySpec("script", spec.cameras, spec.state, spec.action, spec.period, horizon, offsets)
        self.seen, self.value = [], value

    def begin(self, seed):
        return self

    def predict(self, observations, committed=None, deadline=None):
        self.seen.append(observations)
        rows = np.full((self.spec.horizon, 2), self.value, np.float32)
        rows[:, 0] = np.arange(self.spec.horizon) / 100 + len(self.seen) / 10
        time = observations[-1].time
        return ActionChunk(rows, time, self.spec.period, time)


def play(env, policy, **options):
    env.reset(0, 0, 0)
    return run(env, policy.begin(0), policy.spec, VirtualClock(), **{"replan": 4, **options})


def test_cameras_only_when_a_plan_is_due():
    env = Recording()
    result = play(env, Script(env), max_steps=10)
    both = ("overhead", "hand")
    assert env.asked == [both, (), (), (), both, (), (), (), both, ()]
    assert (result.steps, result.plans) == (10, 3)
    played = [float(command.values[0]) for command in env.applied]
    np.testing.assert_allclose(played, [0.1, 0.11, 0.12, 0.13, 0.2, 0.21, 0.22, 0.23, 0.3, 0.31], atol=1e-6)


def test_fewer_rows_than_the_horizon_can_be_executed():
    env = Recording()
    play(env, Script(env), replan=2, max_steps=4)
    np.testing.assert_allclose([c.values[0] for c in env.applied], [0.1, 0.11, 0.2, 0.21], atol=1e-6)


def test_earlier_observations_carry_the_images_of_their_own_time():
    env, period = Recording(), 0.05
    policy = Script(env, offsets=(-2, 0))
    play(env, policy, max_steps=9)
    times = [[round(o.time / period) for o in seen] for seen in policy.seen]
    assert times == [[0, 0], [2, 4], [6, 8]]
    for seen in policy.seen:
        for observation in seen:
            assert set(observation.images) == {"overhead", "hand"}
            assert set(observation.image_times.values()) == {observation.time}


def test_time_runs_out_with_progress():
    env = Recording()
    result = play(env, Hold(env.spec, horizon=4), max_steps=5)
    assert (result.outcome.success, result.outcome.reason, result.steps) == (False, "time", 5)
    assert 0 <= result.outcome.progress <= 1


def test_out_of_range_is_clamped_and_counted():
    env = Recording()
    result = play(env, Script(env, value=99.0), max_steps=6)
    assert result.clamped == 6
    assert all(command.values[1] == env.spec.action.high[1] for command in env.applied)


class Sick(Script):
    def predict(self, observations, committed=None, deadline=None):
        chunk = super().predict(observations)
        if len(self.seen) == 2:
            chunk.actions[1, 1] = np.nan
        return chunk


def test_a_bad_chunk_ends_the_run_but_keeps_what_happened():
    env = Recording()
    result = Run()
    with pytest.raises(SpecMismatch, match=r"joints\.elbow"):
        play(env, Sick(env), result=result)
    assert (result.steps, result.plans, len(result.trace.commands)) == (4, 2, 4)


class Stopped(Reach):
    def observe(self, cameras=()):
        seen = super().observe(cameras)
        return Observation(seen.state, seen.images, seen.instruction, 0.0, seen.image_times)


def test_an_environment_whose_time_stands_still_is_refused():
    env = Stopped()
    with pytest.raises(SpecMismatch, match="observation time"):
        play(env, Script(env))


@pytest.mark.parametrize("replan", [0, 5])
def test_replan_must_fit_the_horizon(replan):
    env = Reach()
    with pytest.raises(ValueError, match=r"loop\.replan"):
        play(env, Script(env), replan=replan)


def test_recording_can_ask_for_frames():
    env = Recording()
    ticks = []
    play(env, Script(env), max_steps=6, cameras_every=3, on_tick=ticks.append)
    assert [bool(tick.observation.images) for tick in ticks] == [True, False, False, True, True, False]
    assert [tick.index for tick in ticks] == list(range(6))


def test_limits_leave_good_commands_alone():
    spec = Reach().spec.action
    limits = Limits(spec)
    command = Command(np.zeros(2, np.float32), 0.0)
    assert limits.clamp(command) is command
    with pytest.raises(SpecMismatch, match=r"joints\.shoulder"):
        limits.clamp(Command(np.array([np.nan, 0], np.float32), 0.0))


def test_clocks():
    virtual = VirtualClock(5.0)
    virtual.sleep_until(6.0)
    virtual.sleep_until(5.5)
    assert virtual.now() == 6.0
    system = SystemClock()
    deadline = system.now() + 0.01
    system.sleep_until(deadline)
    assert 0 <= system.now() - deadline < 5


def test_percentiles_of_nothing():
    assert percentiles([]) == {"p50": None, "p95": None, "p99": None}
    assert percentiles([0.001], 1e3) == {"p50": 1.0, "p95": 1.0, "p99": 1.0}


class Blip:
    """Safety that is told something between two ticks. told: what to call before which tick."""

    def __init__(self, told):
        self.safety, self._told = Safety(), told

    def __call__(self, tick):
        for call in self._told.get(tick.index + 1, ()):
            call(self.safety, (tick.index + 1) * 0.05)


def stopped(safety, now):
    safety.stop(now - 0.03, "somebody")


def resumed(safety, now):
    safety.reset(now - 0.01)


@pytest.mark.parametrize(
    ("offsets", "replan", "delay", "told"),
    [
        ((-3, 0), 2, 0.0, {}), ((-10, 0), 8, 0.0, {}), ((-10, -1, 0), 4, 0.15, {}), ((-8, -4, 0), 8, 0.3, {}),
        ((-1, 0), 8, 0.0, {10: (stopped, resumed)}), ((-2, 0), 8, 0.0, {10: (stopped,), 11: (resumed,)}),
        ((-4, 0), 8, 0.1, {9: (stopped,), 15: (resumed,)}),
    ],
)  # fmt: skip
def test_every_moment_that_is_shown_has_images_and_is_of_this_motion(offsets, replan, delay, told):
    env, blip = Recording(max_steps=60), Blip(told)
    env.reset(0, 0, 0)
    policy = Script(env, horizon=16, offsets=offsets)
    run(
        env, policy, policy.spec, VirtualClock(), replan=replan, safety=blip.safety, on_tick=blip,
        planner=lambda session, wall: Delayed(session, wall, repeat(delay)),
    )  # fmt: skip
    anew = max(told, default=0) * 0.05
    assert len(policy.seen) > 3
    for seen in policy.seen:
        assert len(seen) == len(offsets)
        assert all(len(one.images) == 2 for one in seen)
        begins = 0.0 if seen[-1].time < anew - 1e-6 else anew
        wanted = [max(seen[-1].time + offset * 0.05, min(begins, seen[-1].time)) for offset in offsets]
        # Until as many have been seen since motion began anew, the first of them stands for those before.
        assert [one.time for one in seen] == pytest.approx(wanted, abs=0.051 if told else 1e-6)
        assert seen[0].time >= begins - 1e-6


def test_no_images_are_asked_for_that_no_question_can_use():
    def looked(delay):
        env = Recording(max_steps=33)
        env.reset(0, 0, 0)
        policy = Script(env, horizon=16, offsets=(-8, -4, 0))
        run(
            env, policy, policy.spec, VirtualClock(), replan=8,
            planner=lambda session, wall: Delayed(session, wall, repeat(delay)),
        )  # fmt: skip
        return [index for index, cameras in enumerate(env.asked) if cameras]

    assert looked(0.3) == looked(0.4) == list(range(0, 33, 4))
    # An answer that comes after its turn puts the next question off; nobody knows what will be needed.
    assert looked(0.45) == list(range(33))


def test_the_command_that_could_not_be_executed_is_seen_by_whoever_watches():
    env, ticks = Recording(), []
    env.apply = lambda command: (_ for _ in ()).throw(OSError("unplugged"))
    with pytest.raises(OSError, match="unplugged"):
        play(env, Script(env), on_tick=ticks.append)
    assert [tick.index for tick in ticks] == [0]
