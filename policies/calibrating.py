"""What the calibration command asks for: record, make schedules, judge them beside every obvious alternative, choose.

Judged are the exact savings, caching in all its forms, fewer steps of other samplers, and warm starts, all in
one run and on frames of other episodes than the recorded. What is recommended is the fastest way whose chunks are
shown to be as near to the recorded ones as the plain decode's are, within a tolerance.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies.calibration import Recording, prefix_similarity, record, sampler_of, schedule
from policies.checkpoint import load_policy, own_class
from policies.decoders import WarmStart
from policies.decoding import NAMED, PLAIN, Decode, refreshable
from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.judging import Frame, Judgement, frames, homogeneity, judge, overlap
from policies.plots import pareto
from policies.shipped import folder_of
from policies.vla import VLAPolicy
from vla_runtime.contract import Contract, require_match
from vla_runtime.control.clock import SystemClock
from vla_runtime.data.joined import Joined
from vla_runtime.decoding.bac import METRICS, Array, Block, Schedule, adaptive
from vla_runtime.decoding.denoise import Denoising, noise_schedule
from vla_runtime.disk import replacing, write_json, write_text
from vla_runtime.evaluation.calibration_page import page
from vla_runtime.evaluation.resampling import bootstrap_interval
from vla_runtime.machine import hardware

SCHEDULE = "schedule.json"
# On how many frames, each of another demonstration if there are so many, a schedule from one is tried.
HOMOGENEITY = 50
WARMED = ", warm start"
# Shares of a full decode's work that differ by so little of themselves count as equal.
_EQUAL_WORK = 0.1
# Of masked diffusion: its name, and rounds.
MASKED, ROUNDS = "masked", (1, 2, 4, 8)
CAPTURED = ", captured"
USUAL = {"updates": (5, 10, 20), "fewer_steps": (5, 10, 16), "bubble": (3, 5), "warm_start": (0.1, 0.2, 0.4)}
# Settings of what masked diffusion has not.
_REUSE = ("updates", "bubble", "warm_start")
# From how many demonstrations a schedule is made, each alone, and tried on all others.
SOURCES = 3
_log = logging.getLogger(__name__)


def calibrate(config: Mapping[str, Any], data_folder: Callable[[], str]) -> dict[str, Any]:
    """Calibrate the policy that `config` (configs/calibrate.yaml) names on a data set.

    data_folder: where it lies; asked for once, when the settings have been found to fit the policy. Writes
    schedule.json (but for masked diffusion, which reuses nothing and is judged with fewer rounds), calibration.json and
    calibration.html into `out`, and with `name=true` decode.json, which decode=auto follows. SpecMismatch for data of
    another contract, ValueError for a policy without steps and for settings out of range.
    """
    values = config["policy"]
    heads = {name: own_class(target) for name, target in (values.get("heads") or {}).items()}
    policy = load_policy(values["folder"], heads, config["device"], Decode("plain"))
    masked = isinstance(policy.head, DiscreteDiffusion)
    sampler, steps = (MASKED, policy.head.decoding.rounds) if masked else sampler_of(policy.head)
    config = _with_usual(config, policy, masked, steps)
    out = Path(config["out"] or folder_of(values["folder"]))
    _check(config, policy, sampler, steps, out)
    data = data_folder()
    dataset = Joined.of(data, policy.spec.horizon, config["control"])
    data_contract = replace(dataset.contract, action=dataset.action)
    require_match(Contract.of(policy.spec), data_contract, "the policy", f"data {data}")
    if policy.spec.seen & dataset.initial_states:
        _log.warning("data %s: the policy was trained on some of it; take other demonstrations to judge it by", data)
    # All are judged on the same frames, also by those that need none before them.
    apart = overlap(policy) if config["warm_start"] else 0
    recorded, rest = frames(
        dataset, policy.spec.observation_offsets, config["recorded"], config["judged"], apart, config["seed"]
    )
    recording = None if masked else record(policy, [one.seen for one in recorded], config["seed"], config["metric"])
    costs = {} if recording is None else _costs(policy, rest[0])
    schedules = {} if recording is None else _schedules(recording, costs, config)
    with tempfile.TemporaryDirectory() as folder:
        if masked:
            ways = rounds_ways(policy, recorded, config["fewer_steps"], config["seed"])
        else:
            ways = _ways(schedules, Path(folder), sampler, steps, config)
        if policy.device.type == "cuda":
            captured = {name: replace(way, graphs=True) for name, way in ways.items() if way.refresh is None}
            ways |= {f"{name}{CAPTURED}": way for name, way in captured.items()}
        references = _references(policy, ways, sampler)
        ways |= references
        figures = judge(
            policy, ways, rest, SystemClock(), config["noises"], config["timed"], config["seed"] + 1,
            {name: full for name, way in ways.items() if (full := _full_name(way.sampler)) in references},
        )  # fmt: skip
    episodes = np.array([frame.episode for frame in rest])
    rows = _with_front([_row(name, own, figures, episodes) for name, own in figures.items()])
    best, _ = _best(rows, ways, config["tolerance"])
    told, schedule_file = best, None
    document = {
        "policy": policy.spec.name, "weights": policy.spec.weights, "hardware": hardware(), "sampler": sampler,
        "threads": torch.get_num_threads(), "torch": torch.__version__, "precision": policy.precision,
        "steps": steps, "recorded": len(recorded), "judged": len(rest),
        "noises": figures["plain"].expert_error.shape[1],
        "episodes": len(set(episodes.tolist())), "tolerance": config["tolerance"], "recommendation": best,
        "cached": None, "rows": rows,
    }  # fmt: skip
    if recording is not None:
        chosen, caching = _caching(policy, rest, recording.metric, rows, ways, figures, schedules, best, config)
        chosen.save(out / SCHEDULE)
        told, schedule_file = caching["cached"], str(out / SCHEDULE)
        document |= caching
    write_json(out / "calibration.json", document)
    chart = pareto(_families(rows), ("milliseconds a chunk, median", "mean distance from the recorded chunk"))
    with replacing(out / "calibration.png") as temporary:
        temporary.write_bytes(chart.png)
    write_text(out / "calibration.html", page(document, chart.svg))
    if config["name"]:
        # Whether to capture is for whoever knows the machine it runs on.
        named = {**asdict(ways[best]), "graphs": None}
        write_json(out / NAMED, {**named, "schedule": SCHEDULE if _scheduled(best) in schedules else None})
    row = next(row for row in rows if row["variant"] == told)
    return {
        "schedule": schedule_file, "steps": steps, "updates": None if recording is None else chosen.updates,
        "flops_ratio": row["flops_ratio"], "action_error": row["deviation"], "cached": document["cached"],
        "recommendation": best, "report": str(out / "calibration.html"), "rows": rows,
    }  # fmt: skip


def _with_usual(config: Mapping[str, Any], policy: VLAPolicy, masked: bool, steps: int) -> dict[str, Any]:
    """Settings with the usual values where nobody says others. ValueError for some that mean nothing here."""
    found = dict(config)
    backbone: Any = policy.backbone
    blocks = len(backbone.blocks()) if hasattr(backbone, "blocks") else 0
    most = {"updates": steps - 1, "fewer_steps": steps - 1, "bubble": blocks, "warm_start": 1}
    for name, usual in (USUAL | ({"fewer_steps": ROUNDS} if masked else {})).items():
        if masked and name in _REUSE:
            if found[name]:
                raise ValueError(f"{name}: expected null for masked diffusion, which reuses nothing, got {found[name]}")
            found[name] = []
        elif found[name] is None:
            found[name] = [number for number in usual if number <= most[name]] or [max(1, most[name] // 2)]
        if not isinstance(found[name], list):
            raise ValueError(f"{name}: expected a list of numbers, got {found[name]!r}")
    return found


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
    own = _scheduled(best)
    cached = own if own in schedules else _best(rows, schedules, config["tolerance"])[0]
    good = _best(rows, [cached], config["tolerance"])[1]
    if not good:
        _log.warning("no caching schedule is within the tolerance; the nearest is %s", cached)
    steps = schedules[cached].steps
    chosen = replace(schedules[cached], guard=_guards(figures, ways, cached, steps))
    return chosen, {
        "metric": metric, "cached": cached, "cached_is_good": good, "equal_time": _at_equal_time(rows, cached),
        "rivals": _rivals(rows, cached, schedules),
        "guard": {str(first): bound for first, bound in chosen.guard.items()},
        "homogeneity": _homogeneity(policy, frames, chosen, config),
    }  # fmt: skip


def _scheduled(way: str) -> str:
    """The schedule that a way goes by, whatever else it does; another way's is none."""
    return way.removesuffix(CAPTURED).partition(WARMED)[0]


