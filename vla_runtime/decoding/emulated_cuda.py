"""Counts what a decode would ask of a CUDA device, on a machine without one: launches, host waits, blocking copies.

Tensors are fake and lie on `cuda:0`: they have shapes and types, but no values, so nothing is computed. Every
operation on them that is not a view counts as kernel launches. The counts are a model of eager PyTorch on NVIDIA
GPUs, not a measurement: an attention is one kernel (two more turn a boolean mask into a bias, two more pad keys
whose number is not a multiple of 8), a convolution with a bias two, a group norm three, a sort three. A custom
operator, such as a Triton kernel of this package, is one. Knows no networks and no robots.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_ROOT = Path(__file__).resolve().parents[2]
_aten: Any = torch.ops.aten
# Operations that launch nothing: views, and memory that is claimed without being written.
_FREE = frozenset(
    "view _unsafe_view reshape _reshape_alias transpose t permute expand select slice unsqueeze squeeze alias detach "  # noqa: SIM905
    "split split_with_sizes chunk unbind as_strided unfold lift_fresh diagonal narrow empty empty_like new_empty "
    "empty_strided new_empty_strided dropout sym_size sym_stride is_same_size resize_ set_ scalar_tensor device".split()
)
# Operations that are several kernels.
_SEVERAL = {"native_group_norm": 3, "sort": 3, "argsort": 3, "topk": 2, "index_put": 2, "index_put_": 2}
# Operations whose output has a size that only the device knows.
_UNSIZED = frozenset({"nonzero", "masked_select", "unique_dim", "_unique2"})
_READS = {
    torch.Tensor.__float__: 0.0, torch.Tensor.__int__: 0, torch.Tensor.__bool__: False, torch.Tensor.item: 0,
    torch.Tensor.__index__: 0, torch.Tensor.tolist: [],
}  # fmt: skip


@dataclass(slots=True)
class Launches:
    """Counts by phase. kernels: {phase: {operation: count}}; waits and copies: {(phase, kind, place): count}.

    A wait is an operation for which the host needs a value of the device; a copy is one from host memory that blocks.
    """

    phase: str = "start"
    kernels: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    waits: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    copies: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def count(self, phase: str) -> int:
        """Launches of a phase."""
        return sum(self.kernels[phase].values())

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count what happens inside under this name."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def _launch(self, name: str, count: int = 1) -> None:
        self.kernels[self.phase][name] += count

    def _wait(self, kind: str) -> None:
        self.waits[self.phase, kind, _place()] += 1

    def _copy(self, kind: str) -> None:
        self.copies[self.phase, kind, _place()] += 1


@contextmanager
def emulated_cuda() -> Iterator[Launches]:
    """Count everything that tensors on `cuda:0` are asked inside. Only one can be active at a time."""
    launches = Launches()
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        _CountOperations(launches),
        _CountReads(launches),
        patch("torch.cuda.synchronize", lambda *_: launches._wait("synchronize")),
    ):
        yield launches


def move_to_fake_cuda(module: nn.Module) -> None:
    """Replace a module's parameters and buffers by fake ones on `cuda:0`; call it inside `emulated_cuda`."""
    for part in module.modules():
        for tensors, wrapped in ((part._parameters, True), (part._buffers, False)):
            known: dict[str, Any] = tensors
            for name, value in known.items():
                if value is not None:
                    fake = torch.empty(value.shape, dtype=value.dtype, device="cuda:0")
                    known[name] = nn.Parameter(fake, requires_grad=False) if wrapped else fake


class EmulatedCapture:
    """Stands for `graphs.Captured` under emulation: the same calls, with what happens inside the graph counted apart.

    Phases: "capture" for the first call, "copy in", "graph" and "copy out" for later ones.
    """

    def __init__(
        self,
        launches: Launches,
        run: Callable[..., tuple[Tensor, ...]],
        example: Sequence[Tensor],
        device: torch.device | None = None,
        to_host: bool = False,
    ):
        self.launches, self._run, self._to_host = launches, run, to_host
        # The first call is the capture: buffers are made in it, and it counts apart.
        self._captured = False
        with self.launches.during("capture"):
            self._inputs = [torch.empty_like(value, device="cuda:0") for value in example]

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        phase = "graph" if self._captured else "capture"
        self._captured = True
        with self.launches.during("copy in"):
            for mine, value in zip(self._inputs, given, strict=True):
                mine.copy_(value, non_blocking=True)
        with self.launches.during(phase):
            outputs = self._run(*self._inputs)
        with self.launches.during("copy out"):
            if self._to_host:  # the one wait of a chunk
                return tuple(torch.zeros(value.shape, dtype=value.dtype) for value in outputs)
            return tuple(value.clone() for value in outputs)


