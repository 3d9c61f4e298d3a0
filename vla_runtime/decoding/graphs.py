"""Decodes captured once as CUDA graphs and replayed: the same kernels, without launching them one by one.

Inputs are copied into fixed places, the graph is replayed, and outputs are cloned before they leave, since the next
replay writes over them. What is captured must be made of tensors of fixed shapes and ask the device nothing. Eager
execution is the reference. Knows no networks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields, is_dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

# Runs before a capture: libraries choose kernels and claim memory in the first ones.
_WARM_UPS = 3


class Captured:
    """A function from tensors to tensors, captured for the shapes of `example` and called with tensors of these.

    ValueError for tensors that do not lie on a CUDA device and for calls with other shapes.
    """

    def __init__(self, run: Callable[..., tuple[Tensor, ...]], example: Sequence[Tensor]):
        require_cuda(example[0].device)
        self._device = example[0].device
        self._inputs = [value.clone() for value in example]
        with torch.cuda.device(self._device):
            stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    run(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outputs = run(*self._inputs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        for mine, given in zip(self._inputs, inputs, strict=True):
            if mine.shape != given.shape:
                raise ValueError(f"decode.graphs: expected a tensor {list(mine.shape)}, got {list(given.shape)}")
            mine.copy_(given)
        with torch.cuda.device(self._device):
            self._graph.replay()
            return tuple(value.clone() for value in self._outputs)


class CapturedBackbone:
    """A backbone whose `remember` and `step` are captured, once for every shape of what they are given; in all else it
    is the backbone. Sessions share it: every answer is cloned before another call writes over it.

    make: what captures, `Captured`. ValueError for a mask among slots, which no head that is captured has.
    """

    def __init__(self, backbone: Any, make: Callable[..., Any] = Captured):
        self._backbone, self._make = backbone, make
        self._steps: dict[Hashable, Any] = {}
        # What was captured, and a context to put its tensors into.
        self._prefixes: dict[Hashable, tuple[Any, Any]] = {}
        # Sessions may run in threads of their own, and what they write into is the same.
        self._lock = Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def encode(self, batch: Any) -> Any:
        """As the backbone's own: what the eyes see is not captured, the prefix made of it is."""
        return self.remember(*self._backbone.features(batch))

    def remember(self, *features: Tensor) -> Any:
        """As the backbone's own."""
        key = tuple(value.shape for value in features)
        with self._lock:
            if key not in self._prefixes:
                context = self._backbone.remember(*features)
                alone = {id(value) for value in tensors_of(context)} <= {id(value) for value in features}

                def run(*values: Tensor) -> tuple[Tensor, ...]:
                    return tuple(tensors_of(self._backbone.remember(*values)))

                # Where nothing is computed there is nothing to capture.
                self._prefixes[key] = context, None if alone else self._make(run, features)
            context, captured = self._prefixes[key]
            if captured is None:
                return self._backbone.remember(*features)
            return with_tensors(context, captured(*features))

    def step(
        self, context: Any, slots_BLD: Tensor, mask_LL: Tensor | None = None, cond_BD: Tensor | None = None
    ) -> Tensor:
        """As the backbone's own."""
        if mask_LL is not None:
            raise ValueError("decode.graphs: expected a head without a mask among its slots, got one")
        held = tensors_of(context)
        given = [slots_BLD, *held] if cond_BD is None else [slots_BLD, cond_BD, *held]
        key = (cond_BD is None, *(value.shape for value in given))
        with self._lock:
            if key not in self._steps:
                extra = 1 if cond_BD is None else 2

                def run(*values: Tensor) -> tuple[Tensor]:
                    seen = with_tensors(context, values[extra:])
                    return (self._backbone.step(seen, values[0], None, None if extra == 1 else values[1]),)

                self._steps[key] = self._make(run, given)
            answer: Tensor = self._steps[key](*given)[0]
        return answer


def require_cuda(device: torch.device) -> None:
    """ValueError for another kind of device."""
    if device.type != "cuda":
        raise ValueError(
            f"decode.graphs: expected a CUDA device, got {device}; take device=cuda or decode.graphs=false"
        )


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in _parts(value) for tensor in tensors_of(part)]


def with_tensors(value: Any, tensors: Sequence[Tensor]) -> Any:
    """`value` with its tensors replaced by these, in the order of `tensors_of`."""
    rest = list(tensors)
    found = _replaced(value, rest)
    if rest:
        raise ValueError(f"decode.graphs: expected {len(tensors) - len(rest)} tensors, got {len(tensors)}")
    return found


def _replaced(value: Any, rest: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return rest.pop(0)
    if isinstance(value, tuple | list):
        return type(value)(_replaced(part, rest) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{one.name: _replaced(getattr(value, one.name), rest) for one in fields(value)})
    return value


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, tuple | list):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, one.name) for one in fields(value)]
    return ()
