"""Captured decodes: the bookkeeping everywhere, the graphs where there is a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from decodes import Eager
from torch import Tensor

from policies.batch import Batch
from vla_runtime.decoding.graphs import Captured, CapturedBackbone, tensors_of, with_tensors


@dataclass(frozen=True)
class Nested:
    pairs: tuple[tuple[Tensor, Tensor], ...]
    other: Tensor | None
    name: str = "n"


class Doubling:
    name = "doubling"

    def __init__(self):
        self.contexts = []

    def encode_text(self, instructions):
        return (torch.full((2,), float(len(instructions[0]))),)

    def encode_scene(self, images, state, text):
        return (images["front"] + state + text,)

    def parameters(self):
        return iter([torch.zeros(1)])

    def remember(self, values):
        return Nested(((values + 1, torch.zeros(1)),), None)

    def step(self, context, slots, mask=None, cond=None):
        self.contexts.append(context)
        found = slots * 2 + context.pairs[0][0]
        return found if cond is None else found + cond


def nested(value):
    return Nested(((torch.full((2,), value), torch.zeros(1)),), None)


def test_tensors_are_taken_out_and_put_back_in_order():
    value = Nested(((torch.ones(1), torch.zeros(2)), (torch.ones(3), torch.zeros(4))), torch.ones(5))
    tensors = tensors_of(("x", [value, None, torch.ones(6)]))
    assert [one.numel() for one in tensors] == [1, 2, 3, 4, 5, 6]
    found = with_tensors(value, [torch.full_like(one, 7) for one in tensors[:5]])
    assert found.name == "n"
    assert all((one == 7).all() for one in tensors_of(found))
    assert (value.other == 1).all()
    with pytest.raises(ValueError, match="expected 5 tensors, got 6"):
        with_tensors(value, tensors)


def shown(value):
    return Batch({"front": torch.full((2,), value)}, torch.zeros(2), ("abc",))


def test_passes_are_captured_once_a_shape_and_see_what_they_are_given():
    made = []

    def make(*arguments):
        made.append(arguments[0])
        return Eager(*arguments)

    backbone = CapturedBackbone(Doubling(), make)
    for value in (1.0, 2.0):
        assert torch.equal(backbone.step(nested(value), torch.ones(2)), torch.full((2,), 2 + value))
    assert len(made) == 1
    assert torch.equal(backbone.step(nested(1.0), torch.ones(2), cond_BD=torch.ones(2)), torch.full((2,), 4.0))
    assert len(made) == 2
    contexts = [backbone.encode(shown(value)) for value in (1.0, 2.0)]
    assert len(made) == 3
    assert [float(one.pairs[0][0][0]) for one in contexts] == [5.0, 6.0]
    assert contexts[0].name == "n"
    assert backbone.name == "doubling"
    with pytest.raises(ValueError, match="expected a head without a mask"):
        backbone.step(nested(1.0), torch.ones(2), torch.ones(2, 2))


def test_without_cuda_nothing_is_captured():
    with pytest.raises(ValueError, match="expected a CUDA device, got cpu"):
        Captured(lambda value: (value,), [torch.ones(1)])


@pytest.mark.gpu
def test_a_graph_answers_what_the_function_does_and_keeps_nothing():
    weight = torch.randn(8, 8, device="cuda")
    run = Captured(lambda value: (value @ weight, value.sum(0)), [torch.zeros(4, 8, device="cuda")])
    values = [torch.randn(4, 8, device="cuda") for _ in range(3)]
    found = [run(value) for value in values]
    for value, (product, total) in zip(values, found, strict=True):
        torch.testing.assert_close(product, value @ weight)
        torch.testing.assert_close(total, value.sum(0))
    with pytest.raises(ValueError, match=r"expected a tensor \[4, 8\]"):
        run(torch.zeros(3, 8, device="cuda"))
