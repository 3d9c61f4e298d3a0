"""Which ways to decode calibration tries with a policy, by their names: what it judges is `policies.judging`.

Denoising policies: fewer steps of every sampler; where their backbone can have its branches reused also the exact
savings, schedules of all kinds, warm starts and both together. Masked diffusion: fewer rounds, rounds that end when all
tokens are sure, and a prefix that is computed anew less often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from policies.calibration import Recording, prefix_similarity, schedule
from policies.decoding import PLAIN, Decode, refreshable
from policies.frames import Frame
from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.vla import VLAPolicy
from vla_runtime.decoding.bac import Block, Schedule, adaptive
from vla_runtime.decoding.denoise import Denoising, noise_schedule

WARMED, CAPTURED = ", warm start", ", captured"
# Where the settings say null.
USUAL = {"updates": (5, 10, 20), "fewer_steps": (5, 10, 16), "bubble": (3, 5), "warm_start": (0.1, 0.2, 0.4)}
ROUNDS, CONFIDENT = (1, 2, 4, 8), (0.9,)
# Settings of what reuses branches, or begins warm, which both need the exact savings.
REUSE = ("updates", "bubble", "warm_start")


def reuses(policy: VLAPolicy) -> bool:
    """Whether branches can be reused over the steps of a policy."""
    return not isinstance(policy.head, DiscreteDiffusion) and hasattr(policy.backbone, "prepared")


def with_usual(config: Mapping[str, Any], policy: VLAPolicy, steps: int) -> dict[str, Any]:
    """Settings with the usual values where nobody says others. ValueError for some that mean nothing here."""
    head: Any = policy.head
    backbone: Any = policy.backbone
    masked = isinstance(head, DiscreteDiffusion)
    blocks = len(backbone.blocks()) if reuses(policy) else 0
    # Batches end when their last sample does, which is not how long one takes alone.
    sure = masked and not head.draw(1, torch.Generator())
    usual = USUAL | {"fewer_steps": ROUNDS if masked else USUAL["fewer_steps"], "confident": CONFIDENT}
    most = {"updates": steps - 1, "fewer_steps": steps - 1, "bubble": blocks, "warm_start": 1, "confident": 1}
    nothing = {name: f"{head.name} over {backbone.name}, which reuses nothing" for name in REUSE if not reuses(policy)}
    if not sure:
        nothing["confident"] = f"{head.name}, whose rounds, if any, are drawn" if masked else f"{head.name}"
    found = dict(config)
    for name, numbers in usual.items():
        if name in nothing:
            if found[name]:
                raise ValueError(f"{name}: expected null for {nothing[name]}, got {found[name]}")
            found[name] = []
        elif found[name] is None:
            found[name] = [number for number in numbers if number <= most[name]] or [max(1, most[name] // 2)]
        if not isinstance(found[name], list):
            raise ValueError(f"{name}: expected a list of numbers, got {found[name]!r}")
    return found


def schedules_of(recording: Recording, costs: Mapping[Block, int], config: Mapping[str, Any]) -> dict[str, Schedule]:
    """Schedules of every kind; simpler kinds also with as much work as bubbling adds. costs: as of `block_costs`."""
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


@torch.no_grad()
def block_costs(policy: VLAPolicy, frame: Frame) -> dict[Block, int]:
    """Multiplications of every block in one step."""
    backbone: Any = policy.backbone
    slots = policy.spec.horizon + policy.spec.max_committed
    # Tokens that slots can look at: the context's, and the time.
    memory = int(backbone.encode(policy.batch([frame.seen])).memory[0][0].shape[2]) + 1
    return dict(zip(backbone.blocks(), backbone.costs(slots, memory), strict=True))


def rounds_ways(policy: VLAPolicy, recorded: Sequence[Frame], config: Mapping[str, Any]) -> dict[str, Decode]:
    """Every way to decode a masked policy: plain, fewer rounds, rounds that end when it is sure, and a prefix that sees
    the slots refreshed in 1, a quarter and half of the rounds, in those that its own similarity on `recorded` says.
    """
    head: Any = policy.head
    found = {"plain": PLAIN}
    found |= {f"{rounds} rounds": Decode("plain", steps=rounds) for rounds in config["fewer_steps"]}
    found |= {f"until {share:g} sure": Decode("plain", confident=share) for share in config["confident"]}
    if refreshable(policy.backbone):
        seen = [frame.seen for frame in recorded]
        alike, rounds = prefix_similarity(policy, seen, config["seed"]), head.decoding.rounds
        for count in sorted({1, max(1, rounds // 4), max(1, rounds // 2)}):
            found[f"prefix anew {count} of {rounds} times"] = Decode("bac", refresh=adaptive(alike, count))
    return found


def steps_ways(policy: VLAPolicy, sampler: str, fewer_steps: Sequence[int]) -> dict[str, Decode]:
    """Plain, the exact savings where the backbone has them, and fewer steps of every sampler there is."""
    mode = "exact" if reuses(policy) else "plain"
    found = {"plain": PLAIN, **({"exact": Decode("exact")} if mode == "exact" else {})}
    for fewer in fewer_steps:
        if sampler == "euler":
            found[f"{fewer} steps"] = Decode(mode, steps=fewer)
            continue
        for other in ("ddim", "dpm"):
            found[f"{other} {fewer}"] = Decode(mode, sampler=other, steps=fewer)
    return found


def caching_ways(schedules: Mapping[str, Schedule], folder: Path, config: Mapping[str, Any]) -> dict[str, Decode]:
    """Every schedule, every warm start, and both together. Schedules are written into `folder`."""
    ways = {}
    for index, (name, one) in enumerate(schedules.items()):
        path = folder / f"{index}.json"
        one.save(path)
        ways[name] = Decode("bac", schedule=str(path))
    for share in config["warm_start"]:
        ways[f"warm start {share:g}"] = Decode("exact", warm_start=share)
        for updates in config["updates"]:
            both = f"bac {updates}, {config['bubble'][-1]} bubbled"
            ways[f"{both}{WARMED} {share:g}"] = replace(ways[both], warm_start=share)
    return ways


def in_full(sampler: str | None) -> str:
    """The name of a sampler's decode with all its steps."""
    return f"{sampler}, in full"


def references(policy: VLAPolicy, ways: Mapping[str, Decode], sampler: str) -> dict[str, Decode]:
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
        found[in_full(other)] = Decode("exact" if reuses(policy) else "plain", sampler=other, steps=steps)
    return found


def scheduled(way: str) -> str:
    """The schedule that a way goes by, whatever else it does; another way's is none."""
    return way.removesuffix(CAPTURED).partition(WARMED)[0]
