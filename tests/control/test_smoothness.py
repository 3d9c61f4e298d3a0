"""Seams, jerk and lag of motions whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest

from vla_runtime.control.smoothness import smoothness
from vla_runtime.transforms import matrix_from_axis_angle, rot6d_from_matrix
from vla_runtime.types import ActionSpec, Group, StateSpec

PERIOD = 0.05


def group(name, kind, size, **options):
    return Group(name, tuple(f"{name}{i}" for i in range(size)), kind, "m", (-9.0,) * size, (9.0,) * size, **options)


GOALS = ActionSpec((group("position", "absolute", 3), group("gripper", "binary", 1, open=-1.0, close=1.0)))
POSE = StateSpec((group("position", "measured", 3),))


def line(steps, speed=0.01):
    goals = np.zeros((steps, 4))
    goals[:, 0] = speed * np.arange(steps)
    return goals


def test_a_straight_line_has_no_seam_and_no_jerk():
    goals = line(80)
    found = smoothness(GOALS, POSE, goals, np.zeros((80, 3)), [20, 40], PERIOD)["position"]
    assert found["step"] == pytest.approx(0.01)
    assert found["seam_jump"] == pytest.approx(0.01)
    assert found["seam_velocity_jump"] == pytest.approx(0, abs=1e-9)
    assert found["jerk"] == pytest.approx(0, abs=1e-6)


def test_a_jump_at_a_seam_is_told_and_a_gripper_is_not():
    goals = line(80)
    goals[40:, 1] += 0.05
    goals[40:, 3] = 1
    found = smoothness(GOALS, POSE, goals, np.zeros((80, 3)), [40], PERIOD)
    assert set(found) == {"position"}
    assert found["position"]["seam_jump"] == pytest.approx(np.hypot(0.01, 0.05))
    assert found["position"]["seam_velocity_jump"] == pytest.approx(0.05 / PERIOD)
    assert found["position"]["jerk"] > 10


def test_a_bend_is_told_also_where_the_new_chunk_begins_at_the_old_ones_place():
    """A curve that takes over the position alone: its first command is the last one's next."""
    goals = line(80)
    goals[41:, 0], goals[41:, 1] = goals[40, 0], 0.01 * np.arange(1, 40)
    found = smoothness(GOALS, POSE, goals, np.zeros((80, 3)), [40], PERIOD)["position"]
    assert found["seam_jump"] == pytest.approx(0.01)
    assert found["seam_velocity_jump"] == pytest.approx(np.sqrt(2) * 0.01 / PERIOD)
    # A seam in the last tick has no period after it.
    assert smoothness(GOALS, POSE, line(80), np.zeros((80, 3)), [79], PERIOD)["position"]["seam_velocity_jump"] < 1e-9


@pytest.mark.parametrize("lag", [1, 3, 8])
def test_a_robot_that_follows_late_lags(lag):
    goals = line(120)
    goals[:, 1] = np.sin(np.arange(120) / 7)
    states = np.zeros((120, 3))
    states[lag:] = goals[:-lag, :3]
    assert smoothness(GOALS, POSE, goals, states, [], PERIOD)["position"]["lag"] == pytest.approx(lag * PERIOD)
    assert smoothness(GOALS, POSE, line(120, 0.0), states, [], PERIOD)["position"]["lag"] is None


def test_rotations_are_angles_and_velocities_are_steps_already():
    spec = ActionSpec((group("rotation", "absolute", 6, rotation="rot6d"),))
    turns = [rot6d_from_matrix(matrix_from_axis_angle([0, 0, 0.02 * k + (0.3 if k > 10 else 0)])) for k in range(20)]
    found = smoothness(spec, POSE, turns, np.zeros((20, 3)), [11], PERIOD)["rotation"]
    assert found["step"] == pytest.approx(0.02, abs=1e-6)
    assert found["seam_jump"] == pytest.approx(0.32, abs=1e-6)
    moving = ActionSpec((group("joint", "velocity", 2),))
    rows = np.ones((10, 2))
    rows[5:, 0] = 3
    found = smoothness(moving, POSE, rows, np.zeros((10, 3)), [5], PERIOD)["joint"]
    assert found["seam_jump"] == pytest.approx(2)
    assert found["lag"] is None


def test_nothing_gives_nothing():
    assert set(smoothness(GOALS, POSE, [], [], [], PERIOD)["position"].values()) == {None}
