from dataclasses import replace

import numpy as np
import pytest

from envs.perturbed import Perturbed, pushed
from envs.reach import Reach
from vla_runtime.control.clock import VirtualClock
from vla_runtime.control.loop import run
from vla_runtime.interfaces import Env
from vla_runtime.types import (
    ActionChunk,
    ActionSpec,
    Command,
    EnvSpec,
    Group,
    Observation,
    Outcome,
    PolicySpec,
    StateSpec,
    UnsupportedTask,
)


def play(env, episode):
    """The states of one expert episode, the commands given, and how it ended."""
    facts = env.reset(10_000, 0, episode)
    expert = env.expert(0)
    done = run(env, expert.begin(0), expert.spec, VirtualClock(), replan=1)
    return facts, np.stack(done.trace.states), np.stack(done.trace.commands), done.outcome


def test_it_wears_the_protocol():
    env = Perturbed(Reach(size=8))
    assert isinstance(env, Env)
    assert env.spec.name == "reach"
    env.reset(10_000, 0, 0)
    assert 0 <= env.progress() <= 1
    env.close()


def test_equal_resets_are_disturbed_equally():
    one, other = Perturbed(Reach(size=8)), Perturbed(Reach(size=8))
    other.reset(10_000, 1, 5)
    for episode in range(4):
        first, second = play(one, episode), play(other, episode)
        assert first[0] == second[0]
        assert np.array_equal(first[1], second[1])
    assert not np.array_equal(play(one, 0)[1][0], play(Perturbed(Reach(size=8), seed=1), 0)[1][0])


@pytest.mark.parametrize("control", ["velocity", "absolute"])
def test_the_expert_comes_back(control):
    env = Perturbed(Reach(control=control, size=8), wrong_start=1.0)
    outcomes, started_wrong, pushed_ever = [], 0, 0
    for episode in range(12):
        facts, states, _, outcome = play(env, episode)
        plain = Reach(control=control, size=8)
        plain.reset(10_000, 0, episode)
        outcomes.append(outcome.success)
        started_wrong += not np.allclose(states[0], plain.observe().state, atol=0.05)
        pushed_ever += bool(facts["perturbation"]["pushes"])
    assert all(outcomes)
    assert started_wrong >= 10
    assert pushed_ever >= 5


def test_time_begins_at_zero_after_a_wrong_start():
    env = Perturbed(Reach(size=8), wrong_start=1.0)
    facts = env.reset(10_000, 0, 0)
    assert facts["perturbation"]["wrong_start"] > 0
    observation = env.observe(["hand"])
    assert observation.time == 0.0
    assert observation.image_times == {"hand": 0.0}


def test_without_any_chance_nothing_is_disturbed():
    calm = Perturbed(Reach(size=8), wrong_start=0.0, pushes=0, drop=0.0)
    for episode in range(3):
        assert np.array_equal(play(calm, episode)[1], play(Reach(size=8), episode)[1])


GRIPPER = Group("gripper", ("command",), "binary", "1", (-1.0,), (1.0,), open=-1.0, close=1.0)
DELTA = ActionSpec(
    (
        Group("position", ("x", "y", "z"), "delta", "1", (-1.0,) * 3, (1.0,) * 3),
        Group("rotation", ("x", "y", "z"), "delta", "1", (-1.0,) * 3, (1.0,) * 3, rotation="axis_angle"),
        GRIPPER,
    )
)
ABSOLUTE = ActionSpec(
    (
        Group("position", ("x", "y", "z"), "absolute", "m", (-1.5,) * 3, (1.5,) * 3),
        Group("rotation", tuple("abcdef"), "absolute", "1", (-1.0,) * 6, (1.0,) * 6, rotation="rot6d"),
        GRIPPER,
    )
)


@pytest.mark.parametrize("spec", [DELTA, ABSOLUTE])
def test_a_push_stays_in_range_and_spares_the_gripper(spec):
    generator = np.random.default_rng(0)
    for _ in range(50):
        values = generator.uniform(spec.low, spec.high).astype(np.float32)
        result = pushed(spec, values, generator.uniform(-1, 1, spec.size))
        spec.validate(result)
        assert spec.clamp(result)[1] == 0
        assert result[-1] == values[-1]
        assert not np.array_equal(result[:3], values[:3])
    if spec is ABSOLUTE:
        assert np.array_equal(result[3:9], values[3:9])
        assert np.abs(result[:3] - values[:3]).max() <= 0.05 + 1e-6


