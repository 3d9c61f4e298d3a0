"""BEAST's criteria S2 to S6 and S8."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.tokenizers.bspline import BSpline
from vla_runtime.spline import basis


def chunks(number=64, rows=16, size=10, seed=0):
    """Smooth random motion with a binary last dimension that may switch."""
    generator = np.random.default_rng(seed)
    time = np.linspace(0, 1, rows)[None, :, None]
    phase, speed = generator.uniform(0, 6, (2, number, 1, size))
    actions = (0.8 * np.sin(phase + speed * time)).astype(np.float32)
    switch = generator.integers(0, rows + 1, number)
    actions[..., -1] = np.where(np.arange(rows) < switch[:, None], -1, 1)
    return actions


def fitted(rows=16, size=10, num_basis=8, margin=0.0, **rest):
    return BSpline(rows, size, num_basis, binary=(size - 1,), **rest).with_bounds_of(chunks(256, rows, size), margin)


def test_fit_equals_the_dense_solution():
    actions = torch.from_numpy(chunks())
    tokenizer = BSpline(16, 10, binary=(9,))
    points = tokenizer.control_points(actions)
    for dims, degree in ((slice(0, 9), 4), (slice(9, 10), 0)):
        phi = basis(np.linspace(0, 1, 16), 8, degree)
        gram = phi.T @ phi + 1e-4 * np.eye(8)
        for one, rows in zip(points, actions, strict=True):
            np.testing.assert_allclose(one[:, dims], np.linalg.solve(gram, phi.T @ rows.numpy()[:, dims]), atol=1e-5)


def test_a_curve_in_the_span_comes_back():
    points = torch.randn(32, 8, 10, generator=torch.Generator().manual_seed(0))
    tokenizer = BSpline(16, 10, binary=(9,), ridge=0.0)
    np.testing.assert_allclose(tokenizer.control_points(tokenizer.rows_of(points)), points, atol=2e-4)


def test_quantisation_error_is_bounded_by_the_slots_width():
    tokenizer = fitted()
    actions = torch.from_numpy(chunks(256))
    continuous = tokenizer.rows_of(tokenizer.control_points(actions))
    decoded = tokenizer.decode(tokenizer.encode(actions))
    bound = (tokenizer.high - tokenizer.low).amax(0) / 510
    assert ((decoded - continuous).abs() <= bound + 1e-5).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31))
def test_ids_survive_and_bounds_are_reached(seed):
    tokenizer = fitted()
    ids = torch.randint(0, 256, (4, 80), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(tokenizer.quantise(tokenizer.dequantise(ids)), ids)
    np.testing.assert_allclose(tokenizer.dequantise(torch.zeros(1, 80, dtype=torch.long))[0], tokenizer.low, atol=1e-6)
    np.testing.assert_allclose(tokenizer.dequantise(torch.full((1, 80), 255))[0], tokenizer.high, atol=1e-5)


@pytest.mark.parametrize(("size", "num_basis"), [(7, 5), (7, 10), (8, 15), (14, 15)])
def test_token_order_is_basis_major(size, num_basis):
    """Token n * A + d moves control point n of dimension d and nothing else (golden by construction)."""
    tokenizer = fitted(rows=20, size=size, num_basis=num_basis)
    middle = torch.full((1, num_basis * size), 100)
    reference = tokenizer.dequantise(middle)
    for n, d in ((0, 0), (0, size - 1), (num_basis - 1, 0), (2, 3)):
        ids = middle.clone()
        ids[0, n * size + d] = 200
        moved = (tokenizer.dequantise(ids) - reference)[0].nonzero().tolist()
        assert moved == [[n, d]]


def test_the_gripper_is_piecewise_constant_and_the_arm_is_not():
    tokenizer = fitted()
    rows = tokenizer.decode(torch.randint(0, 256, (8, 80), generator=torch.Generator().manual_seed(0)))
    gripper = rows[..., -1]
    # 16 rows on 8 equal intervals: each of the 8 values is held.
    assert all(len(set(one.tolist())) <= 8 for one in gripper)
    assert (rows[..., 0].diff() != 0).all()


def test_a_constant_slot_is_not_divided_by_nothing():
    flat = np.zeros((4, 16, 10), np.float32)
    tokenizer = BSpline(16, 10, binary=(9,)).with_bounds_of(flat)
    np.testing.assert_allclose(tokenizer.decode(tokenizer.encode(torch.from_numpy(flat))), flat, atol=1e-6)


def test_any_grid_and_the_curve_agree():
    tokenizer = fitted()
    points = tokenizer.control_points(torch.from_numpy(chunks(1)))
    rows = tokenizer.rows_of(points)[0].numpy()
    fine = tokenizer.rows_of(points, np.linspace(0, 1, 151))[0].numpy()
    np.testing.assert_allclose(rows[:, :9], fine[::10, :9], atol=1e-5)
    curve = tokenizer.curve(tokenizer.rows_of(points)[0].numpy(), period=0.05)
    np.testing.assert_allclose(curve.at(np.arange(16) * 0.05), rows[:, :9], atol=1e-5)


def test_state_makes_it_again_and_survives_json():
    tokenizer = fitted(margin=0.1)
    again = BSpline(**json.loads(json.dumps(tokenizer.state())))
    actions = torch.from_numpy(chunks(8, seed=1))
    assert torch.equal(again.encode(actions), tokenizer.encode(actions))
    assert torch.equal(again.decode(again.encode(actions)), tokenizer.decode(tokenizer.encode(actions)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BSpline(4, 7, num_basis=8), "at least as many rows"),
        (lambda: BSpline(16, 7, num_basis=3, degree=2), "at least 4 basis"),
        (lambda: BSpline(16, 7, num_basis=4, degree=4), "degree < number"),
        (lambda: BSpline(16, 7, binary=(7,)), "binary dimensions"),
        (lambda: BSpline(16, 7, low=[[0.0] * 7] * 8), "both low and high"),
        (lambda: BSpline(16, 7, low=[[0.0]], high=[[1.0]]), r"low \[8, 7\]"),
        (lambda: BSpline(16, 7).encode(torch.zeros(1, 16, 7)), "with_bounds_of"),
        (lambda: BSpline(16, 7).with_bounds_of([]), "got none"),
        (lambda: BSpline(16, 7).control_points(torch.full((1, 16, 7), torch.inf)), "infinity"),
        (lambda: fitted().decode(torch.zeros(1, 79, dtype=torch.long)), r"ids \[B, 80\]"),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_does_not_move_tokens(dtype):
    tokenizer, actions = fitted(), torch.from_numpy(chunks(32))
    plain = tokenizer.encode(actions)
    with torch.autocast("cpu", dtype):
        assert torch.equal(tokenizer.encode(actions), plain)
        assert tokenizer.control_points(actions).dtype == torch.float32
