"""Means by kind, and the three joins that take them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_runtime.control.joins import Adaptive, Blend, Ensemble, Live, Mean, Newest, mean_rotation
from vla_runtime.transforms import rot6d_from_matrix
from vla_runtime.types import ActionChunk, ActionSpec, Group

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