def _check(config: Mapping[str, Any], policy: VLAPolicy, sampler: str, steps: int, out: Path) -> None:
    """ValueError for whatever would fail once minutes have gone into recording."""
    backbone: Any = policy.backbone
    reuses = sampler != MASKED
    if reuses and not hasattr(backbone, "blocks"):
        raise ValueError(f"calibrate: expected a backbone with blocks, got {backbone.name}")
    ranges = [("fewer_steps", 1, steps - 1)]
    if reuses:
        ranges += [("updates", 1, steps), ("bubble", 0, len(backbone.blocks()))]
    for name, low, high in ranges:
        for value in config[name]:
            if not low <= value <= high:
                raise ValueError(
                    f"{name}: expected numbers from {low} to {high}, got {value}; this policy takes {steps} steps"
                )
    for name in ("updates", "bubble"):
        if reuses and not config[name]:
            raise ValueError(f"{name}: expected at least one number, got none; a schedule needs it")
    for share in config["warm_start"]:
        Decode("exact", warm_start=share)
    if config["warm_start"]:
        overlap(policy)
    for fewer in config["fewer_steps"]:
        for other in ("ddim", "dpm") if sampler not in ("euler", MASKED) else (None,):
            policy.decoding(Decode("plain", sampler=other, steps=fewer))
    if not config["tolerance"] >= 0:
        raise ValueError(f"tolerance: expected a share from 0 on, got {config['tolerance']}")
    named = json.loads((out / NAMED).read_text()) if (out / NAMED).is_file() else {}
    # One that names caching and no file means the schedule beside it.
    if reuses and not config["name"] and (named.get("schedule") or named.get("mode") == "bac"):
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


