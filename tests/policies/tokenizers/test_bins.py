from __future__ import annotations

import numpy as np
import pytest
import torch

from policies.tokenizers.bins import Bins


def chunk(values):
    """Any number of values as chunks of 8 x 7."""
    values = np.resize(np.asarray(values, np.float32), (-(-len(values) // 56) * 56,))
    return torch.from_numpy(values.reshape(-1, 8, 7))


def test_round_trip_is_within_half_a_bin():
    """Criterion D1."""
    values = chunk(np.linspace(-1, 1, 100_001))
    bins = Bins(8, 7)
    back = bins.decode(bins.encode(values))
    assert float((back - values).abs().max()) <= 1 / 255 + 1e-6
    np.testing.assert_array_equal(bins.encode(back), bins.encode(values).clamp(max=254))


def test_ids_are_what_counting_edges_gives():
    """Against an independent reference on a million values, edges themselves among them."""
    edges = np.linspace(-1, 1, 256)
    values = np.concatenate([np.random.default_rng(0).uniform(-1.2, 1.2, 1_000_000), edges, np.nextafter(edges, 2)])
    values = values.astype(np.float32)
    reference = np.digitize(np.clip(values.astype(np.float64), -1, 1), edges) - 1
    ids = Bins(8, 7).encode(chunk(values)).flatten()[: len(values)]
    np.testing.assert_array_equal(ids, reference)
    assert (ids.min(), ids.max()) == (0, 255)


def test_outside_is_cut_and_the_two_highest_ids_are_alike():
    bins = Bins(1, 1)
    assert bins.encode(torch.tensor([[[-3.0]], [[3.0]]])).tolist() == [[0], [255]]
    assert bins.decode(torch.tensor([[254], [255]])).flatten().unique().numel() == 1


def test_row_after_row():
    actions = torch.zeros(1, 2, 3)
    actions[0, 0] = 1.0
    assert Bins(2, 3).encode(actions).tolist() == [[255, 255, 255, 127, 127, 127]]


def test_state_makes_it_again():
    assert Bins(**Bins(8, 7).state()).num_tokens == 56


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda bins: bins.encode(torch.zeros(1, 7, 7)), r"actions \[B, 8, 7\], got \[1, 7, 7\]"),
        (lambda bins: bins.encode(torch.full((1, 8, 7), torch.nan)), "NaN"),
        (lambda bins: bins.decode(torch.zeros(1, 55, dtype=torch.long)), r"ids \[B, 56\]"),
        (lambda bins: bins.decode(torch.full((1, 56), 256)), "got 256 to 256"),
        (lambda bins: bins.decode(torch.zeros(1, 56)), "integer ids"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(Bins(8, 7))