class Holder:
    """An environment that only remembers what it was told to do; its expert closes the gripper."""

    def __init__(self, expert=True):
        state = StateSpec((Group("fingers", ("left",), "measured", "m", (0.0,), (0.04,)),))
        self.spec = EnvSpec("holder", (), state, DELTA, 0.05, ("hold",), 60)
        self.executed, self.has_expert = [], expert

    def reset(self, seed, task, episode):
        self.executed = []
        return {"initial_state": "same"}

    def observe(self, cameras=()):
        return Observation(np.zeros(1, np.float32), {}, "hold", len(self.executed) * 0.05)

    def apply(self, command):
        self.executed.append(command.values)

    def outcome(self):
        return None

    def expert(self, seed, style="uni"):
        if not self.has_expert:
            raise UnsupportedTask("holder: no expert")
        return HolderExpert(self.spec)

    def close(self): ...


class HolderExpert:
    def __init__(self, spec):
        self.spec = PolicySpec("expert", (), spec.state, spec.action, spec.period, 1)

    def begin(self, seed):
        return self

    def predict(self, observations, committed=None, deadline=None):
        time = observations[-1].time
        return ActionChunk(np.array([[0, 0, 0, 0, 0, 0, 1]], np.float32), time, 0.05, time)

    def close(self): ...


def test_a_closed_gripper_is_forced_open_once():
    raw = Holder()
    env = Perturbed(raw, wrong_start=0.0, pushes=0, drop=1.0, miss=0.0)
    facts = env.reset(10_000, 0, 0)
    after, steps = facts["perturbation"]["drop"]
    told = Command(np.array([0, 0, 0, 0, 0, 0, 1], np.float32), 0.0)
    for _ in range(60):
        env.apply(told)
    gripper = np.array([values[-1] for values in raw.executed])
    assert np.array_equal(np.flatnonzero(gripper < 0), np.arange(after, after + steps))
    assert told.values[-1] == 1.0
    opening = Command(np.array([0, 0, 0, 0, 0, 0, -1], np.float32), 0.0)
    env.reset(10_000, 0, 0)
    for _ in range(after - 1):
        env.apply(replace(opening))
    assert all(values[-1] == -1 for values in raw.executed)


def test_an_open_gripper_is_forced_shut_once():
    raw = Holder()
    env = Perturbed(raw, wrong_start=0.0, pushes=0, drop=0.0, miss=1.0)
    after, steps = env.reset(10_000, 0, 0)["perturbation"]["miss"]
    closing, opening = (Command(np.array([0, 0, 0, 0, 0, 0, sign], np.float32), 0.0) for sign in (1, -1))
    # Periods in which it is told to close do not count.
    told = [opening] * (after - 1) + [closing] * 5 + [opening] * 30
    marks = []
    for command in told:
        env.apply(command)
        marks.append(env.disturbed)
    gripper = np.array([values[-1] for values in raw.executed])
    forced = np.arange(after + 5, after + 5 + steps)
    assert np.array_equal(np.flatnonzero(gripper > 0), np.concatenate([np.arange(after - 1, after + 4), forced]))
    assert np.array_equal(np.flatnonzero(marks), forced)


def test_pushes_replace_what_is_executed_for_their_time_only():
    raw = Holder()
    env = Perturbed(raw, wrong_start=0.0, pushes=3, drop=0.0, miss=0.0)
    episode = next(k for k in range(20) if env.reset(10_000, 0, k)["perturbation"]["pushes"])
    facts = env.reset(10_000, 0, episode)
    for _ in range(150):
        env.apply(Command(np.zeros(7, np.float32), 0.0))
    moved = {i for i, values in enumerate(raw.executed) if np.any(values[:6])}
    wanted = {start + k for start, steps in facts["perturbation"]["pushes"] for k in range(steps)}
    assert moved == wanted


