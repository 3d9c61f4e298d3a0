"""What the calibration command asks for: record, make schedules, judge them beside every obvious alternative, choose.

Judged are the exact savings, caching in all its forms, fewer steps of other samplers, and warm starts, all in
one run and on frames of other episodes than the recorded. What is recommended is the fastest way whose chunks are
shown to be as near to the recorded ones as the plain decode's are, within a tolerance.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies.calibration import record, sampler_of
from policies.checkpoint import load_policy, own_class
from policies.decoding import NAMED, Decode
from policies.frames import Frame, frames, overlap
from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.judging import Judgement, homogeneity, judge
from policies.plots import pareto
from policies.shipped import folder_of
from policies.variants import captures
from policies.verdicts import (
    at_equal_time,
    best_of,
    captured_ways,
    episodes_needed,
    families,
    guards,
    rivals,
    row_of,
    with_front,
)
from policies.vla import VLAPolicy
from policies.ways import (
    block_costs,
    caching_ways,
    in_full,
    references,
    reuses,
    rounds_ways,
    scheduled,
    schedules_of,
    steps_ways,
    with_usual,
)
from vla_runtime.contract import Contract, require_match
from vla_runtime.control.clock import SystemClock
from vla_runtime.data.joined import Joined
from vla_runtime.decoding.bac import METRICS, Schedule
from vla_runtime.disk import replacing, write_json, write_text
from vla_runtime.evaluation.calibration_page import page
from vla_runtime.machine import hardware

SCHEDULE = "schedule.json"
# On how many frames, each of another demonstration if there are so many, a schedule from one is tried.
HOMOGENEITY = 50
# From how many demonstrations a schedule is made, each alone, and tried on all others.
SOURCES = 3
_log = logging.getLogger(__name__)


def calibrate(config: Mapping[str, Any], data_folder: Callable[[], str]) -> dict[str, Any]:
    """Calibrate the policy that `config` (configs/calibrate.yaml) names on a data set.

    data_folder: where it lies; asked for once, when the settings have been found to fit the policy. Writes
    calibration.json and calibration.html into `out`, with `name=true` decode.json, which decode=auto follows, and
    schedule.json, but for a policy that can reuse nothing: masked diffusion, and backbones other than nano.
    SpecMismatch for data of another contract, ValueError for a policy without steps and for settings out of range.
    """
    values = config["policy"]
    heads = {name: own_class(target) for name, target in (values.get("heads") or {}).items()}
    decode = Decode("plain", precision=config["precision"])
    policy = load_policy(values["folder"], heads, config["device"], decode)
    masked, caches = isinstance(policy.head, DiscreteDiffusion), reuses(policy)
    sampler, steps = ("masked", policy.head.decoding.rounds) if masked else sampler_of(policy.head)
    config = with_usual(config, policy, steps)
    out = Path(config["out"] or folder_of(values["folder"]))
    _check(config, policy, steps, out)
    data = data_folder()
    dataset = Joined.of(data, policy.spec.horizon, config["control"])
    data_contract = replace(dataset.contract, action=dataset.action)
    require_match(Contract.of(policy.spec), data_contract, "the policy", f"data {data}")
    learned = len(policy.spec.seen & dataset.initial_states)
    if learned and config["name"]:
        raise ValueError(
            f"name=true: expected demonstrations that the policy has not learned from, got {learned} initial states in "
            f"{data} that it has; a way to decode is not chosen on those"
        )
    if learned:
        _log.warning("data %s: the policy was trained on some of it; take other demonstrations to judge it by", data)
    # All are judged on the same frames, also by those that need none before them.
    apart = overlap(policy) if config["warm_start"] else 0
    recorded, rest = frames(
        dataset, policy.spec.observation_offsets, config["recorded"], config["judged"], apart, config["seed"]
    )
    seen = [one.seen for one in recorded]
    recording = record(policy, seen, config["seed"], config["metric"]) if caches else None
    schedules = schedules_of(recording, block_costs(policy, rest[0]), config) if recording else {}
    episodes = np.array([frame.episode for frame in rest])
    with tempfile.TemporaryDirectory() as folder:
        if masked:
            ways = rounds_ways(policy, recorded, config)
        else:
            ways = steps_ways(policy, sampler, config["fewer_steps"])
            ways |= caching_ways(schedules, Path(folder), config)
        full = references(policy, ways, sampler)
        ways |= full
        figures = _judged(policy, ways, full, rest, config)
        if captures(policy):
            graphs = captured_ways({name: way for name, way in ways.items() if name not in full}, figures, episodes)
            ways |= graphs
            # Beside what their deviations are from, which is not timed again.
            again = _judged(policy, graphs | full, full, rest, config)
            figures |= {name: again[name] for name in graphs}
    rows = with_front([row_of(name, own, figures, episodes) for name, own in figures.items()])
    best, _ = best_of(rows, ways, config["tolerance"])
    count = len(set(episodes.tolist()))
    needed = episodes_needed(rows, count, config["tolerance"])
    if needed is not None:
        _log.warning(
            "tolerance=%g is narrower than %d episodes can show of another noise alone, so that good ways may be "
            "passed over; judge on %d or more",
            config["tolerance"], count, needed,
        )  # fmt: skip
    told, schedule_file = best, None
    document = {
        "policy": policy.spec.name, "weights": policy.spec.weights, "hardware": hardware(), "sampler": sampler,
        "learned_from": learned,
        "threads": torch.get_num_threads(), "torch": torch.__version__, "precision": policy.precision,
        "steps": steps, "recorded": len(recorded), "judged": len(rest),
        "noises": figures["plain"].expert_error.shape[1],
        "episodes": count, "episodes_needed": needed, "tolerance": config["tolerance"], "recommendation": best,
        "cached": None, "rows": rows,
    }  # fmt: skip
    if recording is not None:
        chosen, caching = _caching(policy, rest, recording.metric, rows, ways, figures, schedules, best, config)
        chosen.save(out / SCHEDULE)
        told, schedule_file = caching["cached"], str(out / SCHEDULE)
        document |= caching
    write_json(out / "calibration.json", document)
    chart = pareto(families(rows), ("milliseconds a chunk, median", "mean distance from the recorded chunk"))
    with replacing(out / "calibration.png") as temporary:
        temporary.write_bytes(chart.png)
    write_text(out / "calibration.html", page(document, chart.svg))
    if config["name"]:
        # Whether to capture is for whoever knows the machine it runs on.
        named = {**asdict(ways[best]), "graphs": None, "precision": config["precision"]}
        write_json(out / NAMED, {**named, "schedule": SCHEDULE if scheduled(best) in schedules else None})
    row = next(row for row in rows if row["variant"] == told)
    return {
        "schedule": schedule_file, "steps": steps, "updates": None if recording is None else chosen.updates,
        "flops_ratio": row["flops_ratio"], "action_error": row["deviation"], "cached": document["cached"],
        "recommendation": best, "report": str(out / "calibration.html"), "rows": rows,
    }  # fmt: skip


def _judged(
    policy: VLAPolicy,
    ways: Mapping[str, Decode],
    full: Mapping[str, Decode],
    rest: Sequence[Frame],
    config: Mapping[str, Any],
) -> dict[str, Judgement]:
    """Decodings on the frames to judge by; full: the references of those with another sampler, by name."""
    return judge(
        policy, ways, rest, SystemClock(), config["noises"], config["timed"], config["seed"] + 1,
        {name: whole for name, way in ways.items() if (whole := in_full(way.sampler)) in full},
    )  # fmt: skip


def _caching(
    policy: VLAPolicy,
    frames: Sequence[Frame],
    metric: str,
    rows: Sequence[Mapping[str, Any]],
    ways: Mapping[str, Decode],
    figures: Mapping[str, Judgement],
    schedules: Mapping[str, Schedule],
    best: str,
    config: Mapping[str, Any],
) -> tuple[Schedule, dict[str, Any]]:
    """The schedule that is kept, with its guard, and what is to be said of caching."""
    # A warm decode of a schedule names that schedule.
    own = scheduled(best)
    cached = own if own in schedules else best_of(rows, schedules, config["tolerance"])[0]
    good = best_of(rows, [cached], config["tolerance"])[1]
    if not good:
        _log.warning("no caching schedule is within the tolerance; the nearest is %s", cached)
    steps = schedules[cached].steps
    chosen = replace(schedules[cached], guard=guards(figures, ways, cached, steps))
    return chosen, {
        "metric": metric, "cached": cached, "cached_is_good": good, "equal_time": at_equal_time(rows, cached),
        "rivals": rivals(rows, cached, schedules),
        "guard": {str(first): bound for first, bound in chosen.guard.items()},
        "homogeneity": _homogeneity(policy, frames, chosen, config),
    }  # fmt: skip


def _check(config: Mapping[str, Any], policy: VLAPolicy, steps: int, out: Path) -> None:
    """ValueError for whatever would fail once minutes have gone into recording."""
    backbone: Any = policy.backbone
    caches = reuses(policy)
    ranges = [("fewer_steps", 1, steps - 1)]
    if caches:
        ranges += [("updates", 1, steps), ("bubble", 0, len(backbone.blocks()))]
    for name, low, high in ranges:
        for value in config[name]:
            if not low <= value <= high:
                raise ValueError(
                    f"{name}: expected numbers from {low} to {high}, got {value}; this policy takes {steps} steps"
                )
    for name in ("updates", "bubble"):
        if caches and not config[name]:
            raise ValueError(f"{name}: expected at least one number, got none; a schedule needs it")
    for share in config["warm_start"]:
        Decode("exact", warm_start=share)
    if config["warm_start"]:
        overlap(policy)
    # A sampler that has no so many steps, and a probability that is none.
    masked = isinstance(policy.head, DiscreteDiffusion)
    tried = (
        rounds_ways(policy, (), config)
        if masked
        else steps_ways(policy, sampler_of(policy.head)[0], config["fewer_steps"])
    )
    for way in tried.values():
        policy.decoding(way)
    if not config["tolerance"] >= 0:
        raise ValueError(f"tolerance: expected a share from 0 on, got {config['tolerance']}")
    named = json.loads((out / NAMED).read_text()) if (out / NAMED).is_file() else {}
    # One that names caching and no file means the schedule beside it.
    if caches and not config["name"] and (named.get("schedule") or named.get("mode") == "bac"):
        raise ValueError(
            f"{out / NAMED}: expected one that names no schedule, since that would be replaced; take name=true to "
            "write both anew, or another out="
        )
    if config["objective"] not in ("full", "adjacent"):
        raise ValueError(f"objective: expected full or adjacent, got {config['objective']!r}")
    if config["metric"] not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {config['metric']!r}")
    if config["name"] and config["out"] is not None:
        raise ValueError("name=true: expected out=null, since decode=auto looks in the checkpoint's own folder")


def _homogeneity(
    policy: VLAPolicy, frames: Sequence[Frame], chosen: Schedule, config: Mapping[str, Any]
) -> dict[str, Any] | None:
    """How schedules from one demonstration do on others, beside their own; None with too few frames."""
    seen = {frame.episode: frame for frame in reversed(frames)}
    tried = list(seen.values())[: HOMOGENEITY + SOURCES]
    if len(tried) < HOMOGENEITY + SOURCES:
        _log.warning(
            "data: frames of %d demonstrations, %d short of what shows whether one's schedule fits others",
            len(tried), HOMOGENEITY + SOURCES - len(tried),
        )  # fmt: skip
    if len(tried) <= SOURCES:
        return None
    force_last = bool(config["force_last_step"])
    others, own = homogeneity(policy, tried, SOURCES, chosen, config["seed"] + 2, force_last)
    ratio = others / np.maximum(own, 1e-12)
    return {
        "demonstrations": len(tried) - SOURCES, "sources": SOURCES, "method": chosen.method,
        "updates": chosen.updates, "bubble": chosen.bubble,
        "ratio_by_source": [float(one) for one in others.mean(1) / max(own.mean(), 1e-12)],
        "mean_square_of_another": float(others.mean()), "mean_square_of_its_own": float(own.mean()),
        "ratio": float(others.mean() / max(own.mean(), 1e-12)),
        "ratio_quartiles": [float(one) for one in np.quantile(ratio, (0.25, 0.5, 0.75))],
        "worst_square_of_another": float(others.max()),
    }  # fmt: skip