def _schedules(recording: Recording, costs: Mapping[Block, int], config: Mapping[str, Any]) -> dict[str, Schedule]:
    found = {}
    full, last = sum(costs.values()), bool(config["force_last_step"])
    for updates in config["updates"]:
        for method in ("uniform", "unified", "blockwise"):
            found[f"{method} {updates}"] = schedule(recording, method, updates, force_last=last)
        for bubble in config["bubble"]:
            made = schedule(recording, "bac" if config["objective"] == "full" else "adjacent", updates, bubble, last)
            found[f"bac {updates}, {bubble} bubbled"] = made
            # What bubbling adds is work, too: the same work, spent without it.
            # A last step that all compute is not among a schedule's updates.
            spent = sum(costs[block] * len(at) for block, at in made.blocks.items()) / full
            equal = min(max(1, round(spent) - last), recording.steps)
            for method in ("uniform", "blockwise"):
                found.setdefault(f"{method} {equal}", schedule(recording, method, equal, force_last=last))
    return found


def rounds_ways(policy: VLAPolicy, recorded: Sequence[Frame], fewer: Sequence[int], seed: int) -> dict[str, Decode]:
    """Every way to decode a masked policy: plain, fewer rounds and, where the prefix sees the slots, refreshed in
    1 round, a quarter and half of them, in those that its own similarity on `recorded` says.
    """
    head: Any = policy.head
    found = {"plain": PLAIN, **{f"{rounds} rounds": Decode("plain", steps=rounds) for rounds in fewer}}
    if refreshable(policy.backbone):
        alike, rounds = prefix_similarity(policy, [frame.seen for frame in recorded], seed), head.decoding.rounds
        for count in sorted({1, max(1, rounds // 4), max(1, rounds // 2)}):
            found[f"prefix anew {count} of {rounds} times"] = Decode("bac", refresh=adaptive(alike, count))
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
        for updates in config["updates"]:
            both = f"bac {updates}, {config['bubble'][-1]} bubbled"
            ways[f"{both}{WARMED} {share:g}"] = replace(ways[both], warm_start=share)
    return ways


def _full_name(sampler: str | None) -> str:
    return f"{sampler}, in full"


def _references(policy: VLAPolicy, ways: Mapping[str, Decode], sampler: str) -> dict[str, Decode]:
    """The full decode of every other sampler, with as many steps as it has: what its fewer steps deviate from."""
    head: Any = policy.head
    found = {}
    for other in sorted({way.sampler for way in ways.values() if way.sampler not in (None, sampler)}, key=str):
        steps = head.denoising.train_steps
        while True:
            try:
                noise_schedule(Denoising(str(other), steps, head.denoising.train_steps))
            except ValueError:
                # Some cannot tell that many steps apart.
                steps -= 1
                continue
            break
        found[_full_name(other)] = Decode("exact", sampler=other, steps=steps)
    return found


@torch.no_grad()
def _costs(policy: VLAPolicy, frame: Frame) -> dict[Block, int]:
    """Multiplications of every block in one step."""
    backbone: Any = policy.backbone
    slots = policy.spec.horizon + policy.spec.max_committed
    # Tokens that slots can look at: the context's, and the time.
    memory = int(backbone.encode(policy.batch([frame.seen])).memory[0][0].shape[2]) + 1
    return dict(zip(backbone.blocks(), backbone.costs(slots, memory), strict=True))


def _with_front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Which rows nothing beats in both time and distance, by more than a rounding error."""
    timed = [row for row in rows if row["p50_ms"] is not None]
    for row in rows:
        row["front"] = row in timed and not any(
            other["p50_ms"] < row["p50_ms"] and other["expert_error"] <= row["expert_error"] * (1 + 1e-6)
            for other in timed
        )
    return rows


def _row(name: str, own: Judgement, figures: Mapping[str, Judgement], episodes: Array) -> dict[str, Any]:
    plain = figures["plain"]
    # Nobody counts a graph's: they are those of what was captured.
    flops = own.flops or figures[name.removesuffix(CAPTURED)].flops or 0
    timed = len(own.seconds) > 0

    def milliseconds(share: float) -> float | None:
        return round(1e3 * float(np.quantile(own.seconds, share)), 3) if timed else None

    # Noises of one observation do not count as observations, nor do observations of one episode as episodes.
    deviation, error, before = (
        _by_episode(values.mean(1), episodes) for values in (own.deviation, own.expert_error, plain.expert_error)
    )
    worse = error - before
    return {
        "variant": name,
        "p50_ms": milliseconds(0.5),
        "p95_ms": milliseconds(0.95),
        "speedup": round(float(np.median(plain.seconds) / np.median(own.seconds)), 2) if timed else None,
        "flops": flops,
        "flops_ratio": round(flops / (plain.flops or 1), 4),
        "deviation": float(np.median(deviation)),
        "deviation_interval": bootstrap_interval(deviation, np.median),
        "expert_error": float(np.mean(error)),
        "expert_error_median": float(np.median(error)),
        "expert_error_median_interval": bootstrap_interval(error, np.median),
        "worse_than_plain": float(np.mean(worse)),
        "worse_than_plain_interval": bootstrap_interval(worse, np.mean),
    }


def _by_episode(values: Array, episodes: Array) -> Array:
    return np.array([values[episodes == episode].mean() for episode in np.unique(episodes)])


def _guards(figures: Mapping[str, Judgement], ways: Mapping[str, Decode], cached: str, steps: int) -> dict[int, float]:
    """Bounds on the gap by the first step of a decode: the largest of calibration, and a tenth of its range.

    Cold and warm decodes watch other updates, so their gaps are other numbers.
    """
    found = {}
    for name, way in ways.items():
        gaps = figures[name].gap
        if _scheduled(name) == cached and gaps.size:
            first = WarmStart.begins(way.warm_start, steps) if way.warm_start else 0
            found[first] = float(gaps.max() + 0.1 * (gaps.max() - gaps.min()))
    return found


def _at_equal_time(rows: Sequence[Mapping[str, Any]], cached: str) -> dict[str, Any]:
    """Of all ways that are no slower than a cached one, that whose chunks are nearest to the recorded ones."""
    own = next(row for row in rows if row["variant"] == cached)
    # What is captured is told by what is, what is not by what is not.
    known = [
        row
        for row in rows
        if row["p50_ms"] is not None
        and row["p50_ms"] <= own["p50_ms"]
        and row["variant"].endswith(CAPTURED) == own["variant"].endswith(CAPTURED)
    ]
    best = min(known, key=lambda row: float(row["expert_error"]))
    kept = ("variant", "p50_ms", "expert_error")
    return {"cached": {key: own[key] for key in kept}, "nearest": {key: best[key] for key in kept}}


def _rivals(rows: Sequence[Mapping[str, Any]], cached: str, schedules: Mapping[str, Schedule]) -> list[dict[str, Any]]:
    """Other schedules of as many updates, or as much work, as a cached way, with the medians that tell them apart."""
    own = next(row for row in rows if row["variant"] == cached)
    found = []
    for row in rows:
        made = schedules.get(row["variant"])
        if made is None or row["variant"] == cached:
            continue
        equal = [
            what
            for what, same in (
                ("updates", made.updates == schedules[cached].updates),
                ("work", abs(row["flops_ratio"] - own["flops_ratio"]) <= _EQUAL_WORK * own["flops_ratio"]),
            )
            if same
        ]
        if equal and made.method not in ("bac", "adjacent"):
            medians = {key: row[key] for key in ("expert_error_median", "expert_error_median_interval")}
            found.append({"variant": row["variant"], "equal": equal, **medians})
    return found


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


def _families(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float, str]]]:
    """Points of the plot: rows that were timed, by what they have in common."""
    found: dict[str, list[tuple[float, float, str]]] = {}
    for row in rows:
        if row["p50_ms"] is not None:
            words = str(row["variant"]).replace(",", "").replace(" bubbled", "").split()
            family = " ".join(word for word in words if not word.replace(".", "", 1).isdigit())
            found.setdefault(family, []).append((row["p50_ms"], row["expert_error"], row["variant"]))
    return found


def _best(rows: Sequence[Mapping[str, Any]], among: Collection[str], tolerance: float) -> tuple[str, bool]:
    """The fastest whose chunks are shown to be as near to recorded ones as plain's, and whether there is one.

    Shown: the upper end of the interval of the paired difference is at most `tolerance` of plain's mean. Where there
    is none, the one with the lowest end.
    """
    allowed = tolerance * next(row["expert_error"] for row in rows if row["variant"] == "plain")
    known = [row for row in rows if row["variant"] in among]
    good = [row for row in known if row["worse_than_plain_interval"][1] <= allowed]
    if good:
        return str(min(good, key=lambda row: row["p50_ms"])["variant"]), True
    return str(min(known, key=lambda row: row["worse_than_plain_interval"][1])["variant"]), False
