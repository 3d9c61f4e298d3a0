"""Skills are functions of the state: what they ask for in each of the situations an expert meets."""

import numpy as np
import pytest

from envs.experts.skills import (
    CLOSE,
    OPEN,
    STEP,
    TURN,
    Grasp,
    Hand,
    Manner,
    Target,
    carry,
    choose_yaw,
    lift,
    pick_and_place,
    pointing_down,
    reach,
    retreat,
    step,
)
from vla_runtime.transforms import axis_angle_from_matrix

UNI = Manner()
THING = np.array([0.1, 0.0, 0.82])
GRASP = Grasp(THING, yaw=0.0, top=0.84)
TARGET = Target(np.array([0.1, 0.2, 0.82]), clear=0.92)


def hand(position, yaw=0.0, opening=0.08, rate=0.0, touching=False):
    return Hand(np.array(position, float), pointing_down(yaw), opening, rate, touching)


def test_pointing_down_is_a_rotation_that_points_down():
    rotation = pointing_down(0.3)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    np.testing.assert_allclose(rotation[:, 2], [0, 0, -1])
    assert hand([0, 0, 0], yaw=0.3).yaw == pytest.approx(0.3)


def test_no_step_is_longer_than_a_delta_action_can_say():
    rng = np.random.default_rng(0)
    for _ in range(50):
        at = hand(rng.uniform(-1, 1, 3), yaw=rng.uniform(-3, 3))
        speed = rng.uniform(0.2, 1)
        goal = step(at, rng.uniform(-1, 1, 3), pointing_down(rng.uniform(-3, 3)), OPEN, speed)
        assert np.linalg.norm(goal.position - at.position) <= speed * STEP + 1e-9
        assert np.linalg.norm(axis_angle_from_matrix(goal.rotation @ at.rotation.T)) <= speed * TURN + 1e-9


def test_far_away_the_hand_travels_open_above_the_thing():
    at = hand([-0.1, 0.1, 0.95])
    goal = reach(at, GRASP, UNI)
    assert goal.gripper == OPEN
    assert goal.position[0] > at.position[0]
    assert goal.position[1] < at.position[1]


def test_a_low_hand_beside_the_thing_rises_before_it_moves_sideways():
    at = hand([0.0, 0.0, 0.815])
    goal = reach(at, GRASP, UNI)
    assert goal.position[2] > at.position[2] + 0.01
    np.testing.assert_allclose(goal.position[:2], at.position[:2], atol=1e-6)


@pytest.mark.parametrize("wrong", [{"yaw": 0.4}, {"opening": 0.03}])
def test_the_hand_does_not_go_down_turned_or_closed(wrong):
    goal = reach(hand([0.1, 0.0, 0.865], **wrong), GRASP, UNI)
    assert goal.position[2] > 0.855
    assert goal.gripper == OPEN


def test_aligned_it_goes_down_and_low_it_closes():
    down = reach(hand([0.102, 0.0, 0.87]), GRASP, UNI)
    assert down.position[2] < 0.85
    assert down.gripper == OPEN
    assert reach(hand([0.102, 0.0, 0.824]), GRASP, UNI).gripper == CLOSE


def test_the_funnel_is_wider_for_a_hand_that_is_low():
    """Fifteen millimetres off: too far to start going down, not too far to stay down."""
    assert reach(hand([0.115, 0.0, 0.87]), GRASP, UNI).position[2] > 0.85
    assert reach(hand([0.115, 0.0, 0.825]), GRASP, UNI).gripper == CLOSE


def test_a_moving_thing_is_led_until_it_is_touched():
    moving = Grasp(THING, yaw=0.0, top=0.84, velocity=np.array([0.1, 0.0, 0.0]))
    above = hand([0.1, 0.0, 0.88])
    assert reach(above, moving, UNI).position[0] > reach(above, GRASP, UNI).position[0] + 0.01
    touching = hand([0.1, 0.0, 0.822], touching=True, rate=-0.1)
    np.testing.assert_allclose(reach(touching, moving, UNI).position, reach(touching, GRASP, UNI).position)


