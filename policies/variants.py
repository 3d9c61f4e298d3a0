"""Every way to decode a policy that can be compared: what `bench` times in turn.

A variant is a backbone, a head and a decoder that answer alike. Some have a rival's layers or caches under the same
weights, some keep nothing of the prefix; "plain" is always the first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policies.adapted import Adapted
from policies.calibration import Recorder, Recording, prefix_similarity, record, sampler_of, schedule
from policies.decoders import Decoder, MaskedDecoder, PlainDecoder
from policies.decoding import AUTO, PLAIN, Decode, refreshable, with_steps
from policies.heads.diffusion import Diffusion, Flow
from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.heads.prepared import PreparedDecoder
from policies.judging import Frame
from policies.pi0 import Pi0, Pi0Context
from policies.rivals import DiffusersCache, TorchDecoder
from policies.vla import VLAPolicy
from policies.warm_start import WarmStart
from vla_runtime.decoding.bac import Schedule, adaptive, reuse_error, similarity
from vla_runtime.decoding.feature_cache import CachedSteps, FeatureCache
from vla_runtime.decoding.prefix import RefreshedPrefix

# Where nobody says how many, of fewer steps.
USUAL_STEPS = (10, 16)


@dataclass(slots=True)
class Variant:
    """One way from an observation to a chunk. backbone: what encodes and steps; head: what draws the noise.

    decoder: as a session's. captured: as CUDA graphs, whose work nobody counts.
    warm: what an earlier chunk is kept in. begin: called before every decode, untimed.
    evaluations: residual branches a chunk computes, None where nobody counts. comparable: to plain, chunk by chunk with
    the same noise; another sampler is not. deviation, error: by episode.
    """

    name: str
    backbone: Any
    head: Any
    decoder: Decoder
    warm: WarmStart | None = None
    begin: Callable[[], None] = lambda: None
    evaluations: Callable[[], float | None] = lambda: None
    captured: bool = False
    seconds: list[list[float]] = field(default_factory=list)
    deviation: dict[int, list[float]] = field(default_factory=dict)
    error: dict[int, list[float]] = field(default_factory=dict)
    chunks: int = 0
    comparable: bool = True


class Recomputed:
    """A backbone that keeps nothing of the prefix: every step computes it again from what the eyes saw."""

    name = "recomputed"

    def __init__(self, backbone: Any):
        self._backbone = backbone
        self.features = backbone.features

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def remember(self, *features: Tensor) -> tuple[Tensor, ...]:
        """The features themselves."""
        return features

    def step(
        self,
        context: tuple[Tensor, ...],
        slots_BLD: Tensor,
        mask_LL: Tensor | None = None,
        cond_BD: Tensor | None = None,
    ) -> Tensor:
        """As the backbone's, on a prefix computed for this step."""
        return self._backbone.step(self._backbone.remember(*context), slots_BLD, mask_LL, cond_BD)  # type: ignore[no-any-return]


class CachedDecoder:
    """A head's own plain decode over a backbone that reuses branches: caching alone, without the exact savings."""

    def __init__(self, head: Any, backbone: Any, schedule: Schedule):
        prepared = PreparedDecoder(head, backbone, schedule)
        assert prepared.cache is not None
        self.cache = prepared.cache
        self._head, self._steps = head, CachedSteps(backbone, prepared.cache)
        self.facts: dict[str, float] = {}

    def __call__(self, context: Any, committed: Any, noise: dict[str, Tensor], batch: int = 1, *warm: Any) -> Tensor:
        self._steps.begin()
        return self._head.decode(self._steps, context, committed, noise, batch)  # type: ignore[no-any-return]


def variants_of(policy: VLAPolicy, made_from: Frame, config: Mapping[str, Any], named: Path | None) -> list[Variant]:
    """Everything that can be compared for a policy's head; "plain" is first. made_from: what a schedule is made of."""
    head: Any = policy.head
    backbone: Any = policy.backbone
    plain = Variant("plain", backbone, head, PlainDecoder(head, backbone))
    if isinstance(head, Diffusion | Flow) and hasattr(backbone, "blocks"):
        plain.evaluations = _every(plain)
        return [plain, *_denoising(policy, made_from, config, named)]
    if isinstance(head, DiscreteDiffusion):
        return [plain, *_masked(policy, made_from, config)]
    return [plain]


