"""What is said of a tokenizer is what encoding and decoding does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from policies.fit_report import (
    GOOD_ENOUGH,
    fit_report,
    range_report,
    range_text,
    report_text,
    suggested_num_basis,
    switch_errors,
)
from policies.tokenizers.bins import Bins
from policies.tokenizers.bspline import BSpline
from vla_runtime.transforms import Normalise
from vla_runtime.types import ActionSpec, Group

ACTION = ActionSpec(
    (
        Group("position", ("x", "y"), "absolute", "m", (-1.0, -1.0), (1.0, 1.0)),
        Group("gripper", ("gripper",), "binary", "", (-1.0,), (1.0,), open=-1.0, close=1.0),
    )
)
# Half a metre is 1 in x, two metres in y.
UNITS = Normalise([-0.5, -2, -1], [0.5, 2, 1])


def chunks(frequency, number=6, rows=16):
    generator = np.random.default_rng(0)
    time = np.linspace(0, 1, rows)
    values = 0.9 * np.sin(generator.uniform(0, 6, (number, 1, 3)) + frequency * time[None, :, None])
    values[..., 2] = np.where(np.arange(rows) < generator.integers(1, rows, (number, 1)), -1, 1)
    return torch.from_numpy(values.astype(np.float32))


@pytest.mark.parametrize("name", ["bins", "bspline"])
def test_errors_are_those_of_a_round_trip(name):
    data = chunks(3.0)
    tokenizer = Bins(16, 3) if name == "bins" else BSpline(16, 3, binary=[2]).with_bounds_of(data.numpy())
    report = fit_report(tokenizer, data, ACTION, UNITS)
    error = (tokenizer.decode(tokenizer.encode(data)) - data).numpy()
    for index, (name, half) in enumerate({"position.x": 0.5, "position.y": 2.0}.items()):
        found = report["dimensions"][name]
        assert found["max"] == pytest.approx(half * np.abs(error[..., index]).max(), rel=1e-3)
        assert found["rms"] == pytest.approx(half * np.sqrt((error[..., index] ** 2).mean()), rel=1e-3)
        assert found["normalised_mse"] == pytest.approx((error[..., index] ** 2).mean(), rel=1e-3)
    assert report["normalised_mse"] == pytest.approx((error[..., :2] ** 2).mean(), rel=1e-3)
    assert report["tokens"] == tokenizer.num_tokens
    json.dumps(report)
    assert "6 chunks" in report_text(report)


def test_the_suggested_number_is_the_smallest_that_is_good_enough():
    slow, fast = chunks(2.0), chunks(25.0)
    spline = BSpline(16, 3, binary=[2])
    assert suggested_num_basis(spline, slow) == 5
    number = suggested_num_basis(spline, fast)
    assert number > 5
    for count, good in ((number - 1, False), (number, True)):
        one = BSpline(16, 3, num_basis=count, binary=[2])
        error = (one.rows_of(one.control_points(fast)) - fast)[..., :2].square().mean()
        assert (float(error) < GOOD_ENOUGH) == good


def test_switches_are_counted_in_rows():
    truth = np.array([[-1, -1, 1, 1, 1, -1], [-1, -1, -1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], np.float32)[..., None]
    answer = np.array([[-1, -1, -1, 1, 1, -1], [-1, -1, -1, -1, -1, -1], [1, 1, 1, 1, 1, 1]], np.float32)[..., None]
    assert switch_errors(truth, truth) == {"switches": 3, "mean_rows": 0.0, "max_rows": 0, "lost": 0}
    assert switch_errors(truth, answer) == {"switches": 3, "mean_rows": 0.5, "max_rows": 1, "lost": 1}


def test_rows_beyond_the_range_are_counted():
    rows = np.zeros((100, 3), np.float32)
    rows[:, 2] = np.where(np.arange(100) < 50, -1, 1)
    rows[:3, 0] = [0.6, -0.7, 2.0]
    rows[0, 1] = 2.0
    report = range_report(rows, ACTION, UNITS)
    assert report["constant"] == []
    (name, cut), *others = report["cut"].items()
    assert not others
    assert name == "position.x"
    assert cut == {"rows": 3, "share": 0.03, "low": -0.5, "high": 0.5, "furthest": 2.0, "times_as_far": 4.0}
    warnings, notes = range_text("action", report)
    assert "position.x: 3 rows (3.00%) lie beyond the range [-0.5, 0.5]" in warnings[0]
    assert not notes
    flat = range_report(rows[:, :], ACTION, Normalise([0.0, 0.0, -1], [0.0, 4.0, 1]))
    assert flat["constant"] == ["position.x"]
    assert (flat["cut"]["position.x"]["rows"], flat["cut"]["position.x"]["times_as_far"]) == (3, None)
    json.dumps(flat)
    assert "taken as constant, since it hardly varies: position.x" in range_text("action", flat)[1][0]
