from __future__ import annotations

import numpy as np
import pytest

from envs.osc_arm import ABSOLUTE, delta_spec
from vla_runtime.types import ActionChunk, ActionSpec, CameraSpec, Group, PolicySpec, SpecMismatch, StateSpec


def group(name="a", kind="delta", dims=("x", "y"), low=(-1.0, -1.0), high=(1.0, 1.0), **rest):
    return Group(name, dims, kind, "1", low, high, **rest)


def test_chunk_is_a_function_of_time():
    chunk = ActionChunk(np.arange(6, dtype=np.float32).reshape(3, 2), start=1.0, period=0.1, observed=1.0)
    assert chunk.end == pytest.approx(1.3)
    assert chunk.at(0.99) is None
    assert chunk.at(1.3) is None
    for tick in range(3):
        # As a loop computes it, in another order than the chunk does.
        np.testing.assert_array_equal(chunk.at(0.5 + (5 + tick) * 0.1), chunk.actions[tick])
    np.testing.assert_array_equal(chunk.at(1.19), chunk.actions[1])


@pytest.mark.parametrize("ticks", [10_000])
def test_every_tick_gets_its_own_row(ticks):
    chunk = ActionChunk(np.zeros((ticks, 1), np.float32), 0.0, 0.05, 0.0)
    assert [chunk.row(0.0 + n * 0.05) for n in range(ticks)] == list(range(ticks))


def test_hold_by_kind():
    last = np.full(10, 0.5, np.float32)
    np.testing.assert_array_equal(ABSOLUTE.hold(last), last)
    held = delta_spec().hold(np.full(7, 0.5, np.float32))
    np.testing.assert_array_equal(held, [0, 0, 0, 0, 0, 0, 0.5])
    assert held.dtype == np.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(6, np.float32), r"float32 \[7\].*got float32 \[6\]"),
        (np.zeros(7), "got float64"),
        ([0.0] * 7, "got list"),
        (np.array([0, 0, 0, 0, np.nan, 0, 0], np.float32), r"dimension 4 \(rotation.y\)"),
        (np.array([np.inf, 0, 0, 0, 0, 0, 0], np.float32), r"dimension 0 \(position.x\)"),
        (np.array([np.inf, -np.inf, 0, 0, 0, 0, 0], np.float32), r"dimension 0"),
    ],
)
def test_wrong_actions_are_named(values, message):
    with pytest.raises(SpecMismatch, match=message):
        delta_spec().validate(values)


def test_huge_but_finite_values_pass():
    delta_spec().validate(np.full(7, 3e38, np.float32))


def test_clamp_counts_dimensions():
    inside, moved = delta_spec().clamp(np.array([2, 0, -3, 0, 0, 0, 1], np.float32))
    assert moved == 2
    np.testing.assert_array_equal(inside, [1, 0, -1, 0, 0, 0, 1])
    assert inside.dtype == np.float32


def test_camera_names_expected_and_got():
    camera = CameraSpec("wrist", 4, 6)
    camera.validate(camera.example())
    with pytest.raises(SpecMismatch, match=r"'wrist': expected uint8 \[4, 6, 3\], got float32 \[3, 4, 6\]"):
        camera.validate(np.zeros((3, 4, 6), np.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: group(kind="jerk"), "kind"),
        (lambda: group(low=(-1.0,)), r"low: expected as many numbers as dims \(2\), got 1"),
        (lambda: group(rotation="rot6d"), "rotation: expected 6 dims for rot6d, got 2"),
        (lambda: group(low=(2.0, 0.0)), "expected low <= high"),
        (lambda: ActionSpec((group(kind="measured"),)), "action group"),
        (lambda: StateSpec((group(), group())), "must differ"),
        (lambda: PolicySpec("p", (), StateSpec(()), delta_spec(), 0.1, 1, observation_offsets=(0, -1)), "ascending"),
        (lambda: PolicySpec("p", (), StateSpec(()), delta_spec(), 0.1, 0), "horizon"),
    ],
)
def test_specs_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()
