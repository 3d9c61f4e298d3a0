from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from envs.osc_arm import ABSOLUTE, delta_spec
from vla_runtime.data.statistics import of_rows
from vla_runtime.transforms import (
    ROTATIONS,
    Normalise,
    absolute_from_delta,
    axis_angle_from_matrix,
    delta_from_absolute,
    matrix_from_axis_angle,
    matrix_from_quaternion,
    matrix_from_rot6d,
    nearest_rotation,
    quaternion_from_matrix,
    rot6d_from_matrix,
)
from vla_runtime.types import ActionSpec, Group, StateSpec

ANGLES = [0.0, 1e-14, 1e-9, 1e-4, 1.0, np.pi - 1e-7, np.pi]


def rotations():
    yield from Rotation.random(200, random_state=0)
    for angle in ANGLES:
        for axis in np.eye(3):
            yield Rotation.from_rotvec(angle * axis)


def test_conventions_are_scipys():
    for rotation in rotations():
        matrix = rotation.as_matrix()
        np.testing.assert_allclose(matrix_from_rot6d(rot6d_from_matrix(matrix)), matrix, atol=1e-12)
        np.testing.assert_allclose(matrix_from_axis_angle(rotation.as_rotvec()), matrix, atol=1e-12)
        np.testing.assert_allclose(matrix_from_quaternion(quaternion_from_matrix(matrix)), matrix, atol=1e-12)
        np.testing.assert_allclose(matrix_from_quaternion(rotation.as_quat()), matrix, atol=1e-12)
        back = matrix_from_axis_angle(axis_angle_from_matrix(matrix))
        np.testing.assert_allclose(back, matrix, atol=1e-7)
        assert np.linalg.norm(axis_angle_from_matrix(matrix)) <= np.pi + 1e-9


def test_rot6d_is_the_first_two_columns_and_is_orthogonalised():
    matrix = Rotation.from_euler("xyz", [0.3, -0.7, 2.0]).as_matrix()
    np.testing.assert_array_equal(rot6d_from_matrix(matrix), np.concatenate([matrix[:, 0], matrix[:, 1]]))
    loose = matrix_from_rot6d(2.5 * rot6d_from_matrix(matrix) + 0.01)
    np.testing.assert_allclose(loose.T @ loose, np.eye(3), atol=1e-12)
    assert np.linalg.det(loose) == pytest.approx(1.0)


@pytest.mark.parametrize("values", [np.zeros(6), [1, 0, 0, 2, 0, 0]])
def test_no_rotation_is_an_error(values):
    with pytest.raises(ValueError, match="expected a rotation"):
        matrix_from_rot6d(values)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-1, 1, width=32), min_size=7, max_size=7), st.integers(0, 1000))
def test_delta_and_absolute_say_the_same(values, seed):
    delta = np.array(values, np.float32)
    position = np.random.default_rng(seed).uniform(-0.5, 0.5, 3)
    matrix = Rotation.random(random_state=seed).as_matrix()
    goal = absolute_from_delta(delta, position, matrix, delta_spec())
    assert goal.dtype == np.float32
    back = delta_from_absolute(goal, position, matrix, delta_spec())
    np.testing.assert_allclose(back, delta, atol=2e-5)


def test_far_goals_are_cut_to_the_range():
    goal = np.array([1, 0, 0, 1, 0, 0, 0, 1, 0, -1], np.float32)
    delta = delta_from_absolute(goal, np.zeros(3), np.eye(3), delta_spec())
    np.testing.assert_array_equal(delta, [1, 0, 0, 0, 0, 0, -1])


def statistics(size, **changes):
    base = {"min": -2.0, "max": 4.0, "q01": -1.0, "q99": 3.0}
    return {key: np.full(size, value) for key, value in {**base, **changes}.items()}


def test_normalising_is_paired_and_asks_the_kind():
    """Quantiles for deltas, extremes for absolute goals, a gripper as it is."""
    delta = Normalise.of(delta_spec(), statistics(7))
    np.testing.assert_array_equal(delta.low, [-1.0] * 6 + [-1.0])
    np.testing.assert_array_equal(delta.high, [3.0] * 6 + [1.0])
    absolute = Normalise.of(ABSOLUTE, statistics(10))
    np.testing.assert_array_equal(absolute.low, [-2.0] * 9 + [-1.0])
    values = np.random.default_rng(0).uniform(-2, 4, (50, 10)).astype(np.float32)
    values[:, 9] = np.sign(values[:, 9])
    np.testing.assert_allclose(absolute.backward(absolute.forward(values)), values, atol=1e-6)
    assert np.abs(delta.forward(np.full(7, 99, np.float32))).max() == 1


def test_the_rarest_states_stay_apart():
    """Fingers closed on nothing lie beyond the quantiles of fingers that hold: a policy must see the difference."""
    state = StateSpec((Group("fingers", ("left",), "measured", "m", (-1.0,), (1.0,)),))
    found = {"min": [0.0], "max": [0.04], "q01": [0.019], "q99": [0.04]}
    normalise = Normalise.of(state, found)
    closed, holding = (normalise.forward(np.array([value], np.float32))[0] for value in (0.0, 0.019))
    assert (closed, holding) == (-1, pytest.approx(-0.05, abs=1e-6))


