"""What tests of decoding share."""

from __future__ import annotations

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from policies import captured, vla
from vla_runtime.decoding.graphs import CapturedBackbone

# Denoising in steps that a test can afford.
TWELVE = {"sampler": "ddpm", "steps": 12, "train_steps": 12}


class Eager:
    """Stands where a CUDA graph would: the same function, on inputs that lie in one place, answers cloned."""

    def __init__(self, run, example, device=None, to_host=False):
        self.run, self.inputs = run, [value.clone() for value in example]

    def __call__(self, *given):
        for mine, value in zip(self.inputs, given, strict=True):
            mine.copy_(value)
        return tuple(value.clone() for value in self.run(*self.inputs))


def graphs_without_a_gpu(monkeypatch):
    """Let policies with graphs be made without a GPU; the list of what stands where graphs would."""
    made = []

    def make(*arguments, resources=None):
        made.append(Eager(*arguments))
        return made[-1]

    monkeypatch.setattr(vla, "require_cuda", lambda device: None)
    monkeypatch.setattr(captured, "Captured", make)
    return made


def captured_reads_no_values(backbone, batch, slots):
    """Whether a backbone's prefix and a step can be recorded without the values of their inputs, as a graph is, and
    answer as they do when run.
    """
    made = []

    def make(*arguments):
        made.append(Eager(*arguments))
        return made[-1]

    captured = CapturedBackbone(backbone, make)
    with torch.no_grad():
        found = captured.step(captured.encode(batch), slots)
        for graph in made:
            make_fx(graph.run, tracing_mode="fake", _allow_non_fake_inputs=True)(*graph.inputs)
        return bool(made) and torch.equal(found, backbone.step(backbone.encode(batch), slots))
