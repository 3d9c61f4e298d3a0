"""No command leaves outside its limits, whatever is asked for; grippers and good commands are left alone."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_runtime.control.limits import GroupLimits, LimitExceeded, Limits
from vla_runtime.transforms import (
    axis_angle_from_matrix,
    matrix_from_axis_angle,
    matrix_from_rot6d,
    rot6d_from_matrix,
)
from vla_runtime.types import ActionSpec, Command, EnvSpec, Group, Observation, StateSpec

PERIOD = 0.05


def group(name, kind, size, **options):
    return Group(name, tuple(f"{name}{i}" for i in range(size)), kind, "m", (-1.0,) * size, (1.0,) * size, **options)


ARM = ActionSpec((
    group("position", "absolute", 3), group("rotation", "absolute", 6, rotation="rot6d"),
    group("gripper", "binary", 1, open=-1.0, close=1.0),
))  # fmt: skip
STATE = StateSpec((group("position", "measured", 3), group("rotation", "measured", 6, rotation="rot6d")))
ENV = EnvSpec("arm", (), STATE, ARM, PERIOD, ("move",), 100)
LIMITS = {"position": {"speed": 0.5, "acceleration": 4.0, "low": (-0.5,) * 3, "high": (0.5,) * 3},
          "rotation": {"speed": 1.0}}  # fmt: skip


def command(position=(0, 0, 0), turn=(0, 0, 0), gripper=-1.0, due=0.0):
    values = np.concatenate([position, rot6d_from_matrix(matrix_from_axis_angle(turn)), [gripper]])
    return Command(values.astype(np.float32), due)


numbers, angles = st.floats(-1, 1, width=32), st.floats(-3, 3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[numbers] * 3, *[angles] * 3, st.sampled_from([-1.0, 1.0])), min_size=2, max_size=30))
def test_whatever_is_asked_for_speed_and_workspace_hold(asked):
    limits = Limits(ARM, PERIOD, LIMITS)
    sent = [limits.clamp(command(one[:3], one[3:6], one[6], k * PERIOD)).values for k, one in enumerate(asked)]
    positions = np.array([one[:3] for one in sent], np.float64)
    assert np.abs(positions).max() <= 0.5 + 1e-6
    assert np.linalg.norm(np.diff(positions, axis=0), axis=1).max() <= 0.5 * PERIOD * (1 + 1e-4) + 1e-6
    turns = [matrix_from_rot6d(one[3:9]) for one in sent]
    for before, after in pairwise(turns):
        assert np.linalg.norm(axis_angle_from_matrix(after @ before.T)) <= 1.0 * PERIOD + 1e-4
    assert [one[9] for one in sent] == [one[6] for one in asked]


def test_acceleration_is_kept_where_there_is_room():
    limits = Limits(ARM, PERIOD, {"position": GroupLimits(acceleration=2.0)})
    sent = np.array([limits.clamp(command((0.4 * (k > 2), 0, 0))).values[0] for k in range(20)], np.float64)
    speeds = np.diff(sent) / PERIOD
    assert np.abs(np.diff(speeds)).max() <= 2.0 * PERIOD + 1e-4
    assert limits.events["position acceleration"] > 0


def test_braking_never_leads_out_of_the_range():
    limits = Limits(ARM, PERIOD, {"position": {"acceleration": 2.0}})
    sent = [limits.clamp(command((min(0.2 * k, 1.0), 0, 0))).values[0] for k in range(12)]
    assert max(sent) <= 1


def test_good_commands_pass_as_they_are():
    limits = Limits(ARM, PERIOD, LIMITS)
    for k in range(10):
        one = command((0.01 * k, 0, 0), (0, 0, 0.02 * k), due=k * PERIOD)
        assert limits.clamp(one) is one
    assert not limits.events
    assert limits.clamped == 0


def test_warn_lets_through_stop_ends_and_both_say_why(caplog):
    warn, stop = (Limits(ARM, PERIOD, LIMITS, level) for level in ("warn", "stop"))
    for limits in (warn, stop):
        limits.clamp(command())
    far = command((0.4, 0, 0), due=0.05)
    assert warn.clamp(far) is far
    assert warn.events == {"position speed": 1}
    assert "sent all the same" in caplog.text
    with pytest.raises(LimitExceeded, match=r"at 0\.050 s position: expected speed at most 0\.5, got 8"):
        stop.clamp(far)


@pytest.mark.parametrize("level", ["warn", "clamp", "stop"])
def test_a_range_is_kept_at_every_level_and_what_lay_beyond_it_is_said(level, caplog):
    caplog.set_level("INFO")
    limits = Limits(ARM, PERIOD, {}, level)
    far = command((0.0, -50.0, 0.0), due=0.05)
    words = rf"at 0\.050 s {re.escape(ARM.names[1])}: expected {ARM.low[1]:.4g} to {ARM.high[1]:.4g}, got -50"
    if level == "stop":
        with pytest.raises(LimitExceeded, match=words):
            limits.clamp(far)
        return
    assert limits.clamp(far).values[1] == ARM.low[1]
    assert limits.broken == ("range",)
    assert re.search(words, caplog.text)


def test_after_a_break_motion_begins_anew():
    limits = Limits(ARM, PERIOD, {"position": {"speed": 0.1, "acceleration": 1.0}})
    limits.clamp(command())
    limits.begin(ENV, Observation(np.array([0.4, 0, 0, 1, 0, 0, 0, 1, 0], np.float32), {}, "", 0.0))
    # From rest, where the robot is seen: neither from where it was sent last, nor from anywhere at once.
    there = limits.clamp(command((0.8, 0, 0))).values[0]
    assert there == pytest.approx(0.4 + 1.0 * PERIOD * PERIOD, abs=1e-6)
    assert limits.broken == ("position acceleration",)


def test_what_will_be_sent_can_be_told_beforehand():
    limits = Limits(ARM, PERIOD, {"position": {"speed": 0.1}})
    limits.clamp(command())
    rows = np.stack([command((0.05 * index, 0, 0)).values for index in range(1, 6)])
    told = limits.ahead(rows)
    assert (limits.clamped, limits.events) == (0, {})
    sent = np.stack([limits.clamp(Command(row, 0.0)).values for row in rows])
    np.testing.assert_array_equal(told, sent)
    # At level stop it is said when it is sent, not before.
    Limits(ARM, PERIOD, {"position": {"speed": 0.1}}, "stop").ahead(np.stack([command().values, rows[-1]]))


def test_velocities_are_speeds_and_range_is_always_kept():
    spec = ActionSpec((group("joint", "velocity", 2),))
    limits = Limits(spec, PERIOD, {"joint": {"speed": 0.5, "acceleration": 4.0}})
    sent = [limits.clamp(Command(np.array([3.0, 0], np.float32), 0)).values[0] for _ in range(4)]
    np.testing.assert_allclose(sent, [0.5, 0.5, 0.5, 0.5], atol=1e-6)
    assert limits.events["range"] == 4


@pytest.mark.parametrize(
    ("groups", "level", "message"),
    [
        ({"gripper": {"speed": 1}}, "clamp", "a binary one, which is exempt"),
        ({"wheels": {"speed": 1}}, "clamp", "got 'wheels'"),
        ({"position": {"speed": 0}}, "clamp", "limits.speed: expected more than 0"),
        ({"position": {"low": (0, 0)}}, "clamp", "expected a workspace of 3 numbers"),
        ({"rotation": {"low": (0,) * 6}}, "clamp", "for a group that is no rotation"),
        ({}, "shout", "limits.level: expected one of warn, clamp, stop"),
    ],
)
def test_limits_that_cannot_be_are_refused(groups, level, message):
    with pytest.raises(ValueError, match=message):
        Limits(ARM, PERIOD, groups, level)


def test_an_acceleration_ends_at_the_goal_and_does_not_swing_about_it():
    limits = Limits(ARM, PERIOD, {"position": {"speed": 0.5, "acceleration": 1.0}, "rotation": {"acceleration": 2.0}})
    limits.begin(ENV, Observation(np.array([0, 0, 0, 1, 0, 0, 0, 1, 0], np.float32), {}, "", 0.0))
    sent = np.array([limits.clamp(command((0.3, 0, 0), (0, 0, 0.5))).values for _ in range(80)], np.float64)
    assert sent[:, 0].max() <= 0.3 + 1e-6
    assert sent[-1, 0] == pytest.approx(0.3, abs=1e-6)
    turns = [axis_angle_from_matrix(matrix_from_rot6d(one[3:9]))[2] for one in sent]
    assert max(turns) <= 0.5 + 1e-5
    assert turns[-1] == pytest.approx(0.5, abs=1e-5)


def test_behind_a_moving_goal_it_catches_up_and_overshoots_by_its_braking_distance_at_most():
    limits = Limits(ARM, PERIOD, {"position": {"acceleration": 1.0}})
    limits.begin(ENV, Observation(np.array([0, 0, 0, 1, 0, 0, 0, 1, 0], np.float32), {}, "", 0.0))
    goals = [min(0.02 * k, 0.8) for k in range(120)]
    sent = np.array([limits.clamp(command((goal, 0, 0))).values[0] for goal in goals], np.float64)
    assert abs(sent[35] - goals[35]) < 1e-5, "it never catches up"
    assert sent.max() <= 0.8 + 0.4**2 / 2 + 0.4 * PERIOD
    late = sent[-30:]
    assert np.ptp(late) < 1e-6
    assert late[-1] == pytest.approx(0.8, abs=1e-6)


def test_from_outside_a_workspace_it_comes_back_no_faster_than_it_may():
    limits = Limits(ARM, PERIOD, {"position": {"speed": 0.2, "low": (-0.5,) * 3, "high": (0.5,) * 3}})
    limits.begin(ENV, Observation(np.array([0.8, 0, 0, 1, 0, 0, 0, 1, 0], np.float32), {}, "", 0.0))
    sent = [float(limits.clamp(command((0.9, 0, 0))).values[0]) for _ in range(40)]
    assert sent[0] == pytest.approx(0.79, abs=1e-6)
    assert all(0.5 - 1e-6 <= b <= a + 1e-6 and a - b <= 0.01 + 1e-6 for a, b in pairwise(sent))
    assert sent[-1] == pytest.approx(0.5, abs=1e-6)


def test_at_level_warn_nothing_is_behind():
    """What was let through is where it was told to be: no alarm for standing there."""
    limits = Limits(ARM, PERIOD, {"position": {"acceleration": 1.0, "low": (-0.5,) * 3, "high": (0.5,) * 3}}, "warn")
    limits.begin(ENV, Observation(np.array([0.6, 0, 0, 1, 0, 0, 0, 1, 0], np.float32), {}, "", 0.0))
    for _ in range(20):
        limits.clamp(command((0.6, 0, 0)))
    assert limits.events == {"position workspace": 20}


@pytest.mark.parametrize("level", ["warn", "clamp", "stop"])
def test_whoever_is_held_outside_a_workspace_stays_there(level):
    """A hand may have led it there; it is not to come back by itself, however slowly."""
    limits = Limits(ARM, PERIOD, {"position": {"low": (-0.5,) * 3, "high": (0.5,) * 3}}, level)
    limits.begin(ENV, Observation(np.array([0.8, 0, 0, 1, 0, 0, 0, 1, 0], np.float32), {}, "", 0.0))
    stays = replace(command((0.8, 0, 0)), held=True)
    for _ in range(3):
        assert limits.clamp(stays) is stays
    assert not limits.events
    # But what a plan wanted beyond the wall is not gone to when it has run out.
    limits = Limits(ARM, PERIOD, {"position": {"low": (-0.5,) * 3, "high": (0.5,) * 3}})
    limits.begin(ENV, Observation(np.array([0.4, 0, 0, 1, 0, 0, 0, 1, 0], np.float32), {}, "", 0.0))
    wanted = command((0.9, 0, 0))
    for one in (wanted, replace(wanted, held=True)):
        assert limits.clamp(one).values[0] == pytest.approx(0.5)
