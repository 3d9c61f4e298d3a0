"""Variants of sampling pi0 that `bench` times: branches reused, fewer steps, captured, and transformers' own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from policies.adapted import Adapted
from policies.calibration import Recorder, Recording, schedule
from policies.pi0 import Pi0, Pi0Context
from policies.variants import Variant, captures, counted
from vla_runtime.decoding.bac import reuse_error, similarity
from vla_runtime.decoding.feature_cache import FeatureCache
from vla_runtime.decoding.graphs import Captured


class Pi0Head:
    """What pi0 asks of a head here: its noise."""

    name = "pi0"

    def __init__(self, rows: int, size: int):
        self._shape = (rows, size)

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The sample to begin with."""
        return {"start": torch.randn((batch, *self._shape), generator=generator)}


class Pi0Decoder:
    """pi0 sampled in `steps` Euler steps, its expert's branches reused as a cache's plan says."""

    def __init__(self, model: Pi0, steps: int, cache: FeatureCache | None = None):
        self._model, self._steps = model, steps
        self._adapted = None if cache is None else Adapted(model.branches()[0], cache)
        self.facts: dict[str, float] = {}

    def __call__(
        self, context: Pi0Context, committed: Any, noise: dict[str, Tensor], batch: int = 1, *warm: Any
    ) -> Tensor:
        if self._adapted is None:
            return self._model.decode(context, noise["start"], self._steps)
        with self._adapted as adapted:
            return self._model.decode(context, noise["start"], self._steps, adapted)


class Pi0Captured:
    """pi0 from a batch to rows as one CUDA graph, captured for the shapes of the first batch it is given.

    make: what captures, `Captured`.
    """

    def __init__(self, model: Pi0, steps: int, make: Callable[..., Any] = Captured):
        self._model, self._steps, self._make = model, steps, make
        self._graph: Any = None
        self.facts: dict[str, float] = {}

    def __call__(
        self, batch: Mapping[str, Tensor], committed: Any, noise: dict[str, Tensor], warm: Tensor | None = None,
        first: int = 0, guide: Any = None,
    ) -> Tensor:  # fmt: skip
        """Rows float [B, T, A]."""
        names = list(batch)

        def run(start: Tensor, *values: Tensor) -> tuple[Tensor]:
            context = self._model.remember(*self._model.features(dict(zip(names, values, strict=True))))
            return (self._model.decode(context, start, self._steps),)

        given = [noise["start"], *batch.values()]
        if self._graph is None:
            self._graph = self._make(run, given)
        rows: Tensor = self._graph(*given)[0]
        return rows


class Pi0Library:
    """The model's own `sample_actions`, from images to actions: all of it counts as decoding."""

    name = "transformers"

    def __init__(self, model: Pi0, steps: int):
        self._model, self._steps = model.model, steps
        self.facts: dict[str, float] = {}

    def features(self, batch: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor]]:
        """Nothing yet."""
        return (batch,)

    def remember(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Nothing yet."""
        return batch

    def __call__(
        self, context: Mapping[str, Tensor], committed: Any, noise: dict[str, Tensor], batch: int = 1, *warm: Any
    ) -> Tensor:
        start = noise["start"].to(context["state_BS"].dtype)
        found: Tensor = self._model.sample_actions(
            state=context["state_BS"], input_ids=context["ids_BN"], pixel_values=context["pixels_BC3HW"],
            attention_mask=context["keep_BN"], pixel_attention_mask=context["cameras_BC"], noise=start,
            num_steps=self._steps,
        )  # fmt: skip
        return found.float()


def pi0_variants(model: Pi0, head: Pi0Head, seen: Mapping[str, Tensor], config: Mapping[str, Any]) -> list[Variant]:
    """Ways to sample pi0; "plain" is first. seen: an observation to make a schedule of."""
    steps = int(model.model.config.num_inference_steps)
    branches, blocks = model.branches()
    every = steps * len(blocks)

    def plain_variant(name: str, count: int) -> Variant:
        done = float(every * count / steps)
        return Variant(name, model, head, Pi0Decoder(model, count), evaluations=lambda: done)

    recorder: Any = Recorder(len(blocks))
    noise = head.draw(1, torch.Generator().manual_seed(config["seed"]))["start"].to(seen["state_BS"].device)
    with Adapted(branches, recorder) as adapted:
        model.decode(model.encode(seen), noise, steps, adapted)
    flat = {block: recorder.flat(index) for index, block in enumerate(blocks)}
    alike = {block: similarity(outputs) for block, outputs in flat.items()}
    errors = {block: reuse_error(outputs) for block, outputs in flat.items()}
    recording = Recording(alike, alike, errors, steps, "euler", None, "cosine", "one observation")
    library = Pi0Library(model, steps)
    found = [plain_variant("plain", steps), Variant("transformers' sample_actions", library, head, library)]
    if captures(model):
        found.append(Variant("captured", model, head, None, whole=Pi0Captured(model, steps)))
    for updates in sorted({max(1, steps // 2), max(1, steps // 4)}, reverse=True):
        for method, bubble in (("uniform", 0), ("bac", config["bubble"][-1])):
            made = schedule(recording, method, updates, bubble)
            plan = [{blocks.index(block) for block in made.updated(k)} for k in range(steps)]
            cache = FeatureCache(plan, len(blocks))
            found.append(counted(Variant(f"{method} {updates}", model, head, Pi0Decoder(model, steps, cache)), cache))
        found.append(plain_variant(f"{updates} steps", updates))
    return found
