"""Passes compiled by torch.compile: which of them, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch

from policies.batch import Batch
from vla_runtime.decoding.compiled import CompiledBackbone, require_compiler


class Counting:
    """A backbone of three passes; compiling is replaced by a wrapper that counts."""

    name = "counting"

    def encode_text(self, instructions):
        return (torch.tensor([float(len(one)) for one in instructions]),)

    def encode_scene(self, images, state_BS, lengths):
        return (images["front"] + state_BS + lengths,)

    def remember(self, values):
        return values * 2

    def step(self, context, slots, mask=None, cond=None):
        return context + slots


def counted(calls):
    def compile_(run):
        def wrapped(*values):
            calls.append(run.__name__)
            return run(*values)

        return wrapped

    return compile_


def test_every_pass_is_compiled_and_the_rest_is_the_backbone_s():
    calls: list[str] = []
    backbone = CompiledBackbone(Counting(), counted(calls))
    assert backbone.name == "counting"
    batch = Batch({"front": torch.ones(1)}, torch.ones(1), ("lift",))
    context = backbone.encode(batch)
    assert float(context) == 12
    assert float(backbone.step(context, torch.ones(1))) == 13
    assert calls == ["encode_scene", "remember", "step"]


def test_a_pass_that_is_no_whole_is_an_error():
    class Asking(Counting):
        def step(self, context, slots, mask=None, cond=None):
            return slots if float(context.sum()) > 0 else -slots

    backbone = CompiledBackbone(Asking(), lambda run: torch.compile(run, backend="eager", fullgraph=True))
    with pytest.raises(Exception, match=r"data-dependent|Data-dependent|Unsupported"):
        backbone.step(torch.ones(1), torch.ones(1))


def test_a_missing_compiler_is_named(monkeypatch):
    import torch._inductor.cpp_builder as builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing():
        raise InvalidCxxCompiler

    require_compiler(torch.device("cpu"))
    monkeypatch.setattr(builder, "get_cpp_compiler", missing)
    with pytest.raises(ValueError, match=r"decode.compile: expected a C\+\+ compiler such as g\+\+, got none"):
        require_compiler(torch.device("cpu"))
