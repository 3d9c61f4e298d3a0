"""transformers' pi0 (arXiv 2410.24164), sampled with a prefix that is computed once and never changes.

Its expert's layers attend to the keys and values of the language model; a step's own are used and forgotten. So a
branch that is reused leaves no gap in them, which the library's own loop, growing and cutting them back, does not
allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PI0ForConditionalGeneration
from transformers.cache_utils import DynamicCache, DynamicLayer

from policies.adapted import Adapted, Branch, llama_like
from vla_runtime.decoding.bac import Block


@dataclass(frozen=True, slots=True, eq=False)
class Pi0Context:
    """An encoded observation: keys and values of the prefix, the state, and which words of the prompt count."""

    prefix: DynamicCache
    state_BS: Tensor
    keep_BN: Tensor


class _KeptLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Answers what was kept and what is new, and keeps only the former."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        keys, values = self.keys, self.values
        assert keys is not None
        assert values is not None
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


class Pi0:
    """A pi0 model in parts: `encode` once per observation, `decode` in Euler steps from t = 1 to 0."""

    def __init__(self, model: PI0ForConditionalGeneration):
        self.model: Any = model
        self.model.train(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    def branches(self) -> tuple[list[Branch], tuple[Block, ...]]:
        """The expert's residual branches, for `Adapted`, and their names."""
        return llama_like(self.model.model.dit.layers)

    def features(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Words and image tokens as embeddings float [B, N, D]; which of them count [B, N]; the state [B, S].

        batch: state_BS; ids_BN, the prompt, with one image token for every token of every camera; pixels_BC3HW; and
        which of each count, keep_BN and cameras_BC.
        """
        words = self.model.model.embed_prefix(batch["ids_BN"], batch["pixels_BC3HW"], batch["cameras_BC"])
        return words, batch["keep_BN"], batch["state_BS"]

    def remember(self, words_BND: Tensor, keep_BN: Tensor, state_BS: Tensor) -> Pi0Context:
        """What the expert sees of it in every step."""
        found = self.model.model.vlm(
            inputs_embeds=words_BND, attention_mask=keep_BN, position_ids=keep_BN.cumsum(-1) - 1,
            token_type_ids=torch.zeros_like(words_BND)[:, :, 0], use_cache=True,
        ).past_key_values  # fmt: skip
        for layer in found.layers:
            # The same object, keys and values: only what an update does is another.
            layer.__class__ = _KeptLayer
        return Pi0Context(found, state_BS, keep_BN)

    @torch.no_grad()
    def encode(self, batch: Mapping[str, Tensor]) -> Pi0Context:
        """Once per observation."""
        return self.remember(*self.features(batch))

    @torch.no_grad()
    def decode(self, context: Pi0Context, start_BTA: Tensor, steps: int, adapted: Adapted | None = None) -> Tensor:
        """A chunk float [B, T, A] from noise. adapted: entered already, with a plan of `steps` steps.

        The sample keeps the noise's precision, whatever the network's.
        """
        sample = start_BTA
        if adapted is not None:
            adapted.begin()
        for step in range(steps):
            if adapted is not None:
                adapted.advance()
            time = torch.full((len(sample),), 1.0 - step / steps, device=sample.device)
            velocity = self.model(
                state=context.state_BS, noise=sample.to(context.state_BS.dtype), timestep=time,
                attention_mask=context.keep_BN, past_key_values=context.prefix,
            ).logits  # fmt: skip
            sample = sample - velocity.to(sample.dtype) / steps
        return sample