def test_an_environment_without_expert_has_no_wrong_start():
    env = Perturbed(Holder(expert=False), wrong_start=1.0)
    assert env.reset(10_000, 0, 0)["perturbation"]["wrong_start"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"drop": 1.5}, "perturbation.drop: expected a chance from 0 to 1, got 1.5"),
        ({"pushes": -1}, "perturbation.pushes: expected at least 0, got -1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Perturbed(Reach(size=8), **arguments)


class Straying:
    """A policy that drives both joints one way."""

    def __init__(self, env, value=0.6):
        spec = env.spec
        self.spec = PolicySpec("straying", (), spec.state, spec.action, spec.period, 8, executed=4)
        self.value, self.asked = value, 0

    def begin(self, seed):
        return self

    def predict(self, observations, committed=None, deadline=None):
        self.asked += 1
        time = observations[-1].time
        return ActionChunk(np.full((8, 2), self.value, np.float32), time, self.spec.period, time)

    def close(self): ...


def test_an_episode_begins_where_a_policy_went_and_the_expert_shows_the_way_back():
    raw = Reach(size=8)
    lead = Straying(raw)
    env = Perturbed(raw, lead, pushes=0, drop=0.0, miss=0.0, lead_steps=30)
    led, starts = [], []
    for episode in range(8):
        facts, states, _, outcome = play(env, episode)
        led.append(facts["perturbation"]["led"])
        assert facts["perturbation"]["wrong_start"] == 0
        plain = Reach(size=8)
        plain.reset(10_000, 0, episode)
        starts.append(np.abs(states[0] - plain.observe().state).max())
        assert outcome.success
        env.reset(10_000, 0, episode)
        assert env.observe().time == 0
    assert len(set(led)) > 3
    assert max(led) <= 30
    assert all((far > 0.01) == (steps > 0) for far, steps in zip(starts, led, strict=True))
    assert lead.asked == 2 * sum(-(-steps // 4) for steps in led)
    again = Perturbed(Reach(size=8), Straying(raw), pushes=0, drop=0.0, miss=0.0, lead_steps=30)
    assert np.array_equal(play(env, 3)[1], play(again, 3)[1])


def test_a_policy_of_several_moments_can_lead():
    raw = Reach(size=8)
    lead = Straying(raw)
    lead.spec, shown = replace(lead.spec, observation_offsets=(-3, 0)), []
    predict = lead.predict
    lead.predict = lambda observations: shown.append([one.time for one in observations]) or predict(observations)
    env = Perturbed(raw, lead, pushes=0, drop=0.0, miss=0.0, lead_steps=30)
    for episode in range(4):
        play(env, episode)
    assert len(shown) > 2
    for first, newest in shown:
        assert first == pytest.approx(max(newest - 3 * raw.spec.period, 0.0))


def test_a_policy_that_is_done_before_the_episode_begins_leaves_it_as_it_was():
    raw = Reach(size=8)
    env = Perturbed(raw, raw.expert(0), pushes=0, drop=0.0, miss=0.0, lead_steps=5000)
    facts, states, _, outcome = play(env, 1)
    plain = Reach(size=8)
    plain.reset(10_000, 0, 1)
    assert facts["perturbation"]["led"] == 0
    np.testing.assert_array_equal(states[0], plain.observe().state)
    assert outcome.success


def test_a_policy_of_another_contract_cannot_lead():
    with pytest.raises(ValueError, match="policy straying"):
        Perturbed(Reach(size=8), Straying(Reach(control="absolute", size=8)))


def test_a_wrong_start_that_succeeds_is_none():
    """There would be nothing left to show."""

    class Easy(Reach):
        """Whatever moves has succeeded."""

        moved = False

        def reset(self, seed, task, episode):
            self.moved = False
            return super().reset(seed, task, episode)

        def apply(self, command):
            self.moved = True
            super().apply(command)

        def outcome(self):
            return Outcome(True, "success") if self.moved else None

    env = Perturbed(Easy(size=8), wrong_start=1.0)
    facts = env.reset(10_000, 0, 0)
    assert env.outcome() is None
    assert facts["perturbation"]["wrong_start"] == 0
