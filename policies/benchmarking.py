"""What the benchmark command asks for: every way to decode, timed in turn on the same observations, in one run.

A row is one variant: how long a whole chunk takes from images to actions, what it computes, how far its chunks are
from the plain decode's and from recorded ones. Variants are interleaved, so that whatever else the machine does hits
all alike; what is timed first of all is thrown away.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.checkpoint import load_policy, own_class
from policies.decoding import Decode
from policies.heads.diffusion import Diffusion, Flow
from policies.judging import EARLIER, Frame, frames, overlap
from policies.presets import Pi0Subject, preset_policy, random_observations
from policies.shipped import folder_of
from policies.sweep import sweep, sweep_plot
from policies.timing import counted_flops, finish
from policies.variants import Pi0Head, Variant, pi0_variants, variants_of
from policies.vla import VLAPolicy
from vla_runtime.contract import Contract, require_match
from vla_runtime.control.clock import Clock, SystemClock
from vla_runtime.data.joined import Joined
from vla_runtime.disk import replacing, write_json
from vla_runtime.evaluation.resampling import bootstrap_interval
from vla_runtime.machine import hardware
from vla_runtime.types import Observation

STAGES = ("observe", "vision", "prefix", "decode", "post")
_log = logging.getLogger(__name__)


class _Stages:
    """Times of one chunk: `mark` ends a stage."""

    def __init__(self, device: torch.device, clock: Clock):
        self._device, self._clock = device, clock
        finish(device)
        self._last = clock.now()
        self.seconds: list[float] = []

    def mark(self) -> None:
        finish(self._device)
        now = self._clock.now()
        self.seconds.append(now - self._last)
        self._last = now


def bench(config: Mapping[str, Any], data_folder: Callable[[], str]) -> dict[str, Any]:
    """Time what `config` (configs/bench.yaml) names; the last line of the command. Writes a file named
    after the policy and the device into `out`.

    data_folder: where recorded demonstrations lie; asked for where a trained policy is measured. SpecMismatch for data
    of another contract; ValueError for settings that cannot be.
    """
    device, preset = config["device"], config["preset"]
    if not isinstance(config["bubble"], list) or not config["bubble"]:
        raise ValueError(f"bubble: expected a list of numbers such as [3,5], got {config['bubble']!r}")
    if config["sweep"] and "backbone" not in preset:
        got = preset["name"] or "a trained policy"
        raise ValueError(f"sweep=true: expected a preset with a backbone of this package, got {got}")
    policy: Any
    if preset["name"] is None:
        values = config["policy"]
        heads = {name: own_class(target) for name, target in (values.get("heads") or {}).items()}
        policy = load_policy(values["folder"], heads, device, Decode("plain", precision=config["precision"]))
        made_from, *timed_on = _recorded_frames(policy, data_folder(), config)
        variants = variants_of(policy, made_from, config, folder_of(values["folder"]))
    else:
        policy = (Pi0Subject if preset["name"] == "pi0" else preset_policy)(preset, device, config["precision"])
        shown = random_observations(policy.spec, config["observations"] + 1 + EARLIER)
        made_from, *timed_on = [
            Frame((shown[index],), None, tuple((one,) for one in shown[index - EARLIER : index]), episode=index)
            for index in range(EARLIER, len(shown))
        ]
        if isinstance(policy, Pi0Subject):
            head = Pi0Head(*policy.chunk_shape)
            variants = pi0_variants(policy.backbone, head, policy.batch([made_from.seen]), config)
        else:
            variants = variants_of(policy, made_from, config, None)
    measure(policy, variants, timed_on, config["repeats"], config["warmup"], SystemClock(), config["seed"])
    counted = [one.evaluations() for one in variants]
    rows = [
        _row(one, variants[0], policy, evaluations, _flops(policy, one, timed_on[0], config["seed"]))
        for one, evaluations in zip(variants, counted, strict=True)
    ]
    plain_flops = next(row["flops"] for row in rows if row["variant"] == "plain")
    for row in rows:
        row["flops_ratio"] = None if row["flops"] is None else round(row["flops"] / plain_flops, 4)
    stages = next(one.seconds for one in variants if one.name == "plain")
    document = {
        "policy": policy.spec.name, "weights": policy.spec.weights, "trained": preset["name"] is None,
        "device": _device_name(policy.device), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "precision": policy.precision,
        "repeats": config["repeats"], "observations": len(timed_on), "horizon": policy.spec.horizon,
        "stages_ms": dict(zip(STAGES, (round(1e3 * float(ms), 3) for ms in np.median(stages, axis=0)), strict=True)),
        "rows": rows,
    }  # fmt: skip
    if config["sweep"]:
        document["sweep"] = sweep(preset, device, config["precision"], config["repeats"], SystemClock())
    if config["out"] is not None:
        out = Path(config["out"])
        write_json(out / f"{_file_name(document)}.json", document)
        if config["sweep"]:
            with replacing(out / f"{_file_name(document)}.png") as temporary:
                temporary.write_bytes(sweep_plot(policy.spec.name, document["sweep"]).png)
    return document


def _file_name(document: Mapping[str, Any]) -> str:
    """Names what was measured and on what."""
    words = f"bench {document['policy']} {document['precision']} {document['device']}"
    return "_".join(re.findall(r"[a-z0-9]+", words.lower()))


@torch.no_grad()
def measure(
    policy: Any,
    variants: Sequence[Variant],
    shown: Sequence[Frame],
    repeats: int,
    warmup: int,
    clock: Clock,
    seed: int,
) -> None:
    """Fill in what every variant took and gave: `warmup` rounds over all of them first, then `repeats`.

    Every round shows the next observation to each variant, with the same noise where the samplers' agree. Warm starts
    begin with their own chunk of the observation before, as in the loop; the first of those is plain.
    """
    plain = variants[0]
    for turn in range(warmup + repeats):
        frame = shown[turn % len(shown)]
        wanted = None if frame.chunk is None else torch.from_numpy(policy.action.forward(frame.chunk.actions))
        if any(one.warm for one in variants):
            _lead_up(policy, plain, variants, frame.before, seed + 2 * turn + 1)
        expected: Tensor | None = None
        for one in variants:
            guess = _guess(one, frame.observation)
            one.begin()
            noise = _noise(policy, one, seed + 2 * turn)
            stages = _Stages(policy.device, clock)
            rows, _ = _chunk(policy, one, frame.seen, noise, guess, stages)
            found = rows.float().cpu()[0]
            expected = found if expected is None else expected
            one.chunks += 1
            if turn >= warmup:
                one.seconds.append(stages.seconds)
                if one.comparable:
                    one.deviation.setdefault(frame.episode, []).append(float((found - expected).abs().mean()))
                if wanted is not None:
                    one.error.setdefault(frame.episode, []).append(float((found - wanted).abs().mean()))
        if turn % 20 == 0:
            _log.info("round %d of %d, %d variants", turn + 1, warmup + repeats, len(variants))


def _lead_up(
    policy: Any, plain: Variant, variants: Sequence[Variant], before: Sequence[Sequence[Observation]], seed: int
) -> None:
    """Let warm variants decode what comes before, untimed."""
    for link, seen in enumerate(before):
        first = None if link else _chunk(policy, plain, seen, _noise(policy, plain, seed), None)[0]
        for one in variants:
            if one.warm is None:
                continue
            rows = first
            if rows is None:
                one.begin()
                rows = _chunk(policy, one, seen, _noise(policy, one, seed), _guess(one, seen[-1]))[0]
                one.chunks += 1
            one.warm.keep(rows, seen[-1].time, seen[-1].instruction)


def _guess(one: Variant, seen: Observation) -> Tensor | None:
    """What a variant begins with; None for noise. ValueError for a chunk before that does not reach so far."""
    if one.warm is None:
        return None
    found = one.warm.guess(seen.time, seen.instruction)
    if found is None:
        raise ValueError("warm_start: expected a chunk that reaches into the next, got none; take null")
    return found


def _chunk(
    policy: Any, one: Variant, seen: Sequence[Observation], noise: dict[str, Tensor], guess: Tensor | None,
    stages: _Stages | None = None,
) -> tuple[Tensor, Any]:  # fmt: skip
    mark = stages.mark if stages is not None else lambda: None
    batch = policy.batch([seen])
    mark()
    features = one.backbone.features(batch)
    mark()
    context = one.backbone.remember(*features)
    mark()
    if guess is None or one.warm is None:
        rows = one.decoder(context, None, noise, 1)
    else:
        rows = one.decoder(context, None, noise, 1, guess, one.warm.first)
    mark()
    actions = policy.actions(rows)
    mark()
    return rows, actions


def _noise(policy: Any, one: Variant, seed: int) -> dict[str, Tensor]:
    drawn = one.head.draw(1, torch.Generator().manual_seed(seed))
    return {name: value.to(policy.device) for name, value in drawn.items()}


def _row(one: Variant, plain: Variant, policy: Any, evaluations: float | None, flops: int | None) -> dict[str, Any]:
    whole, reference = (np.sum(variant.seconds, axis=1) for variant in (one, plain))
    p50 = float(np.median(whole))
    return {
        "variant": one.name,
        **{f"p{share}_ms": round(1e3 * float(np.percentile(whole, share)), 3) for share in (50, 95, 99)},
        "decode_p50_ms": round(1e3 * float(np.median(np.array(one.seconds)[:, 3])), 3),
        # Rounds are pairs: the ratio of each, so that what hits a whole round cancels out.
        "speedup": round(float(np.median(reference / whole)), 2),
        "speedup_interval": [round(end, 2) for end in bootstrap_interval(reference / whole, np.median)],
        "flops": flops,
        "flops_ratio": None,
        "evaluations": evaluations,
        "chunks_per_s": round(1 / p50, 2),
        "actions_per_s": round((policy.spec.executed or policy.spec.horizon) / p50, 1),
        "deviation": _middle(one.deviation)[0],
        "expert_error": _middle(one.error)[0],
        "expert_error_interval": _middle(one.error)[1],
    }


def _middle(values: Mapping[int, Sequence[float]]) -> tuple[float | None, tuple[float, float] | None]:
    """The median over episodes, and its interval: observations of one episode do not count as several."""
    if not values:
        return None, None
    means = np.array([np.mean(one) for one in values.values()])
    return float(np.median(means)), bootstrap_interval(means, np.median)


@torch.no_grad()
def _flops(policy: Any, one: Variant, frame: Frame, seed: int) -> int | None:
    """Counted floating-point operations of the decode, by torch's own counter; None of a graph, where it sees none."""
    if one.captured:
        return None
    context = one.backbone.remember(*one.backbone.features(policy.batch([frame.seen])))
    noise = _noise(policy, one, seed)
    # What is guessed does not change what it costs.
    guess = torch.zeros_like(noise["start"]) if one.warm else None
    one.begin()
    if guess is None or one.warm is None:
        return counted_flops(lambda: one.decoder(context, None, noise, 1))
    first = one.warm.first
    return counted_flops(lambda: one.decoder(context, None, noise, 1, guess, first))


def _recorded_frames(policy: VLAPolicy, data: str, config: Mapping[str, Any]) -> list[Frame]:
    dataset = Joined.of(data, policy.spec.horizon, config["control"])
    data_contract = replace(dataset.contract, action=dataset.action)
    require_match(Contract.of(policy.spec), data_contract, "the policy", f"data {data}")
    if policy.spec.seen & dataset.initial_states:
        _log.warning("data %s: the policy was trained on some of it; take other demonstrations to judge it by", data)
    warm = config["warm_start"] is not None and isinstance(policy.head, Diffusion | Flow)
    apart = overlap(policy) if warm else 0
    offsets = policy.spec.observation_offsets
    made_from, timed_on = frames(dataset, offsets, 1, config["observations"], apart, config["seed"])
    return [*made_from, *timed_on]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else hardware()
