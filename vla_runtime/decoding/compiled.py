"""Passes of a network compiled by torch.compile: fewer and larger kernels for the same sums, up to rounding.

Compiling happens in the first call with a shape and takes from seconds to minutes. Eager execution is the reference.
A pass that torch cannot compile as one whole is an error and is never run eagerly instead. Knows no networks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

# One whole: a part that is left eager would be an acceleration that is asked for and not active.
_COMPILE: Callable[[Any], Any] = partial(torch.compile, fullgraph=True)


class CompiledBackbone:
    """A backbone whose `encode_scene`, `remember` and `step` are compiled; in all else it is the backbone.

    compile: what compiles a function, torch.compile. RuntimeError, from torch, for a pass that cannot be compiled.
    """

    def __init__(self, backbone: Any, compile: Callable[[Any], Any] = _COMPILE):  # noqa: A002
        self._backbone = backbone
        self.remember, self.step = compile(backbone.remember), compile(backbone.step)
        self.postpone = self.remember
        self.encode_scene = compile(backbone.encode_scene)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def features(self, batch: Any) -> tuple[Tensor, ...]:
        """As the backbone's own."""
        text = self._backbone.encode_text(batch.instructions)
        return self.encode_scene(batch.images, batch.state_BS, *text)  # type: ignore[no-any-return]

    def encode(self, batch: Any) -> Any:
        """As the backbone's own."""
        return self.remember(*self.features(batch))


def require_compiler(device: torch.device) -> None:
    """ValueError where torch.compile lacks what it generates code with: Triton on a GPU, else a C++ compiler."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ValueError(
                "decode.compile: expected Triton for this GPU, got none; pip install triton, or take "
                "decode.compile=false"
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(
            "decode.compile: expected a C++ compiler such as g++, got none; install one, or take decode.compile=false"
        ) from error
