"""What the calibration command asks for: record, make schedules, judge them beside every obvious alternative, choose.

Judged are the exact savings, caching in all its forms, fewer steps of other samplers, and warm starts, all in
one run and on frames that were not recorded. What is recommended is the fastest way whose chunks are, on
average, as near to the recorded ones as the plain decode's are, within a tolerance.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies.calibration import Frame, Judgement, Recording, frames, judge, record, sampler_of, schedule
from policies.checkpoint import load_policy, own_class
from policies.decoding import NAMED, PLAIN, Decode
from policies.shipped import folder_of
from policies.vla import VLAPolicy
from vla_runtime.contract import Contract, require_match
from vla_runtime.control.clock import SystemClock
from vla_runtime.data.joined import Joined
from vla_runtime.decoding.bac import METRICS, Schedule
from vla_runtime.disk import write_json, write_text
from vla_runtime.evaluation.calibration_page import page
from vla_runtime.machine import hardware

SCHEDULE = "schedule.json"
USUAL = {"updates": (5, 7, 10, 20), "fewer_steps": (5, 10, 16, 20, 50)}
_log = logging.getLogger(__name__)


def calibrate(config: Mapping[str, Any], data_folder: Callable[[], str]) -> dict[str, Any]:
    """Calibrate the policy that `config` (configs/calibrate.yaml) names on a data set.

    data_folder: where it lies; asked for once, when the settings have been found to fit the policy. Writes
    schedule.json, calibration.json and calibration.html into `out`, and with `name=true` decode.json, which
    decode=auto follows. SpecMismatch for data of another contract, ValueError for a policy without steps and for
    settings out of range.
    """
    values = config["policy"]
    heads = {name: own_class(target) for name, target in (values.get("heads") or {}).items()}
    policy = load_policy(values["folder"], heads, config["device"], Decode("plain"))
    sampler, steps = sampler_of(policy.head)
    config = dict(config)
    for name, usual in USUAL.items():
        if config[name] is None:
            config[name] = [number for number in usual if number < steps]
    _check(config, policy, steps)
    data = data_folder()
    dataset = Joined.of(data, policy.spec.horizon, config["control"])
    data_contract = replace(dataset.contract, action=dataset.action)
    require_match(Contract.of(policy.spec), data_contract, "the policy", f"data {data}")
    if policy.spec.seen & dataset.initial_states:
        _log.warning("data %s: the policy was trained on some of it; take other demonstrations to judge it by", data)
    # All are judged on the same frames, also by those that need none before them.
    apart = (policy.spec.executed or policy.spec.horizon) if config["warm_start"] else 0
    found = frames(dataset, config["recorded"] + config["judged"], apart, config["seed"])
    recorded, rest = found[: config["recorded"]], found[config["recorded"] :]
    recording = record(policy, [frame.observation for frame in recorded], config["seed"], config["metric"])
    schedules = _schedules(recording, config)
    with tempfile.TemporaryDirectory() as folder:
        ways = _ways(schedules, Path(folder), sampler, steps, config)
        figures = judge(policy, ways, rest, SystemClock(), config["seed"] + 1)
    rows = _rows(figures, schedules, ways, policy, steps, _memory(policy, rest[0]))
    best, _ = _best(rows, figures, config["tolerance"])
    cached, good = _best(rows, schedules, config["tolerance"])
    if not good:
        _log.warning("no caching schedule is within the tolerance; the nearest is %s", cached)
    out = Path(config["out"] or folder_of(values["folder"]))
    schedules[cached].save(out / SCHEDULE)
    named = {**asdict(ways[best]), "schedule": SCHEDULE if best in schedules else None}
    document = {
        "policy": policy.spec.name, "weights": policy.spec.weights, "hardware": hardware(), "sampler": sampler,
        "steps": steps, "recorded": len(recorded), "judged": len(rest), "metric": recording.metric,
        "tolerance": config["tolerance"], "recommendation": best, "cached": cached, "cached_is_good": good,
        "rows": rows,
    }  # fmt: skip
    write_json(out / "calibration.json", document)
    write_text(out / "calibration.html", page(document))
    if config["name"]:
        write_json(out / NAMED, named)
    chosen = next(row for row in rows if row["variant"] == cached)
    return {
        "schedule": str(out / SCHEDULE), "steps": steps, "updates": schedules[cached].updates,
        "flops_ratio": chosen["flops_ratio"], "action_error": chosen["deviation"],
        "recommendation": best, "report": str(out / "calibration.html"),
    }  # fmt: skip


def _check(config: Mapping[str, Any], policy: VLAPolicy, steps: int) -> None:
    backbone: Any = policy.backbone
    if not hasattr(backbone, "blocks"):
        raise ValueError(f"calibrate: expected a backbone with blocks, got {backbone.name}")
    ranges = (("updates", 1, steps), ("bubble", 0, len(backbone.blocks())), ("fewer_steps", 1, steps - 1))
    for name, low, high in ranges:
        for value in config[name]:
            if not low <= value <= high:
                raise ValueError(
                    f"{name}: expected numbers from {low} to {high}, got {value}; this policy takes {steps} steps"
                )
    if config["metric"] not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {config['metric']!r}")
    if config["name"] and config["out"] is not None:
        raise ValueError("name=true: expected out=null, since decode=auto looks in the checkpoint's own folder")


def _schedules(recording: Recording, config: Mapping[str, Any]) -> dict[str, Schedule]:
    found = {}
    for updates in config["updates"]:
        for method in ("uniform", "unified", "blockwise"):
            found[f"{method} {updates}"] = schedule(recording, method, updates)
        for bubble in config["bubble"]:
            found[f"bac {updates}, {bubble} bubbled"] = schedule(recording, "bac", updates, bubble)
    return found


def _ways(
    schedules: Mapping[str, Schedule], folder: Path, sampler: str, steps: int, config: Mapping[str, Any]
) -> dict[str, Decode]:
    """Every way to decode by its name. Schedules are written into `folder`."""
    ways = {"plain": PLAIN, "exact": Decode("exact")}
    for index, (name, one) in enumerate(schedules.items()):
        path = folder / f"{index}.json"
        one.save(path)
        ways[name] = Decode("bac", schedule=str(path))
    for fewer in config["fewer_steps"]:
        if sampler == "euler":
            ways[f"{fewer} steps"] = Decode("exact", steps=fewer)
            continue
        for other in ("ddim", "dpm"):
            ways[f"{other} {fewer}"] = Decode("exact", sampler=other, steps=fewer)
    for share in config["warm_start"]:
        ways[f"warm start {share:g}"] = Decode("exact", warm_start=share)
    return ways


def _rows(
    figures: Mapping[str, Judgement],
    schedules: Mapping[str, Schedule],
    ways: Mapping[str, Decode],
    policy: VLAPolicy,
    steps: int,
    memory: int,
) -> list[dict[str, Any]]:
    backbone: Any = policy.backbone
    slots = policy.spec.horizon + policy.spec.max_committed
    costs = dict(zip(backbone.blocks(), backbone.costs(slots, memory), strict=True))
    full = steps * sum(costs.values())
    rows = []
    plain = figures["plain"]
    for name, own in figures.items():
        if name in schedules:
            share = sum(len(at) * costs[block] for block, at in schedules[name].blocks.items()) / full
        else:
            share = (ways[name].steps or steps) / steps * (ways[name].warm_start or 1.0)
        rows.append({
            "variant": name,
            "p50_ms": round(1e3 * float(np.median(own.seconds)), 3),
            "p95_ms": round(1e3 * float(np.percentile(own.seconds, 95)), 3),
            "speedup": round(float(np.median(plain.seconds) / np.median(own.seconds)), 2),
            "flops_ratio": round(share, 4),
            "deviation": float(np.median(own.deviation)),
            "expert_error": float(np.mean(own.expert_error)),
        })  # fmt: skip
    return rows


@torch.no_grad()
def _memory(policy: VLAPolicy, frame: Frame) -> int:
    """Tokens that slots can look at: the context's, and the time."""
    backbone: Any = policy.backbone
    return int(backbone.encode(policy.batch([frame.observation])).memory[0][0].shape[2]) + 1


def _best(rows: Sequence[Mapping[str, Any]], among: Collection[str], tolerance: float) -> tuple[str, bool]:
    """The fastest whose mean expert error is at most plain's times 1 + tolerance, and whether there is one.

    Where there is none, the nearest to it.
    """
    plain = next(row["expert_error"] for row in rows if row["variant"] == "plain")
    known = [row for row in rows if row["variant"] in among]
    good = [row for row in known if row["expert_error"] <= plain * (1 + tolerance)]
    if good:
        return str(min(good, key=lambda row: row["p50_ms"])["variant"]), True
    return str(min(known, key=lambda row: row["expert_error"])["variant"]), False
