"""Figures of a validation: right answers are perfect, wrong ones are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies.samples import read_samples
from policies.validation import switches_found, validate


class Oracle(torch.nn.Module):
    """A head that knows the answers, moved by `offset` tokens."""

    def __init__(self, tokenizer, answers, offset=0):
        super().__init__()
        self.tokenizer, self.answers, self.offset, self.first = tokenizer, answers, offset, 0

    def draw(self, batch, generator):
        return {}

    def decode(self, backbone, context, committed, noise, batch):
        """Right where rows were given, and half a unit off behind them."""
        rows = self.answers[:batch].clone()
        assert torch.equal(committed.rows_BPA, rows[:, :2])
        rows[:, int(committed.counts_B[0]) :] += 0.5
        return rows

    def decode_tokens(self, backbone, context, committed, noise, batch):
        actions = self.answers[self.first : self.first + batch]
        self.first += batch
        ids = self.tokenizer.encode(actions)
        return actions, (ids + self.offset).clamp(max=255)


def test_an_oracle_is_perfect(dataset, make_policy):
    policy = make_policy("beast")
    samples = read_samples(dataset, 16, policy.state, policy.action)
    indices = list(range(0, len(samples), 3))
    answers = samples.batch(indices)[1]
    tokenizer = policy.head.tokenizer
    policy.head = Oracle(tokenizer, answers)
    figures = validate(policy, samples, indices, 4)
    assert figures.pop("l1_given") == pytest.approx(0.5)
    assert figures == {"l1": 0.0, "token_accuracy": 1.0}
    policy.head = Oracle(tokenizer, answers, offset=1)
    assert validate(policy, samples, indices, 4)["token_accuracy"] < 0.5


def test_heads_without_tokens_have_no_accuracy(dataset, make_policy):
    policy = make_policy("regression")
    samples = read_samples(dataset, 16, policy.state, policy.action)
    figures = validate(policy, samples, [0, 4])
    decoded = policy.head.decode(policy.backbone, policy.backbone.encode(samples.batch([0, 4])[0]), None, {}, 2)
    assert list(figures) == ["l1", "l1_given"]
    assert figures["l1"] == pytest.approx(float((decoded - samples.batch([0, 4])[1]).detach().abs().mean()), rel=1e-5)


def test_a_switch_is_found_within_one_row_and_to_the_same_side():
    truth = torch.from_numpy(np.array([[-1, -1, -1, 1, 1, 1]], np.float32))

    def answer(row, sign=1):
        return sign * torch.where(torch.arange(6)[None] < row, -1.0, 1.0)

    assert [switches_found(truth, answer(row))[0] for row in range(1, 6)] == [0, 1, 1, 1, 0]
    assert switches_found(truth, answer(3, -1)) == (0, 1)
    assert switches_found(torch.ones(2, 6), answer(3).expand(2, -1)) == (0, 0)
