"""Plans that come late: what is executed meanwhile, and what the policy is told of it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain, islice, pairwise, repeat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered import PERIOD, Numbered, Recording

from vla_runtime.control.clock import VirtualClock
from vla_runtime.control.joins import Adaptive, Blend, Ensemble, Spline
from vla_runtime.control.limits import Limits
from vla_runtime.control.loop import run
from vla_runtime.control.planner import Delayed, InStep, latencies
from vla_runtime.control.safety import Safety
from vla_runtime.control.standing import standing
from vla_runtime.spline import SplineCurve


def played(delays, steps=40, replan=4, prefix=False, period=PERIOD, **sizes):
    """Commands as (plan, row), None while standing or holding; the policy; the run."""
    env = Recording(period)
    policy = Numbered(env, **sizes)
    env.reset(0, 0, 0)
    source = iter(chain(delays, repeat(0.0)))
    result = run(
        env, policy, policy.spec, VirtualClock(), replan=replan, max_steps=steps, prefix=prefix,
        planner=lambda session, wall: Delayed(session, wall, source),
    )  # fmt: skip
    said = [
        None if one.held else (round(float(one.values[0]) * 100), round(float(one.values[1]) * 100))
        for one in env.applied
    ]
    return said, policy, result, env


def test_without_delay_a_planner_is_in_step():
    delayed, *_ = played(repeat(0.0))
    env = Recording()
    policy = Numbered(env)
    env.reset(0, 0, 0)
    run(env, policy, policy.spec, VirtualClock(), replan=4, max_steps=40, planner=InStep)
    assert delayed == [(round(float(one.values[0]) * 100), round(float(one.values[1]) * 100)) for one in env.applied]
    assert delayed[:6] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]


def test_a_controller_may_be_faster_than_the_policy():
    said, policy, result, _ = played(repeat(0.12), steps=140, prefix=True, period=PERIOD / 10)
    # At its own grid: the answer is there after 0.12 s, 24 ticks, and no later.
    assert said[:24] == [None] * 24
    assert said[24:35] == [(0, 0)] * 10 + [(0, 1)]
    assert [round(time / PERIOD * 10) for time, _ in policy.asked] == [0, 40, 80, 120]
    np.testing.assert_allclose(result.trace.delays, 0.12, atol=1e-9)
    # Told of as many rows of its own as pass meanwhile, and they are executed.
    assert [None if rows is None else len(rows) for _, rows in policy.asked] == [None, 3, 3, 3]
    assert result.trace.late == 0
    for time, rows in policy.asked[1:]:
        begins = round(time / PERIOD * 10)
        done = [said[begins + 10 * index + 1] for index in range(3)] if begins + 30 < len(said) else []
        assert done == [(round(float(row[0]) * 100), round(float(row[1]) * 100)) for row in rows][: len(done)]
    # No row is left out, and none is played again.
    rows = [row for _, row in (one for one in said[24:] if one is not None)]
    assert all(0 <= second - first <= 1 or second < first for first, second in pairwise(rows))


def test_the_robot_stands_until_the_first_chunk_and_then_begins_at_its_first_row():
    said, policy, result, env = played(repeat(0.15), steps=12)
    assert said == [None] * 3 + [(0, 0), (0, 1), (0, 2), (0, 3)] + [(1, 3), (1, 4), (1, 5), (1, 6)] + [(2, 3)]
    assert result.trace.held == 3
    np.testing.assert_allclose(result.trace.delays, 0.15, atol=1e-9)
    still = standing(env.spec, env.observe(()))
    assert all(np.array_equal(one.values, still * 0) for one in env.applied[:3])  # reach speaks velocity
    # Asked anew when `replan` rows have passed since the question before, whenever the answer comes.
    assert [round(time / PERIOD) for time, _ in policy.asked] == [0, 4, 8]


def test_a_slow_answer_puts_the_next_question_off():
    said, policy, *_ = played(chain([0.0, 0.4], repeat(0.0)), steps=20)
    assert [round(time / PERIOD) for time, _ in policy.asked][:4] == [0, 4, 12, 16]
    assert said[4:12] == [(0, row) for row in range(4, 12)]
    assert said[12] == (1, 8)


def test_a_plan_that_ran_out_is_held_and_motion_goes_on_where_it_stopped():
    said, _, result, _ = played(chain([0.0, 0.6], repeat(0.0)), steps=24, horizon=8)
    assert said[4:8] == [(0, 4), (0, 5), (0, 6), (0, 7)]
    assert said[8:16] == [None] * 8
    assert said[16] == (1, 4)  # held from row 4 of the new plan's time on
    assert result.trace.held == 8


def test_committed_rows_are_told_and_executed():
    said, policy, result, env = played(repeat(0.15), steps=30, prefix=True)
    (_, first), (_, second), *later = policy.asked
    assert first is None  # nothing runs yet
    assert len(second) == 3
    for time, rows in [policy.asked[1], *later]:
        at = round(time / PERIOD)
        executed = np.stack([one.values for one in env.applied[at : at + len(rows)]])
        np.testing.assert_array_equal(executed[: len(said) - at], rows[: len(executed)])
    assert result.trace.late == 0


def test_an_early_answer_waits_for_the_end_of_what_was_committed():
    said, policy, *_ = played(chain([0.15, 0.15], repeat(0.0)), steps=20, prefix=True)
    time, rows = policy.asked[2]
    at = round(time / PERIOD)
    assert len(rows) == 3
    assert [plan for plan, _ in said[at : at + 4]] == [1, 1, 1, 2]
    assert said[at + 3] == (2, 3)


def test_an_answer_later_than_committed_is_counted():
    _, _, result, _ = played(chain([0.05, 0.05, 0.3], repeat(0.05)), steps=40, prefix=True)
    assert result.trace.late == 1


def test_a_policy_that_takes_no_rows_cannot_be_told_of_them():
    with pytest.raises(ValueError, match="expected a policy that takes committed rows, got numbered"):
        played(repeat(0.0), prefix=True, max_committed=0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 0.9), min_size=1, max_size=12), st.integers(1, 12), st.sampled_from([8, 16]), st.booleans()
)
def test_no_tick_is_lost_and_no_row_comes_back(delays, replan, horizon, prefix):
    replan = min(replan, horizon)
    said, policy, result, env = played(delays, 60, replan, prefix, horizon=horizon)
    assert len(said) == result.steps == 60
    assert [round(one.due / PERIOD) for one in env.applied] == list(range(60))
    rows = {}
    for one in filter(None, said):
        plan, row = one
        if not prefix:
            assert row > rows.get(plan, -1)
            assert plan >= max(rows, default=0)
        rows[plan] = row
    low, high = env.spec.action.low, env.spec.action.high
    assert all((one.values >= low).all() and (one.values <= high).all() for one in env.applied)
    for time, given_rows in policy.asked:
        if given_rows is not None:
            at = round(time / PERIOD)
            executed = [one.values for one in env.applied[at : at + len(given_rows)]]
            np.testing.assert_array_equal(executed, given_rows[: len(executed)])


def test_latencies_are_a_number_or_what_was_recorded(tmp_path):
    assert list(islice(latencies(0.2, 0), 3)) == [0.2] * 3
    path = tmp_path / "profile.json"
    recorded = [0.1, 0.3, 0.25, 0.05]
    path.write_text(json.dumps(recorded))
    played = list(islice(latencies(str(path), 4), 200))
    first = recorded.index(played[0])
    # In its order: slow answers come in rows.
    assert played == [recorded[(first + index) % 4] for index in range(200)]
    assert {next(latencies(str(path), seed)) for seed in range(50)} == set(recorded)
    path.write_text("[0.1, -1]")
    for wrong, message in (
        (-0.1, "expected seconds from 0 on"), ([0.1], "got \\[0.1\\]"), (True, "got True"),
        (str(tmp_path / "none.json"), "expected a file with a JSON list"), (str(path), "from 0 on in"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            latencies(wrong, 0)


class Curved(Numbered):
    """Random walks inside the range, with the B-spline behind their rows."""

    def __init__(self, env, seed, curves):
        super().__init__(env, horizon=16)
        self._random, self._curves = np.random.default_rng(seed), curves

    def predict(self, observations, committed=None, deadline=None):
        chunk = super().predict(observations, committed, deadline)
        points = np.clip(np.cumsum(self._random.uniform(-0.2, 0.2, (8, 2)), 0), -1, 1)
        curve = SplineCurve(points, 4, 15 * PERIOD)
        rows = curve.at(np.arange(16) * PERIOD).astype(np.float32)
        if committed is not None:
            rows[: len(committed)] = committed
        elif self._curves:
            return replace(chunk, actions=rows, curve=curve, curved=(0, 1))
        return replace(chunk, actions=rows)


JOINING = {"newest": None, "blend": Blend, "ensemble": Ensemble, "adaptive": Adaptive, "spline": Spline, "prefix": None}


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.05, 0.1, 0.17, 0.3, 0.5, 1.1]), min_size=1, max_size=8), st.integers(1, 12),
    st.sampled_from([1, 1, 4]), st.booleans(), st.lists(st.integers(2, 50), max_size=2), st.integers(0, 2**31),
)  # fmt: skip
@pytest.mark.parametrize("join", JOINING)
def test_whatever_the_join_no_tick_is_lost_no_row_comes_back_and_limits_hold(
    join, delays, replan, faster, limited, stops, seed
):
    env = Recording(PERIOD / faster, control="absolute")
    env.reset(0, 0, 0)
    policy, safety, ticks = Curved(env, seed, join == "spline"), Safety(), []
    fast = 2.0
    limits = Limits(env.spec.action, env.spec.period, {"joints": {"speed": fast}} if limited else None)

    def watch(tick):
        ticks.append(tick)
        now = (tick.index + 1) * env.spec.period
        if tick.index in stops:
            safety.stop(now, "somebody")
        elif safety.stopped:
            safety.reset(now)

    make = JOINING[join]
    run(
        env, policy, policy.spec, VirtualClock(), replan=replan, max_steps=60 * faster, safety=safety, on_tick=watch,
        prefix=join == "prefix", limits=limits, join=None if make is None else make(env.spec.action),
        planner=lambda session, wall: Delayed(session, wall, chain(delays, repeat(0.1))),
    )  # fmt: skip
    assert [round(one.due / env.spec.period) for one in env.applied] == list(range(60 * faster))
    sent = np.stack([one.values for one in env.applied])
    assert np.isfinite(sent).all()
    assert (sent >= env.spec.action.low).all()
    assert (sent <= env.spec.action.high).all()
    if limited:
        assert np.linalg.norm(np.diff(sent, axis=0), axis=1).max() <= fast * env.spec.period * (1 + 1e-4) + 1e-6
    last = {}
    for tick in ticks:
        if tick.plan is not None and not tick.command.held:
            row = tick.plan.row(tick.now)
            assert row >= last.get(id(tick.plan), -1)
            last[id(tick.plan)] = row