def test_pick_and_place_in_order_and_from_the_middle():
    def goal(at, thing):
        return pick_and_place(at, np.array(thing), GRASP, TARGET, UNI)

    # Held on the table: straight up. Held high: across. Over the target: down. There: let go. Let go: away.
    up = goal(hand([0.1, 0.0, 0.82], opening=0.04, touching=True), THING)
    assert up.gripper == CLOSE
    assert up.position[2] > 0.85
    np.testing.assert_allclose(up.position[:2], [0.1, 0.0], atol=1e-6)
    across = goal(hand([0.1, 0.0, 0.92], opening=0.04, touching=True), [0.1, 0.0, 0.92])
    assert across.gripper == CLOSE
    assert across.position[1] > 0.03
    down = goal(hand([0.1, 0.2, 0.92], opening=0.04, touching=True), [0.1, 0.2, 0.92])
    assert down.gripper == CLOSE
    assert down.position[2] < 0.9
    release = goal(hand([0.1, 0.2, 0.82], opening=0.04, touching=True), [0.1, 0.2, 0.822])
    assert release.gripper == OPEN
    assert release.position[2] == pytest.approx(0.82)
    away = goal(hand([0.1, 0.2, 0.82]), [0.1, 0.2, 0.82])
    assert away.gripper == OPEN
    assert away.position[2] > 0.84
    # Dropped on the way: the hand opens and goes back for it.
    dropped = goal(hand([0.1, 0.1, 0.92], opening=0.01), [0.1, 0.1, 0.82])
    assert dropped.gripper == OPEN


def test_a_held_thing_is_carried_by_where_it_is_not_by_where_it_was_grasped():
    at = hand([0.1, 0.2, 0.92], opening=0.04, touching=True)
    slipped = np.array([0.09, 0.2, 0.9])
    assert carry(at, slipped, TARGET, UNI).position[0] > 0.1


def test_retreat_waits_for_free_fingers():
    busy = hand([0, 0, 0.82], opening=0.05, rate=0.1, touching=True)
    assert retreat(busy, 1.0, UNI).position[2] == pytest.approx(0.82)
    assert retreat(hand([0, 0, 0.82]), 1.0, UNI).position[2] > 0.85
    assert lift(busy, 1.0, UNI).gripper == CLOSE


def test_closing_fingers_do_not_hold_yet():
    assert not hand([0, 0, 0], rate=-0.1, touching=True).holding
    assert hand([0, 0, 0], rate=0.0, touching=True).holding


def test_yaws_stay_within_reach_and_keep_what_was_chosen():
    home = np.pi / 2
    for option in np.linspace(-6, 6, 25):
        chosen = choose_yaw([option], home, home, home)
        assert abs(chosen - home) <= np.pi / 2 + 0.35
        assert np.sin(chosen - option) == pytest.approx(0.0, abs=1e-9)
    # Two faces equally near: the present one is kept.
    faces = [home + np.pi / 4, home - np.pi / 4]
    assert choose_yaw(faces, faces[0] - 0.1, home, home) == pytest.approx(faces[0])
    assert choose_yaw(faces, faces[1] + 0.1, home, home) == pytest.approx(faces[1])
    # A neighbour along one face: the fingers take the other.
    near = 0.07 * np.array([np.cos(home), np.sin(home)])
    assert choose_yaw([home, 0.0], home, home, home, avoid=near) == pytest.approx(0.0)


def test_manners_are_drawn_from_the_seed():
    assert Manner.drawn(1, "uni") == Manner.drawn(2, "uni") == Manner()
    assert Manner.drawn(1, "multi") == Manner.drawn(1, "multi") != Manner.drawn(2, "multi")
    with pytest.raises(ValueError, match="uni or multi"):
        Manner.drawn(0, "mutli")
