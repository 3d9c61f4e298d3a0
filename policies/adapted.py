"""Branches of other people's transformers reused by plan, without touching their packages.

`Adapted` puts itself before the `forward` of chosen modules of one model and takes itself away again; the model's
code, norms and gates stay as they are. What a branch module returns is kept before any gate of the present step is
applied to it, so gated (adaLN) branches are right, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn

from vla_runtime.decoding.bac import Block
from vla_runtime.decoding.feature_cache import FeatureCache

Branch = tuple[nn.Module | None, nn.Module]


class Adapted:
    """A context in which the outputs of branches go through a cache; outside of it the model is as it was.

    branches: (norm, module) in the order in which they run. The norm, where it feeds nothing but the branch, is
    skipped with it; None where it does more, as adaLN does. A module that answers a tuple is known by its first part.
    Call `begin` before a decode and `advance` before each of its steps. RuntimeError inside itself: one cache a model.
    """

    def __init__(self, branches: Sequence[Branch], cache: FeatureCache):
        if cache.branches != len(branches):
            raise ValueError(f"cache: expected one for {len(branches)} branches, got one for {cache.branches}")
        self.cache = cache
        self._branches = list(branches)
        self._replaced: list[tuple[nn.Module, Any]] = []

    def begin(self) -> None:
        """Forget the decode before."""
        self.cache.reset()

    def advance(self) -> None:
        """Go on to the next step of the plan."""
        self.cache.advance()

    def __enter__(self) -> Self:
        if self._replaced:
            raise RuntimeError("adapted: expected a model that is not adapted already")
        for index, (norm, module) in enumerate(self._branches):
            self._replace(module, self._branch(index, module.forward))
            if norm is not None:
                self._replace(norm, self._norm(index, norm.forward))
        return self

    def __exit__(self, *_: object) -> None:
        for module, before in reversed(self._replaced):
            del module.forward
            if before is not None:
                module.forward = before
        self._replaced.clear()

    def _replace(self, module: nn.Module, forward: Any) -> None:
        # Another library's hook may sit there already.
        self._replaced.append((module, module.__dict__.get("forward")))
        module.forward = forward

    def _branch(self, index: int, forward: Any) -> Any:
        others: list[int] = []

        def run(*arguments: Any, **options: Any) -> Any:
            rest: tuple[Any, ...] = ()

            def compute() -> Tensor:
                nonlocal rest
                found = forward(*arguments, **options)
                others[:] = [len(found) - 1] if isinstance(found, tuple) else []
                if not others:
                    return found  # type: ignore[no-any-return]
                rest = found[1:]
                return found[0]  # type: ignore[no-any-return]

            output = self.cache.branch(index, compute)
            return (output, *(rest or (None,) * others[0])) if others else output

        return run

    def _norm(self, index: int, forward: Any) -> Any:
        def run(hidden: Tensor, *arguments: Any, **options: Any) -> Any:
            return hidden if self.cache.reuses(index) else forward(hidden, *arguments, **options)

        return run


def llama_like(layers: Sequence[Any]) -> tuple[list[Branch], tuple[Block, ...]]:
    """Branches of transformers' decoder layers in Llama's form (Llama, Gemma: pi0's expert), and their names."""
    branches, names = [], []
    for index, layer in enumerate(layers):
        branches += [(layer.input_layernorm, layer.self_attn), (layer.post_attention_layernorm, layer.mlp)]
        names += [Block(index, "self"), Block(index, "feed")]
    return branches, tuple(names)


def diffusers_blocks(blocks: Sequence[Any]) -> tuple[list[Branch], tuple[Block, ...]]:
    """Branches of diffusers' BasicTransformerBlock, and their names. Norms that also give gates are not skipped."""
    branches: list[Branch] = []
    names: list[Block] = []
    for index, block in enumerate(blocks):
        alone = block.norm_type == "layer_norm"
        parts = (
            ("self", block.norm1, block.attn1),
            ("cross", block.norm2, block.attn2),
            ("feed", block.norm3, block.ff),
        )
        for name, norm, module in parts:
            if module is not None:
                branches.append((norm if alone else None, module))
                names.append(Block(index, name))
    return branches, tuple(names)
