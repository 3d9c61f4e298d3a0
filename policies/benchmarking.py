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

from policies.checkpoint import load_policy, own_class
from policies.decoding import Decode
from policies.frames import EARLIER, Frame, frames, overlap
from policies.heads.diffusion import Diffusion, Flow
from policies.measuring import ROUNDS, STAGES, measure, noise_of
from policies.pi0_variants import Pi0Head, pi0_variants
from policies.presets import Pi0Subject, preset_policy, random_observations
from policies.shipped import folder_of
from policies.sweep import sweep, sweep_plot
from policies.timing import counted_flops
from policies.variants import EXACT, Variant, variants_of
from policies.vla import VLAPolicy
from vla_runtime.contract import Contract, require_match
from vla_runtime.control.clock import SystemClock
from vla_runtime.data.joined import Joined
from vla_runtime.disk import replacing, write_json
from vla_runtime.evaluation.resampling import bootstrap_interval
from vla_runtime.machine import hardware

_log = logging.getLogger(__name__)


def bench(config: Mapping[str, Any], data_folder: Callable[[], str]) -> dict[str, Any]:
    """Time what `config` (configs/bench.yaml) names; the last line of the command. Writes a file named
    after the policy and the device into `out`.

    data_folder: where recorded demonstrations lie; asked for where a trained policy is measured. SpecMismatch for data
    of another contract; ValueError for settings that cannot be.
    """
    device, preset = config["device"], config["preset"]
    precision = config["precision"] or preset.get("precision") or "fp32"
    if not isinstance(config["bubble"], list) or not config["bubble"]:
        raise ValueError(f"bubble: expected a list of numbers such as [3,5], got {config['bubble']!r}")
    if config["sweep"] and "backbone" not in preset:
        got = preset["name"] or "a trained policy"
        raise ValueError(f"sweep=true: expected a preset with a backbone of this package, got {got}")
    policy: Any
    if preset["name"] is None:
        values = config["policy"]
        heads = {name: own_class(target) for name, target in (values.get("heads") or {}).items()}
        policy = load_policy(values["folder"], heads, device, Decode("plain", precision=precision))
        made_from, *timed_on = _recorded_frames(policy, data_folder(), config)
        variants = variants_of(policy, made_from, config, folder_of(values["folder"]))
    else:
        policy = (Pi0Subject if preset["name"] == "pi0" else preset_policy)(preset, device, precision)
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
    repeats = measure(policy, variants, timed_on, config["repeats"], config["warmup"], SystemClock(), config["seed"])
    evaluated = [one.evaluations() for one in variants]
    rows = [
        _row(one, variants, policy, evaluations, repeats, _flops(policy, one, timed_on[0], config["seed"]))
        for one, evaluations in zip(variants, evaluated, strict=True)
    ]
    plain_flops = next(row["flops"] for row in rows if row["variant"] == "plain")
    for row in rows:
        row["flops_ratio"] = None if row["flops"] is None else round(row["flops"] / plain_flops, 4)
    stages = next(one.stages for one in variants if one.name == "plain")
    document = {
        "policy": policy.spec.name, "weights": policy.spec.weights, "trained": preset["name"] is None,
        "device": _device_name(policy.device), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "precision": policy.precision,
        "repeats": repeats, "observations": len(timed_on), "horizon": policy.spec.horizon,
        "stages_ms": dict(zip(STAGES, (round(1e3 * float(ms), 3) for ms in np.median(stages, axis=0)), strict=True)),
        "rows": rows,
    }  # fmt: skip
    if config["sweep"]:
        document["sweep"] = sweep(preset, device, precision, config["repeats"] or ROUNDS, SystemClock())
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


def _row(
    one: Variant, variants: Sequence[Variant], policy: Any, evaluations: float | None, repeats: int, flops: int | None
) -> dict[str, Any]:
    plain = np.array(variants[0].seconds[:repeats])
    exact = next((np.array(other.seconds[:repeats]) for other in variants if other.name == EXACT), None)
    # Rounds are pairs: the ratio of each, so that what hits a whole round cancels out.
    paired = np.array(one.seconds[:repeats])
    p50 = float(np.median(one.seconds))
    return {
        "variant": one.name,
        "repeats": len(one.seconds),
        **{f"p{share}_ms": round(1e3 * float(np.percentile(one.seconds, share)), 3) for share in (50, 95, 99)},
        "decode_p50_ms": round(1e3 * float(np.median([each[3] for each in one.stages])), 3) if one.stages else None,
        "speedup": round(float(np.median(plain / paired)), 2),
        "speedup_interval": [round(end, 2) for end in bootstrap_interval(plain / paired, np.median)],
        # Without the work that plain repeats needlessly.
        "speedup_over_exact": None if exact is None else round(float(np.median(exact / paired)), 2),
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
    """Counted floating-point operations of the decode, by torch's own counter; None of one that is
    a single call, where it sees none.
    """
    if one.decoder is None:
        return None
    context = one.backbone.remember(*one.backbone.features(policy.batch([frame.seen])))
    noise = noise_of(policy, one, seed)
    # What is guessed does not change what it costs.
    guess = torch.zeros_like(noise["start"]) if one.warm else None
    one.begin()
    begun = () if guess is None or one.warm is None else (guess, one.warm.first)
    decoder = one.decoder
    return counted_flops(lambda: decoder(context, None, noise, 1, *begun))


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
