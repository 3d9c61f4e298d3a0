"""Decodes captured once as CUDA graphs and replayed: the same kernels, without launching them one by one.

Inputs are copied into fixed places, the graph is replayed, and outputs are cloned before they leave, since the next
replay writes over them. What is captured must be made of tensors of fixed shapes and ask the device nothing. Eager
execution is the reference. Knows no networks.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

# Runs before a capture: libraries choose kernels and claim memory in the first ones.
_WARM_UPS = 3
# Captures of a process, one at a time: while one records, another would have to wait for the device.
_capturing = Lock()


class GraphResources:
    """What graphs that are never replayed at the same time share: a stream, memory, and a lock that sees to it."""

    def __init__(self) -> None:
        self.lock = Lock()
        self._made: dict[torch.device, tuple[Any, Any]] = {}

    def on(self, device: torch.device) -> tuple[Any, Any]:
        """The stream, of the highest priority, since what answers a robot goes first, and the pool of memory."""
        if device not in self._made:
            with torch.cuda.device(device):
                stream: Any = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]
                self._made[device] = stream, torch.cuda.graph_pool_handle()
        return self._made[device]


class Captured:
    """A function from tensors to tensors, captured for the shapes of `example` and called with tensors of these.

    Inputs may lie on the device or on the host; where answers go back to the host, inputs of the host pass through
    pinned memory. Calls may come from any thread.

    Args:
        run: what is captured; it asks the device nothing.
        example: tensors of the right shapes; `device` says where those of the host go.
        device: the CUDA device, by default that of the first example.
        to_host: whether answers come back as tensors of the host, for which the call waits once; otherwise they are
            cloned on the device, and nothing waits.
        resources: shared with graphs that take turns with this one, by default its own.

    ValueError for a device that is not CUDA and for calls with other shapes.
    """

    def __init__(
        self,
        run: Callable[..., tuple[Tensor, ...]],
        example: Sequence[Tensor],
        device: torch.device | None = None,
        to_host: bool = False,
        resources: GraphResources | None = None,
    ):
        self._device = example[0].device if device is None else device
        require_cuda(self._device)
        self._resources = resources or GraphResources()
        self._stream, pool = self._resources.on(self._device)
        with self._resources.lock, _capturing, _collector_off(), torch.cuda.device(self._device):
            self._inputs = [value.to(self._device, copy=True) for value in example]
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    run(*self._inputs)
            torch.cuda.current_stream().wait_stream(self._stream)
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may allocate and copy meanwhile.
            mode = "thread_local"
            with torch.cuda.graph(self._graph, pool=pool, stream=self._stream, capture_error_mode=mode):
                self._outputs = run(*self._inputs)
        self._staged: list[Tensor | None] = [None] * len(example)
        self._answers: list[Tensor] | None = None
        if to_host:
            self._staged = [_pinned(value) if value.device.type == "cpu" else None for value in example]
            self._answers = [_pinned(value) for value in self._outputs]
            self._done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        for mine, given in zip(self._inputs, inputs, strict=True):
            if mine.shape != given.shape:
                raise ValueError(f"decode.graphs: expected a tensor {list(mine.shape)}, got {list(given.shape)}")
        with self._resources.lock, torch.cuda.device(self._device):
            caller = torch.cuda.current_stream()
            self._stream.wait_stream(caller)
            with torch.cuda.stream(self._stream):
                for mine, staged, given in zip(self._inputs, self._staged, inputs, strict=True):
                    if staged is not None and given.device.type == "cpu":
                        # Free again: the call before waited for its answers.
                        staged.copy_(given)
                        mine.copy_(staged, non_blocking=True)
                    else:
                        mine.copy_(given, non_blocking=True)
                self._graph.replay()
                if self._answers is not None:
                    for answer, output in zip(self._answers, self._outputs, strict=True):
                        answer.copy_(output, non_blocking=True)
                    self._done.record(self._stream)
                    self._done.synchronize()
                    return tuple(answer.clone() for answer in self._answers)
                answers = tuple(value.clone() for value in self._outputs)
            caller.wait_stream(self._stream)
            for answer in answers:
                # Its memory is the stream's; it is not to be given away while the caller still reads.
                answer.record_stream(caller)
            return answers


def _pinned(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)


@contextmanager
def _collector_off() -> Iterator[None]:
    """No collection of garbage inside: graphs and pinned memory that it frees would end a capture."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class CapturedBackbone:
    """A backbone whose passes are captured, once for every shape of what they are given: what encodes an observation
    as one graph, and a step as another. In all else it is the backbone. Sessions share it: every answer is cloned
    before another call writes over it.

    make: what captures, `Captured`. ValueError for a mask among slots, which no head that is captured has.
    """

    def __init__(self, backbone: Any, make: Callable[..., Any] = Captured):
        self._backbone, self._make = backbone, make
        self._steps: dict[Hashable, Any] = {}
        # What was captured, and a context to put its tensors into.
        self._contexts: dict[Hashable, tuple[Any, Any]] = {}
        # Sessions may run in threads of their own, and what they write into is the same.
        self._lock = Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def encode(self, batch: Any) -> Any:
        """As the backbone's own."""
        return self.context(batch.images, batch.state_BS, *self._backbone.encode_text(batch.instructions))

    def context(self, images: Mapping[str, Tensor], state_BS: Tensor, *text: Tensor) -> Any:
        """What a head decodes from: the backbone's `encode_scene` and `remember` as one graph."""
        names = tuple(sorted(images))
        given = [*(images[name] for name in names), state_BS, *text]
        key = (names, *(value.shape for value in given))

        def encoded(*values: Tensor) -> Any:
            shown = dict(zip(names, values, strict=False))
            return self._backbone.remember(*self._backbone.encode_scene(shown, *values[len(names) :]))

        with self._lock:
            if key not in self._contexts:
                device = next(self._backbone.parameters()).device
                example = encoded(*(value.to(device) for value in given))
                captured = self._make(lambda *values: tuple(tensors_of(encoded(*values))), given, device)
                self._contexts[key] = example, captured
            example, captured = self._contexts[key]
            return with_tensors(example, captured(*given))

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

                self._steps[key] = self._make(run, given, slots_BLD.device)
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
