"""Grasps of plain shapes, without a simulator."""

import itertools

import numpy as np
import pytest

from envs.experts.grasps import (
    BLOCKED,
    FLOOR,
    OPENING,
    PALM_HEIGHT,
    SLIDE,
    WRIST_REACH,
    candidates,
    grasp_height,
    intrusions,
    reachable_yaw,
    turns,
)


def box(size, at=(0.0, 0.0), yaw=0.0, bottom=0.0):
    """Corners [8, 3] of a box of full `size` that stands at `at`."""
    corners = np.array(list(itertools.product((-0.5, 0.5), repeat=3))) * size
    c, s = np.cos(yaw), np.sin(yaw)
    corners = corners @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    return corners + (*at, bottom + size[2] / 2)


def stands_free(candidate, neighbours):
    axis = np.array([[np.cos(candidate.yaw), np.sin(candidate.yaw)]])
    return intrusions(candidate.position[None, :2], candidate.position[2], axis, neighbours)[0] == 0.0


@pytest.mark.parametrize("yaw", np.linspace(-1.5, 1.5, 7))
@pytest.mark.parametrize("at", [(0.0, 0.0), (0.1, -0.2)])
def test_a_long_box_is_taken_across(yaw, at):
    best = candidates([box((0.08, 0.042, 0.018), at, yaw)])[0]
    assert turns(best.yaw, yaw + np.pi / 2) < np.deg2rad(6.0)
    assert best.width < 0.055
    np.testing.assert_allclose(best.position[:2], at, atol=1e-6)
    assert FLOOR <= best.position[2] < 0.018


@pytest.mark.parametrize("preferred", [0.0, np.pi / 2])
def test_a_square_bottle_is_taken_as_preferred_near_its_top(preferred):
    best = candidates([box((0.05, 0.05, 0.14))], preferred=preferred)[0]
    assert turns(best.yaw, preferred) < 1e-6
    assert 0.14 - PALM_HEIGHT < best.position[2] < 0.13


def test_every_candidate_fits_and_the_best_comes_first():
    found = candidates([box((0.09, 0.05, 0.03), yaw=0.4)])
    assert found
    assert all(candidate.width <= OPENING - 0.01 for candidate in found)
    assert [candidate.cost for candidate in found] == sorted(candidate.cost for candidate in found)
    assert candidates([box((0.09, 0.09, 0.03))]) == []


def test_only_what_lies_between_the_pads_must_fit():
    foot, neck = box((0.12, 0.12, 0.02)), box((0.04, 0.04, 0.10), bottom=0.02)
    assert candidates([foot]) == []
    assert candidates([foot, neck])[0].width == pytest.approx(0.04, abs=1e-6)
    # A pole that leans is as wide as it is at the pads, not as the ground it covers.
    c, s = np.cos(0.5), np.sin(0.5)
    lean = box((0.03, 0.03, 0.15)) @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    assert np.ptp(lean[:, 0]) > OPENING
    assert candidates([lean], preferred=0.0)[0].width < 0.06


def test_the_hand_turns_away_from_a_tall_neighbour_and_over_a_low_one():
    low_box = [box((0.08, 0.042, 0.018))]
    tall, flat = [box((0.05, 0.05, 0.15), at=(0.03, 0.09))], [box((0.05, 0.05, 0.015), at=(0.03, 0.09))]
    free, hindered = candidates(low_box, [flat])[0], candidates(low_box, [tall])[0]
    assert turns(free.yaw, np.pi / 2) < 1e-6
    assert not stands_free(free, [tall])
    assert stands_free(hindered, [tall])
    assert hindered.cost < BLOCKED


def test_a_long_thing_under_a_ledge_is_taken_at_its_free_end():
    bottle, ledge = [box((0.05, 0.15, 0.05))], [box((0.3, 0.02, 0.05), at=(0.0, 0.04), bottom=0.06)]
    assert abs(candidates(bottle)[0].position[1]) < 1e-6
    best = candidates(bottle, [ledge])[0]
    assert -SLIDE <= best.position[1] < -0.01
    assert stands_free(best, [ledge])


@pytest.mark.parametrize("current", [np.pi / 4, 3 * np.pi / 4])
def test_the_present_yaw_settles_a_tie(current):
    best = candidates([box((0.06, 0.06, 0.1), yaw=np.pi / 4)], preferred=np.pi / 2, current=current)[0]
    assert turns(best.yaw, current) < 1e-6


def test_the_hand_turns_the_short_way_unless_the_wrist_ends_there():
    for yaw, current, wrist in itertools.product(np.linspace(-7, 7, 57), (-0.5, 1.57, 3.1), (-2.5, 0.8, 2.5)):
        chosen = reachable_yaw(yaw, current, wrist)
        assert turns(chosen, yaw) < 1e-9
        assert abs(chosen - current) <= np.pi + 1e-9
        assert abs(wrist - (chosen - current)) <= WRIST_REACH + 0.11
    assert reachable_yaw(3.0, 0.0, 0.0) == pytest.approx(3.0 - np.pi)
    assert reachable_yaw(1.0, 0.0, -2.0) == pytest.approx(1.0 - np.pi)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.008), (0.0, 0.018), (0.0, 0.146), (0.9, 0.95)])
def test_pads_go_deep_but_never_to_the_floor(low, high):
    height = grasp_height(low, high)
    assert min(low + FLOOR, high) <= height <= high
    assert high - height < PALM_HEIGHT
