"""Means by kind, and the three joins that take them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_runtime.control.joins import Adaptive, Blend, Ensemble, Live, Mean, Newest, Spline, mean_rotation
from vla_runtime.control.schedule import ActionSchedule
from vla_runtime.spline import SplineCurve
from vla_runtime.transforms import rot6d_from_matrix
from vla_runtime.types import ActionChunk, ActionSpec, Group, SpecMismatch

PERIOD = 0.1


def group(name, kind, size=2, **options):
    return Group(name, tuple(f"{name}{i}" for i in range(size)), kind, "1", (-1.0,) * size, (1.0,) * size, **options)


ROTATING = ActionSpec((
    group("position", "absolute", 3), group("rotation", "absolute", 6, rotation="rot6d"),
    group("gripper", "binary", 1, open=-1.0, close=1.0),
))  # fmt: skip
FLAT = ActionSpec((group("velocity", "velocity"),))


def live(rows, observed=0.0, begins=0.0, start=None):
    start = observed if start is None else start
    return Live(ActionChunk(np.asarray(rows, np.float32), start, PERIOD, observed), begins)


def test_a_mean_is_taken_by_kind():
    turns = Rotation.from_euler("z", [[0], [40]], degrees=True)
    rows = np.stack([
        np.concatenate([[0, 0, 0], rot6d_from_matrix(turns[0].as_matrix()), [-1]]),
        np.concatenate([[0.2, 0, 0.4], rot6d_from_matrix(turns[1].as_matrix()), [1]]),
    ])  # fmt: skip
    found = Mean(ROTATING, "blend")(rows, np.array([3.0, 1.0]))
    np.testing.assert_allclose(found[:3], [0.05, 0, 0.1], atol=1e-6)
    wanted = turns.mean([3, 1]).as_matrix()
    np.testing.assert_allclose(found[3:9], rot6d_from_matrix(wanted), atol=1e-6)
    assert found[9] == 1  # the newest decides


@given(st.lists(st.tuples(*[st.floats(-2, 2)] * 3), min_size=1, max_size=5), st.integers(0, 2**31))
def test_mean_rotations_are_scipys_and_turn_with_what_is_meant(vectors, seed):
    weights = np.random.default_rng(seed).uniform(0.1, 1, len(vectors))
    turns = Rotation.from_rotvec(vectors)
    found = mean_rotation(turns.as_matrix(), weights)
    if found is None:
        return
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(found) == pytest.approx(1)
    np.testing.assert_allclose(found, turns.mean(weights).as_matrix(), atol=1e-6)
    other = Rotation.random(rng=seed)
    moved = mean_rotation((other * turns).as_matrix(), weights)
    np.testing.assert_allclose(moved, other.as_matrix() @ found, atol=1e-6)


def test_opposite_rotations_have_no_mean_and_the_newest_stands():
    turns = Rotation.from_euler("z", [[0], [180]], degrees=True).as_matrix()
    assert mean_rotation(turns, np.array([0.5, 0.5])) is None
    rows = np.stack([np.concatenate([[0, 0, 0], rot6d_from_matrix(turn), [1]]) for turn in turns])
    found = Mean(ROTATING, "blend")(rows, np.array([0.5, 0.5]))
    np.testing.assert_allclose(found[3:9], rows[1, 3:9], atol=1e-6)


def test_increments_have_no_mean():
    for join in (Blend, Ensemble, Adaptive):
        with pytest.raises(ValueError, match="expected absolute or velocity actions"):
            join(ActionSpec((group("hand", "delta"),)))


def test_a_blend_fades_over_its_rows_and_ends():
    old, new = live(np.zeros((10, 2))), live(np.ones((10, 2)), observed=0.2, begins=0.4)
    found = [Blend(FLAT, 3)([old, new], 0.4 + k * PERIOD)[0] for k in range(5)]
    np.testing.assert_allclose(found, [0.25, 0.5, 0.75, 1, 1], atol=1e-6)
    # Where the old chunk has ended there is nothing to fade from.
    assert Blend(FLAT, 3)([live(np.zeros((2, 2))), new], 0.4)[0] == 1


def test_a_blend_is_even_for_a_faster_controller_and_goes_on_from_a_blend():
    zeros, ones = live(np.zeros((12, 2))), live(np.ones((12, 2)), observed=0.2, begins=0.4)
    twos = live(np.full((12, 2), 2.0), observed=0.2, begins=0.4 + PERIOD)
    # At ten times the rate: no step is larger than a tenth of a row's.
    times = 0.4 + np.arange(0, 31) * PERIOD / 10
    found = [Blend(FLAT, 3)([zeros, ones], time)[0] for time in times]
    assert np.abs(np.diff(found)).max() <= 0.25 / 10 + 1e-6
    # A chunk that comes one row after another goes on from what was executed, not from where that was to lead.
    found = [Blend(FLAT, 3)([zeros, ones], 0.4)[0]]
    found += [Blend(FLAT, 3)([zeros, ones, twos], 0.4 + k * PERIOD)[0] for k in range(1, 5)]
    np.testing.assert_allclose(found, [0.25, 0.5 + 0.25 * 1.5, 0.75 + 0.5 * 1.25, 1.75, 2], atol=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 0.0, 0.01])
@pytest.mark.parametrize("step", [1, 3])
def test_an_ensemble_weighs_by_age_as_act_does(decay, step):
    chunks = [live(np.full((20, 2), k), observed=k * step * PERIOD) for k in range(4)]
    weights = np.exp(-decay * step * np.arange(4))
    wanted = weights @ np.arange(4) / weights.sum()
    assert Ensemble(FLAT, decay)(chunks, 1.2)[0] == pytest.approx(wanted, abs=1e-6)
    same = [live(np.full((20, 2), 0.3), observed=k * PERIOD) for k in range(4)]
    assert Ensemble(FLAT, decay)(same, 1.2)[0] == pytest.approx(0.3)


def test_the_adaptive_ensemble_is_cogacts_hand_case():
    rows = ((1, 0), (0, 1), (1, 0))
    found = Adaptive(FLAT, 0.1)([live([row]) for row in rows], 0.0)
    np.testing.assert_allclose(found, [2 * 0.34425, 0.31149], atol=1e-5)
    # Sharp enough, an opposite mode is rejected.
    sharp = Adaptive(FLAT, 30.0)([live([(-1, 0)]), live([(1, 0)])], 0.0)
    np.testing.assert_allclose(sharp, [1, 0], atol=0.05)


def test_near_zero_distance_stands_in_for_direction():
    found = Adaptive(FLAT, 10.0)([live([(0.9, 0.9)]), live([(0.001, 0)]), live([(0, 0.001)])], 0.0)
    assert np.abs(found).max() < 0.01


@given(st.floats(0, 3), st.integers(1, 4))
def test_where_the_newest_says_nothing_nobody_speaks(time, count):
    chunks = [live(np.full((5 + 20 * (k < count - 1), 2), k), observed=0) for k in range(count)]
    for join in (Newest(), Blend(FLAT), Ensemble(FLAT), Adaptive(FLAT)):
        assert (join(chunks, time) is None) == (chunks[-1].chunk.at(time) is None)


ARM = ActionSpec((group("position", "absolute", 3), group("gripper", "binary", 1, open=-1.0, close=1.0)))


def curved(points, start=0.0, period=0.05, rows=16):
    """A chunk of which three dimensions are a curve, and whose gripper shuts half way."""
    curve = SplineCurve(np.asarray(points, np.float64), 4, (rows - 1) * period)
    actions = np.empty((rows, 4), np.float32)
    actions[:, :3] = curve.at(np.arange(rows) * period)
    actions[:, 3] = np.where(np.arange(rows) < rows // 2, -1, 1)
    return ActionChunk(actions, start, period, start, curve, (0, 1, 2))


def test_a_curve_is_played_at_any_rate_and_its_rows_at_their_own_times():
    chunk = curved(np.random.default_rng(0).normal(size=(8, 3)), start=2.0)
    for time in (2.0, 2.05, 2.0 + 15 * 0.05):
        np.testing.assert_array_equal(chunk.at(time), chunk.actions[round((time - 2.0) / 0.05)])
    between = chunk.at(2.012)
    np.testing.assert_allclose(between[:3], chunk.curve.at(0.012)[0], rtol=1e-6)
    assert between[3] == -1
    assert chunk.at(2.41)[3] == 1
    assert chunk.at(1.99) is None
    assert chunk.at(2.8) is None
    np.testing.assert_array_equal(chunk.at(2.79), chunk.actions[-1])


def after(chunk, time, step=1e-6):
    """Position and velocity of what is executed from a time on."""
    here, there = (chunk.curve.at(time - chunk.start + offset)[0] for offset in (0.0, step))
    return here, (there - here) / step


@settings(deadline=None, max_examples=40)
@given(st.floats(0.01, 0.6), st.integers(0, 2**31))
def test_a_spline_begins_where_the_motion_is_and_as_fast(delay, seed):
    """At the actual time of the hand-over, on no grid: position to 1e-6, velocity to 1e-4."""
    generator = np.random.default_rng(seed)
    old, new = (curved(generator.uniform(-0.3, 0.3, size=(8, 3)), start) for start in (0.0, 0.1))
    now = 0.1 + delay
    if now > old.curve.duration:
        return
    schedule = ActionSchedule(ARM, 0.05, Spline(ARM))
    schedule.splice(old, 0.0)
    # The first goes on from itself.
    old = schedule.chunk
    schedule.splice(new, now)
    joined = schedule.chunk
    assert joined.start == now
    np.testing.assert_allclose(joined.curve.at(0.0)[0], old.curve.at(now)[0], atol=1e-6)
    speeds = [chunk.curve.derivative().at(now - chunk.start)[0] for chunk in (joined, old)]
    np.testing.assert_allclose(*speeds, atol=1e-4)
    # It ends where the policy wanted to be, when it wanted to be there.
    left = new.start + new.curve.duration - now
    assert joined.curve.duration == pytest.approx(max(left, 4 * 0.05))
    if delay < 0.4:
        ends = [chunk.curve.at(chunk.curve.duration)[0] for chunk in (joined, new)]
        np.testing.assert_allclose(*ends, atol=0.1)
    # Grippers are not curves: they shut when the policy said so, to a row.
    shut = joined.start + 0.05 * int(np.argmax(joined.actions[:, 3] > 0))
    assert abs(shut - max(new.start + 8 * 0.05, now)) <= 0.05 + 1e-6


@settings(deadline=None, max_examples=40)
@given(st.floats(0.6, 1.0), st.integers(0, 2**31))
def test_however_late_a_spline_begins_where_the_robot_is(now, seed):
    """Also when little or nothing is left of it: then it comes to rest where it ended, in time enough."""
    generator = np.random.default_rng(seed)
    old, new = (curved(generator.uniform(-0.3, 0.3, size=(8, 3)), start) for start in (0.1, 0.0))
    schedule = ActionSchedule(ARM, 0.01, Spline(ARM))
    schedule.splice(old, 0.1)
    was = None
    for tick in range(11, round(now / 0.01)):
        was = schedule.command_at(tick * 0.01).values
    begins = round(now / 0.01) * 0.01
    schedule.splice(new, begins)
    jump = np.abs(schedule.command_at(begins).values - was)[:3].max()
    fastest = np.abs(old.curve.derivative().points).max()
    assert jump <= fastest * 0.01 + 1e-6
    assert schedule.chunk.curve.duration >= 4 * 0.05 - 1e-9


def test_acceleration_is_taken_over_if_asked_for_and_velocity_only_if_asked_for():
    generator = np.random.default_rng(7)
    old, new = (curved(generator.uniform(-0.3, 0.3, size=(8, 3)), start) for start in (0.0, 0.1))
    for continuity in (0, 1, 2):
        joined = Spline(ARM, continuity).accept(new, old, 0.33)
        curves = [old.curve, joined.curve]
        for order in range(3):
            there, here = (curve.at(0.33 - start)[0] for curve, start in zip(curves, (0.0, 0.33), strict=True))
            assert (np.abs(there - here).max() < 1e-4 * 10**order) == (order <= continuity), (continuity, order)
            curves = [curve.derivative() for curve in curves]


def test_after_a_gap_it_begins_from_rest():
    old, new = (
        curved(np.random.default_rng(seed).uniform(-0.3, 0.3, size=(8, 3)), start)
        for seed, start in ((1, 0.0), (2, 0.7))
    )
    schedule = ActionSchedule(ARM, 0.05, Spline(ARM))
    schedule.splice(old, 0.0)
    held = schedule.command_at(0.78).values
    assert schedule.command_at(0.9).held
    schedule.splice(new, 1.0)
    joined = schedule.chunk
    np.testing.assert_allclose(joined.curve.at(0.0)[0], held[:3], atol=1e-6)
    np.testing.assert_allclose(joined.curve.derivative().at(0.0)[0], 0.0, atol=1e-9)


def test_what_would_be_too_fast_is_executed_more_slowly():
    way = np.linspace(0, 1, 8)[:, None] * np.array([0.3, 0, 0])
    old, new = curved(0 * way), curved(way)
    fastest = np.linalg.norm(Spline(ARM).accept(new, old, 0.0).curve.derivative().points, axis=1).max()
    for limits in ({"fastest": {"position": fastest / 2}}, {"hardest": {"position": 1.0}}):
        joined = Spline(ARM, **limits).accept(new, old, 0.0)
        assert joined.curve.duration > new.curve.duration
        times = np.linspace(0, joined.curve.duration, 400)
        speed, change = joined.curve.derivative(), joined.curve.derivative().derivative()
        assert np.linalg.norm(speed.at(times), axis=1).max() <= limits.get("fastest", {}).get("position", np.inf)
        assert np.linalg.norm(change.at(times), axis=1).max() <= limits.get("hardest", {}).get("position", np.inf)
        np.testing.assert_allclose(joined.curve.at(joined.curve.duration)[0], [0.3, 0, 0], atol=0.02)
        assert joined.end >= joined.start + joined.curve.duration
        # The gripper shuts at the same place of the way.
        assert np.argmax(joined.actions[:, 3] > 0) == pytest.approx(8 * joined.curve.duration / 0.75, abs=1)


def test_a_chunk_is_executed_faster_as_far_as_limits_allow():
    way = np.linspace(0, 1, 8)[:, None] * np.array([0.3, 0, 0])
    old, new = curved(0 * way), curved(way)
    usual = Spline(ARM).accept(new, old, 0.0)
    fastest = np.linalg.norm(usual.curve.derivative().points, axis=1).max()
    for allowed, least, most in ((10 * fastest, 0.5, 0.5), (1.4 * fastest, 0.55, 0.95), (fastest / 2, 1.5, 3)):
        joined = Spline(ARM, 1, {"position": allowed}, pace=2.0).accept(new, old, 0.0)
        assert least - 1e-9 <= joined.curve.duration / usual.curve.duration <= most + 1e-9
        assert np.linalg.norm(joined.curve.derivative().points, axis=1).max() <= allowed * (1 + 1e-9)
        np.testing.assert_allclose(joined.curve.at(joined.curve.duration)[0], [0.3, 0, 0], atol=0.02)
        assert np.argmax(joined.actions[:, 3] > 0) == pytest.approx(8 * joined.curve.duration / 0.75, abs=1)
    # What has passed meanwhile has passed faster, too.
    late = Spline(ARM, 1, {"position": 10 * fastest}, pace=2.0).accept(new, None, 0.2)
    np.testing.assert_allclose(late.curve.at(0.0), new.curve.at(0.4), atol=1e-9)


@pytest.mark.parametrize(("pace", "share"), [(1.0, 0.4), (2.0, 0.4), (2.0, 1.3)])
def test_how_far_the_motion_has_come_counts_and_not_how_long_it_took(pace, share):
    """The chunk before was slowed by its limits, or not made as fast as it might have been."""
    way = np.linspace(0, 1, 8)[:, None] * np.array([0.3, 0, 0])
    fastest = np.linalg.norm(curved(way).curve.derivative().points, axis=1).max()
    join = Spline(ARM, 1, {"position": share * fastest}, pace=pace)
    before = join.accept(curved(way), None, 0.0)
    slower = before.facts["retimed"]
    assert slower > 1 / pace + 0.1
    # What the policy says 0.2 s later: the same way, from where the hand is then on.
    seen = 0.2 / slower
    rest = curved(way).curve
    rest = rest.continued(seen, rest.at(seen))
    rows = np.arange(int(rest.duration / 0.05) + 1) * 0.05
    actions = np.column_stack([rest.at(rows), np.where(seen + rows < 8 * 0.05, -1, 1)]).astype(np.float32)
    new = ActionChunk(actions, 0.2, 0.05, 0.2, rest, (0, 1, 2))
    joined = join.accept(new, before, 0.4)
    left = rest.duration - 0.2 / slower
    assert joined.curve.duration == pytest.approx(left * joined.facts["retimed"])
    # The gripper shuts where it would have.
    shut = [chunk.at(chunk.start + 0.05 * int(np.argmax(chunk.actions[:, 3] > 0)))[0] for chunk in (before, joined)]
    assert shut[0] == pytest.approx(shut[1], abs=0.3 * 0.05 / 0.75 * 1.5)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.5, 2.8), st.integers(0, 2**31))
def test_a_rotation_turns_no_faster_than_its_curve_was_accepted_for(angle, seed):
    """Columns between two rotations are shorter than 1: as far as they go, the rotation goes further."""
    turning = ActionSpec((group("rotation", "absolute", 6, rotation="rot6d"),))
    axis = np.random.default_rng(seed).normal(size=3)
    turns = np.linspace(0, angle, 8)[:, None] * axis / np.linalg.norm(axis)
    poses = Rotation.from_rotvec(turns[[0, 0, 0, 0, 7, 7, 7, 7]]).as_matrix()
    rows = np.stack([rot6d_from_matrix(one) for one in poses])
    curve = SplineCurve(rows, 4, 0.75)
    chunk = ActionChunk(curve.at(np.arange(16) * 0.05).astype(np.float32), 0.0, 0.05, 0.0, curve, tuple(range(6)))
    joined = Spline(turning, 1, {"rotation": 2.0}).accept(chunk, None, 0.0)
    if joined is None:
        return
    times = np.linspace(0, joined.curve.duration, 2000)
    columns = joined.curve.at(times).reshape(-1, 2, 3)
    first = columns[:, 0] / np.linalg.norm(columns[:, 0], axis=1, keepdims=True)
    second = columns[:, 1] - (first * columns[:, 1]).sum(1, keepdims=True) * first
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    poses = Rotation.from_matrix(np.stack([first, second, np.cross(first, second)], axis=2))
    speeds = (poses[1:] * poses[:-1].inv()).magnitude() / (times[1] - times[0])
    assert speeds.max() <= 2.0 * (1 + 1e-3)


def test_a_chunk_that_begins_too_fast_is_refused_and_the_plan_goes_on(caplog):
    way = np.linspace(0, 1, 8)[:, None] * np.array([0.3, 0, 0])
    old, new = curved(way), curved(-way, 0.2)
    schedule, alone = ActionSchedule(ARM, 0.05, Spline(ARM)), ActionSchedule(ARM, 0.05, Spline(ARM))
    for one in (schedule, alone):
        assert one.splice(old, 0.0)
    schedule._join = Spline(ARM, 1, {"position": 0.1})
    assert not schedule.splice(new, 0.3)
    assert "refused" in caplog.text
    for tick in range(6, 16):
        assert np.array_equal(schedule.command_at(tick * 0.05).values, alone.command_at(tick * 0.05).values)


def test_what_a_spline_cannot_join_is_refused():
    rows = ActionChunk(np.zeros((16, 4), np.float32), 0.0, 0.05, 0.0)
    with pytest.raises(SpecMismatch, match="expected a chunk with a curve, got rows alone"):
        Spline(ARM).accept(rows, None, 0.0)
    with pytest.raises(ValueError, match="expected absolute actions"):
        Spline(FLAT)
    with pytest.raises(ValueError, match="expected 0, 1 or 2, got 3"):
        Spline(ARM, 3)
    with pytest.raises(ValueError, match=r"loop\.pace: expected at least 1"):
        Spline(ARM, pace=0.5)
    with pytest.raises(ValueError, match=r"loop\.pace=2: expected a largest speed"):
        Spline(ARM, pace=2.0)
    few = curved(np.zeros((6, 3)))
    for before in (few, None):  # with the first chunk already, when nothing moves yet
        with pytest.raises(ValueError, match=r"loop\.continuity=2: expected at least 4 control points that .* 3 of 6"):
            Spline(ARM, 2).accept(few, before, 0.3)