class _CountOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, launches: Launches):
        super().__init__()  # type: ignore[no-untyped-call]
        self._launches = launches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, log = func._schema.name.split("::")[1], self._launches
        given = list(_tensors((args, kwargs)))
        on_device = any(value.device.type == "cuda" for value in given)
        target = kwargs.get("device")
        to_device = target is not None and torch.device(target).type == "cuda"
        if on_device and (name in _UNSIZED or name == "_local_scalar_dense"):
            log._wait(name)
            if name == "_local_scalar_dense":
                return False if args[0].dtype == torch.bool else 0
        if on_device and name.startswith("index"):
            self._index(args)
        if on_device and name == "convolution":
            log._launch(name, 1 if args[2] is None else 2)
            return _convolved(*args)
        if on_device and isinstance(kwargs.get("out"), Tensor):
            log._launch(name)
            return kwargs["out"]
        if not to_device and not any(isinstance(value, FakeTensor) for value in given):
            with unset_fake_temporarily():  # work of the host, with values
                return func(*args, **kwargs)
        if on_device and name == "_to_copy" and target is not None and torch.device(target).type == "cpu":
            log._wait("to the host")
            with unset_fake_temporarily():
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        result = func(*args, **kwargs)
        made = list(_tensors(result))
        if not on_device and not any(value.device.type == "cuda" for value in made):
            return result
        if name in ("_to_copy", "copy_"):
            source, goal = (args[1], args[0]) if name == "copy_" else (args[0], made[0])
            if source.device.type != goal.device.type:
                free = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
                if source.device.type == "cuda" and not free:
                    log._wait("to the host")
                elif source.device.type == "cpu" and not free:
                    log._copy("to the device")
                return result
        if name not in _FREE:
            log._launch(name, _SEVERAL.get(name, 1))
        return result

    def _index(self, args: Any) -> None:
        for index in args[1] if isinstance(args[1], list | tuple) else ():
            if isinstance(index, Tensor) and index.dtype == torch.bool and index.device.type == "cuda":
                self._launches._wait("index by a mask")
            elif isinstance(index, Tensor) and index.device.type == "cpu":
                self._launches._copy("an index")


class _CountReads(TorchFunctionMode):
    """Python's own ways into a tensor, which ask for a real device before any operation is dispatched."""

    def __init__(self, launches: Launches):
        super().__init__()
        self._launches = launches

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("query")
        if not isinstance(first, Tensor) or first.device.type != "cuda":
            return func(*args, **kwargs)
        if func in _READS:
            self._launches._wait("item")
            return _READS[func]
        if func is torch.Tensor.__getitem__:
            return _read_at(*args)
        if func is torch.Tensor.__setitem__:
            return _write_at(*args)
        if func is torch.Tensor.copy_:
            return _aten.copy_(*args, **kwargs)
        if func is torch.Tensor.fill_:
            return _aten.fill_(*args, **kwargs)
        if func is torch.Tensor.__invert__:
            return _aten.bitwise_not(first)
        if func is torch.Tensor.contiguous and not kwargs:
            return first if first.is_contiguous() else first.clone(memory_format=torch.contiguous_format)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **options: Any
    ) -> Tensor:
        batch, heads, length, _ = query.shape
        extra = 0
        if attn_mask is not None:
            extra = 2 * (attn_mask.dtype == torch.bool) + 2 * (key.shape[2] % 8 > 0)
        self._launches._launch("scaled_dot_product_attention", 1 + extra)
        # As the fused kernels lay it out: a slot's heads beside each other.
        answer = torch.empty(batch, length, heads, value.shape[-1], dtype=query.dtype, device=query.device)
        return answer.transpose(1, 2)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _place() -> str:
    """The innermost line of the project, outside this file, that led here."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path != Path(__file__) and path.is_relative_to(_ROOT) and ".venv" not in path.parts:
            return f"{path.relative_to(_ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def _convolved(
    images: Tensor, weight: Tensor, bias: Any, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    *_: Any,
) -> Tensor:  # fmt: skip
    axes = range(images.ndim - 2)
    strides, paddings, dilations = ([each[axis % len(each)] for axis in axes] for each in (stride, padding, dilation))
    sizes = [
        (images.shape[2 + axis] + 2 * paddings[axis] - dilations[axis] * (weight.shape[2 + axis] - 1) - 1)
        // strides[axis] + 1
        for axis in axes
    ]  # fmt: skip
    return torch.empty((images.shape[0], weight.shape[0], *sizes), dtype=images.dtype, device=images.device)


def _read_at(value: Tensor, index: Any) -> Tensor:
    """`value[index]` by operations that fake tensors on a device that is not there can do."""
    parts = list(index) if isinstance(index, tuple) else [index]
    taken = sum(_axes(part) for part in parts)
    if Ellipsis in [part for part in parts if not isinstance(part, Tensor)]:
        at = next(place for place, part in enumerate(parts) if part is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (value.ndim - taken)
    axis = 0
    lists: dict[int, Tensor] = {}
    for part in parts:
        if part is None:
            value, axis = value.unsqueeze(axis), axis + 1
        elif isinstance(part, int) and not isinstance(part, bool):
            value = value.select(axis, part)
        elif isinstance(part, slice):
            start, stop, step = part.indices(value.shape[axis])
            if part != slice(None):
                value = _aten.slice(value, axis, start, max(start, stop), step)
            axis += 1
        else:
            lists[axis] = part if isinstance(part, Tensor) else torch.tensor(part)
            axis += lists[axis].ndim if lists[axis].dtype == torch.bool else 1
    if not lists:
        return value
    result: Tensor = _aten.index(value, [lists.get(place) for place in range(max(lists) + 1)])
    return result


def _write_at(value: Tensor, index: Any, new: Any) -> None:
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, list | Tensor) for part in parts):
        fill: list[Any] = []
        for part in parts:
            fill += [None] * (value.ndim - sum(_axes(one) for one in parts)) if part is Ellipsis else [part]
        indices = [
            None if isinstance(one, slice) else torch.as_tensor(one) if one is not None else None for one in fill
        ]
        _aten.index_put_(value, indices, torch.as_tensor(new))
    elif isinstance(new, Tensor):
        _aten.copy_(_read_at(value, index), new)
    else:
        _aten.fill_(_read_at(value, index), new)


def _axes(part: Any) -> int:
    """How many axes of a tensor a part of an index takes."""
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if isinstance(part, Tensor) and part.dtype == torch.bool else 1
