"""Every way to decode a policy that can be compared: what `bench` times in turn.

A variant is a backbone, a head and a decoder that answer alike. Some have a rival's layers or caches under the same
weights, some keep nothing of the prefix; "plain" is always the first.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from policies.calibration import prefix_similarity, record, sampler_of, schedule
from policies.decoders import Decoder, MaskedDecoder, PlainDecoder
from policies.decoding import AUTO, PLAIN, Decode, prepared_decoder, refreshable, with_steps
from policies.frames import Frame
from policies.heads.diffusion import Diffusion, Flow
from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.heads.prepared import PreparedDecoder
from policies.rivals import DiffusersCache, TorchDecoder
from policies.vla import VLAPolicy
from policies.warm_start import WarmStart
from vla_runtime.decoding.bac import Schedule, adaptive
from vla_runtime.decoding.feature_cache import CachedSteps
from vla_runtime.decoding.prefix import RefreshedPrefix

# Where nobody says how many, of fewer steps.
USUAL_STEPS = (10, 16)


# The variant that a captured one, or one that reuses branches, is also compared with: the same sums as plain's.
EXACT = "exact savings"


@dataclass(slots=True)
class Variant:
    """A decoding of an observation into a chunk. backbone: what encodes and steps; head: what draws the noise.

    decoder: as a session's, from a context to rows; whole: instead of it, from a batch to rows in one call, of which
    no stages are timed and no operations counted; asked: the policy that makes its batches. warm: what an earlier chunk
    is kept in. begin: called before every decode, untimed. evaluations: residual branches a chunk computes, None where
    nobody counts.
    comparable: to plain, chunk by chunk with the same noise; another sampler is not.
    seconds: of whole chunks; stages: of each stage of chunks timed stage by stage. deviation, error: by episode.
    """

    name: str
    backbone: Any
    head: Any
    decoder: Decoder | None
    warm: WarmStart | None = None
    begin: Callable[[], None] = lambda: None
    evaluations: Callable[[], float | None] = lambda: None
    whole: Any = None
    asked: Any = None
    seconds: list[float] = field(default_factory=list)
    stages: list[list[float]] = field(default_factory=list)
    deviation: dict[int, list[float]] = field(default_factory=dict)
    error: dict[int, list[float]] = field(default_factory=dict)
    chunks: int = 0
    comparable: bool = True


def captures(policy: Any) -> bool:
    """Whether a policy's device can capture what runs on it as CUDA graphs."""
    return bool(policy.device.type == "cuda")


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
    if head.name == "autoregressive":
        return [plain]
    captured = [_whole("captured", policy, Decode("plain", graphs=True))] if captures(policy) else []
    return [plain, *captured, *_compiled(policy, config)]


def _denoising(policy: VLAPolicy, made_from: Frame, config: Mapping[str, Any], named: Path | None) -> list[Variant]:
    head: Any = policy.head
    backbone: Any = policy.backbone
    updates, bubbles = config["updates"], config["bubble"]
    recording = record(policy, [made_from.seen], config["seed"])
    if not 1 <= updates <= recording.steps:
        raise ValueError(f"updates: expected 1 to {recording.steps} (all steps), got {updates}")
    torchs = TorchDecoder(backbone)
    found = [Variant("torch nn.TransformerDecoder", torchs, head, PlainDecoder(head, torchs))]
    found.append(_prepared(EXACT, policy, Decode("exact")))
    each = {f"bac {updates}, {bubble} bubbled": schedule(recording, "bac", updates, bubble) for bubble in bubbles}
    last, bac = list(each.items())[-1]
    even = schedule(recording, "uniform", updates)
    alone = CachedDecoder(head, backbone, bac)
    found.append(counted(Variant(last, backbone, head, alone), alone.cache))
    apart = schedule(recording, "blockwise", updates)
    for name, made in {f"uniform {updates}": even, f"blockwise {updates}": apart, **each}.items():
        decoder = prepared_decoder(head, backbone, made)
        assert decoder.cache is not None
        found.append(counted(Variant(f"{name} + exact", backbone, head, decoder), decoder.cache))
    if captures(policy):
        found.append(_whole(f"{EXACT}, captured", policy, Decode("exact", graphs=True)))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "schedule.json"
            bac.save(path)
            found.append(_whole(f"{last} + exact, captured", policy, Decode("bac", schedule=str(path), graphs=True)))
    found += _compiled(policy, config)
    share = config["warm_start"]
    if share is not None:
        found.append(_prepared(f"warm start {share:g} + exact", policy, Decode("exact", warm_start=share)))
        decoder = prepared_decoder(head, backbone, bac)
        assert decoder.cache is not None
        warm = policy.decoding(Decode("exact", warm_start=share)).warm_start()
        found.append(counted(Variant(f"{last}, warm start {share:g} + exact", backbone, head, decoder, warm),
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
        if captures(policy):
            found.append(_whole(f"{rounds} rounds, captured", policy, Decode("plain", steps=rounds, graphs=True)))
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
    found += _compiled(policy, config)
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
        return counted(found, decoder.cache)
    found.evaluations = _every(found)
    return found


def _whole(name: str, policy: VLAPolicy, decode: Decode) -> Variant:
    """A variant that goes from a batch to rows in one call, as a session with graphs does."""
    asked = policy.decoding(decode)
    whole = asked.chunk_decoder()
    return Variant(name, policy.backbone, asked.head, None, asked.warm_start(), whole=whole, asked=asked)


def _compiled(policy: VLAPolicy, config: Mapping[str, Any]) -> list[Variant]:
    """The plain decode with compiled passes, and captured where that is possible; none where that is not asked for.

    Denoising captured in compiled passes is left out: it is as long as plain's, which nobody captures.
    """
    asked = captures(policy) if config["compile"] is None else config["compile"]
    if not asked:
        return []
    found = [_whole("compiled", policy, Decode("plain", compile=True))]
    if captures(policy) and not isinstance(policy.head, Diffusion | Flow):
        found.append(_whole("compiled, captured", policy, Decode("plain", compile=True, graphs=True)))
    return found


def _every(one: Variant) -> Callable[[], float]:
    """Every branch at every step that is taken."""
    steps = sampler_of(one.head)[1] - (one.warm.first if one.warm else 0)
    return lambda: float(steps * len(one.backbone.blocks()))


def counted(variant: Variant, cache: Any) -> Variant:
    """The variant, with the branches that its cache has computed divided by its chunks."""

    def count() -> float:
        return cache.evaluations / max(1, variant.chunks)  # type: ignore[no-any-return]

    variant.evaluations = count
    return variant
