"""What is told of memory is what the graph holds."""

from __future__ import annotations

import torch
from torch import nn

from policies.memory import estimate, kept_for_backward


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 20), nn.Sigmoid(), nn.Linear(20, 1, bias=False))


def loss_of(module, count):
    return module(torch.ones(count, 10)).sum()


def test_what_the_graph_holds_is_counted_once():
    module = network()
    # The input of either linear layer and the sigmoid's own output, which is the second one's input.
    for count in (1, 7):
        assert kept_for_backward(module, lambda count=count: loss_of(module, count)) == 4 * count * (10 + 20)
    with torch.no_grad():
        assert kept_for_backward(module, lambda: loss_of(module, 7)) == 0


def test_the_sum():
    module = network()
    module[0].bias.requires_grad_(False)
    found = estimate(module, lambda count: loss_of(module, count), batch_size=8, data=1000)
    weights = 4 * (10 * 20 + 20 + 20)
    learning = weights - 4 * 20
    assert (found.weights, found.average) == (weights, weights)
    assert (found.gradients, found.optimiser) == (learning, 2 * learning)
    assert found.activations == 4 * 8 * (10 + 20)
    assert found.total == 2 * weights + 3 * learning + found.activations + 1000
    assert "at the peak" in found.text()