def _denoising(policy: VLAPolicy, made_from: Frame, config: Mapping[str, Any], named: Path | None) -> list[Variant]:
    head: Any = policy.head
    backbone: Any = policy.backbone
    updates, bubbles = config["updates"], config["bubble"]
    recording = record(policy, [made_from.seen], config["seed"])
    if not 1 <= updates <= recording.steps:
        raise ValueError(f"updates: expected 1 to {recording.steps} (all steps), got {updates}")
    torchs = TorchDecoder(backbone)
    found = [Variant("torch nn.TransformerDecoder", torchs, head, PlainDecoder(head, torchs))]
    found.append(_prepared("exact savings", policy, Decode("exact")))
    each = {f"bac {updates}, {bubble} bubbled": schedule(recording, "bac", updates, bubble) for bubble in bubbles}
    last, bac = list(each.items())[-1]
    even = schedule(recording, "uniform", updates)
    alone = CachedDecoder(head, backbone, bac)
    found.append(_counted(Variant(last, backbone, head, alone), alone.cache))
    apart = schedule(recording, "blockwise", updates)
    for name, made in {f"uniform {updates}": even, f"blockwise {updates}": apart, **each}.items():
        decoder = PreparedDecoder(head, backbone, made)
        assert decoder.cache is not None
        found.append(_counted(Variant(f"{name} + exact", backbone, head, decoder), decoder.cache))
    share = config["warm_start"]
    if share is not None:
        found.append(_prepared(f"warm start {share:g} + exact", policy, Decode("exact", warm_start=share)))
        decoder = PreparedDecoder(head, backbone, bac)
        assert decoder.cache is not None
        warm = policy.decoding(Decode("exact", warm_start=share)).warm_start()
        found.append(_counted(Variant(f"{last}, warm start {share:g} + exact", backbone, head, decoder, warm),
                              decoder.cache))  # fmt: skip
    for steps in _fewer(config["fewer_steps"], recording.steps):
        samplers = ("ddim", "dpm") if isinstance(head, Diffusion) else (None,)
        for sampler in samplers:
            name = f"{sampler} {steps} + exact" if sampler else f"{steps} steps + exact"
            found.append(_prepared(name, policy, Decode("exact", sampler=sampler, steps=steps)))
            found[-1].comparable = sampler is None or sampler == recording.sampler
    caches = [
        *((f"diffusers first-block, {one:g}", DiffusersCache(backbone, "first_block", threshold=one))
          for one in config["first_block"]),
        (f"diffusers TaylorSeer, every {config['taylorseer']}",
         DiffusersCache(backbone, "taylorseer", interval=config["taylorseer"])),
    ]  # fmt: skip
    for name, cache in caches:
        found.append(Variant(name, cache, head, PlainDecoder(head, cache), begin=cache.begin))
    if named is not None and (own := AUTO.named(named, head)) != PLAIN:
        # In the precision that is timed, whichever it was calibrated in.
        found.append(_prepared("as the checkpoint names", policy, replace(own, precision=None)))
        found[-1].comparable = own.sampler in (None, recording.sampler)
    return found


def _fewer(asked: Sequence[int] | None, steps: int) -> list[int]:
    """Numbers of steps that are fewer than a policy's. ValueError for one that is not."""
    if asked is None:
        return [fewer for fewer in USUAL_STEPS if fewer < steps]
    for fewer in asked:
        if not 1 <= fewer < steps:
            raise ValueError(f"fewer_steps: expected numbers from 1 to {steps - 1}, got {fewer}")
    return list(asked)


def _masked(policy: VLAPolicy, made_from: Frame, config: Mapping[str, Any]) -> list[Variant]:
    backbone: Any = policy.backbone
    found = []
    for rounds in config["rounds"]:
        head = with_steps(policy.head, Decode("plain", steps=rounds))
        found.append(Variant(f"{rounds} rounds", backbone, head, MaskedDecoder(head, backbone, None)))
        again = Recomputed(backbone)
        name = f"{rounds} rounds, keys and values of the context recomputed"
        found.append(Variant(name, again, head, MaskedDecoder(head, again, None)))
        if rounds > 1:
            chance = copy.copy(head)
            chance.decoding = replace(head.decoding, order="random")
            decoder = MaskedDecoder(chance, backbone, None)
            found.append(Variant(f"{rounds} rounds, random order", backbone, chance, decoder))
    sure = with_steps(policy.head, Decode("plain", confident=config["confident"]))
    name = f"rounds until all are {config['confident']:.0%} sure"
    found.append(Variant(name, backbone, sure, MaskedDecoder(sure, backbone, None)))
    return [*found, *_refreshed(policy, made_from)] if refreshable(backbone) else found


def _refreshed(policy: VLAPolicy, made_from: Frame) -> list[Variant]:
    """A prefix that sees the slots, kept between some of the rounds: each, every third, the first, and as chosen by its
    own similarity, as often as every third.
    """
    backbone: Any = policy.backbone
    head: Any = policy.head
    rounds = head.decoding.rounds
    third = tuple(range(0, rounds, 3))
    chosen = adaptive(prefix_similarity(policy, [made_from.seen]), len(third))
    plans = {"every round": tuple(range(rounds)), "every third": third, "once": (0,), "by similarity": chosen}
    return [
        Variant(f"prefix anew {name}", backbone, head, MaskedDecoder(head, RefreshedPrefix(backbone, plan), None))
        for name, plan in plans.items()
    ]


def _prepared(name: str, policy: VLAPolicy, decode: Decode) -> Variant:
    asked = policy.decoding(decode)
    decoder = asked.decoder()
    found = Variant(name, policy.backbone, asked.head, decoder, asked.warm_start())
    if isinstance(decoder, PreparedDecoder) and decoder.cache is not None:
        return _counted(found, decoder.cache)
    found.evaluations = _every(found)
    return found


def _every(one: Variant) -> Callable[[], float]:
    """Every branch at every step that is taken."""
    steps = sampler_of(one.head)[1] - (one.warm.first if one.warm else 0)
    return lambda: float(steps * len(one.backbone.blocks()))


def _counted(variant: Variant, cache: Any) -> Variant:
    def count() -> float:
        return cache.evaluations / max(1, variant.chunks)  # type: ignore[no-any-return]

    variant.evaluations = count
    return variant


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
    for updates in sorted({max(1, steps // 2), max(1, steps // 4)}, reverse=True):
        for method, bubble in (("uniform", 0), ("bac", config["bubble"][-1])):
            made = schedule(recording, method, updates, bubble)
            plan = [{blocks.index(block) for block in made.updated(k)} for k in range(steps)]
            cache = FeatureCache(plan, len(blocks))
            found.append(_counted(Variant(f"{method} {updates}", model, head, Pi0Decoder(model, steps, cache)), cache))
        found.append(plain_variant(f"{updates} steps", updates))
    return found