def test_what_moves_seldom_can_still_be_said():
    """A base that hardly ever turns: its quantiles are equal, its extremes are not."""
    normalise = Normalise.of(delta_spec(), statistics(7, q01=0.0, q99=0.0, min=-0.5, max=1.0))
    turns = np.array([0, 0, 0, 0, 0, 0.8, 1], np.float32)
    np.testing.assert_allclose(normalise.backward(normalise.forward(turns)), turns, atol=1e-6)
    never = Normalise.of(delta_spec(), statistics(7, q01=0.0, q99=0.0, min=0.0, max=0.0))
    np.testing.assert_array_equal(never.forward(turns)[:6], np.zeros(6))


def one_dimension(kind, values, low=-1.0, high=1.0):
    """The transform of a data set with these values."""
    group = Group("joint", ("a",), kind, "rad", (low,), (high,))
    spec = StateSpec((group,)) if kind == "measured" else ActionSpec((group,))
    return Normalise.of(spec, of_rows(np.asarray(values, np.float32)[:, None]))


@pytest.mark.parametrize("jitter", [0.0, 1e-6, 1e-4, 1e-3, 1e-2])
def test_rare_large_motion_is_kept(jitter):
    """0.8 % of the rows turn hard, the rest trembles: quantiles are those of the trembling."""
    values = np.random.default_rng(0).normal(size=5000) * jitter
    values[::125] = 0.8
    normalise = one_dimension("velocity", values)
    turn = np.array([0.8], np.float32)
    np.testing.assert_allclose(normalise.backward(normalise.forward(turn)), turn, rtol=1e-6)


def test_ordinary_tails_are_cut_as_before():
    values = np.random.default_rng(0).normal(size=5000) * 0.1
    normalise = one_dimension("velocity", values)
    low, high = np.quantile(values, [0.01, 0.99])
    assert (normalise.low[0], normalise.high[0]) == (pytest.approx(low, rel=1e-5), pytest.approx(high, rel=1e-5))


@pytest.mark.parametrize(
    ("kind", "middle", "noise", "high"),
    [
        ("measured", 1.0, 1e-7, 3.0),
        ("absolute", 1.0, 1e-6, np.inf),
        ("velocity", 0.0, 1e-7, 1.0),
        ("measured", 4000.0, 2e-4, np.inf),
        ("measured", 0.02, 1e-7, 0.05),
    ],
)
def test_noise_on_what_stands_still_is_not_blown_up(kind, middle, noise, high):
    values = middle + np.random.default_rng(0).normal(size=1000) * noise
    normalise = one_dimension(kind, values, -high, high)
    near = np.array([[middle - 3 * noise], [middle], [middle + 1e-3]], np.float32)
    np.testing.assert_array_equal(normalise.forward(near), np.zeros((3, 1)))
    np.testing.assert_allclose(normalise.backward(normalise.forward(near)), middle, rtol=1e-6, atol=4 * noise)


@pytest.mark.parametrize(("width", "high"), [(1e-3, np.inf), (1e-3, 1000.0), (1e-5, 0.04), (2.0, 3.0)])
def test_small_motion_is_motion(width, high):
    values = np.linspace(0, width, 100)
    normalise = one_dimension("absolute", values, -high, high)
    np.testing.assert_allclose(normalise.forward(np.array([0, width], np.float32)), [-1, 1], atol=1e-6)


def test_what_never_varied_comes_back():
    flat = Normalise([2.0, 0.0], [2.0, 1.0])
    np.testing.assert_array_equal(flat.forward(np.array([2.0, 0.5], np.float32)), [0, 0])
    np.testing.assert_array_equal(flat.backward(np.array([0.7, 0.0], np.float32)), [2.0, 0.5])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normalise.of(delta_spec(), {"min": [0] * 7}), "expected 'max'"),
        (lambda: Normalise.of(delta_spec(), statistics(6)), "expected 7 numbers, got 6"),
        (lambda: Normalise([1.0], [0.0]), "low <= high"),
        (lambda: Normalise([np.nan], [0.0]), "finite"),
    ],
)
def test_missing_statistics_are_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("rotation", ["quaternion_xyzw", "axis_angle", "rot6d"])
def test_the_nearest_rotation_is_the_same_rotation_and_no_other_is_nearer(rotation):
    decode, encode = ROTATIONS[rotation]
    generator = np.random.default_rng(3)
    for _ in range(100):
        matrix = matrix_from_axis_angle(generator.uniform(-3, 3, 3))
        values, near = encode(matrix), generator.uniform(-9, 9, len(encode(matrix)))
        found = nearest_rotation(values, near, rotation)
        np.testing.assert_allclose(decode(found), matrix, atol=1e-9)
        others = [values, -values] if rotation == "quaternion_xyzw" else [values]
        if rotation == "axis_angle":
            axis = values / np.linalg.norm(values)
            others = [values + 2 * np.pi * turns * axis for turns in range(-4, 5)]
        assert np.linalg.norm(found - near) <= min(np.linalg.norm(one - near) for one in others) + 1e-9


def test_a_whole_turn_is_about_the_axis_of_before():
    near = np.array([0.0, 6.2, 0.1])
    found = nearest_rotation([1e-9, 0.0, 0.0], near, "axis_angle")
    np.testing.assert_allclose(found, near / np.linalg.norm(near) * 2 * np.pi, atol=1e-8)
    np.testing.assert_allclose(nearest_rotation(np.zeros(3), np.zeros(3), "axis_angle"), np.zeros(3))
