"""What a policy's chunk asks of a GPU when it is one CUDA graph: counted by emulation, on a machine without one.

Numbers of kernels, host waits and blocking copies, which are a model of what a GPU would be asked (see
`vla_runtime.decoding.emulated_cuda`), never times. A policy's own weights are lost: they become fake.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from policies.calibration import Recording, schedule
from policies.checkpoint import load_policy
from policies.decoding import PLAIN, Decode
from policies.heads.diffusion import Diffusion
from policies.presets import preset_policy, random_observations
from policies.shipped import names
from policies.vla import VLAPolicy
from vla_runtime.decoding.bac import Schedule
from vla_runtime.decoding.emulated_cuda import EmulatedCapture, emulated_cuda, move_to_fake_cuda


@dataclass(frozen=True, slots=True)
class ChunkLaunches:
    """Of one chunk after the first. graph: kernels in its graphs; copied: tensors copied on the device; outside:
    kernels beside the graphs; waits, copies: of the host, blocking, in the graphs and beside them.
    """

    graph: int
    copied: int
    outside: int
    waits: int
    copies: int


def count_chunk(policy: VLAPolicy, decode: Decode) -> ChunkLaunches:
    """The launches of a chunk of `policy` with `decode` as CUDA graphs. ValueError for a decode that it cannot do."""
    now, later = random_observations(policy.spec, 2)
    offsets = len(policy.spec.observation_offsets)
    with torch.no_grad(), emulated_cuda() as launches:
        move_to_fake_cuda(policy.backbone)
        move_to_fake_cuda(policy.own_head)
        asked = policy.decoding(decode, partial(EmulatedCapture, launches))
        chunks, head = asked.chunk_decoder(), asked.head
        for phase, shown in (("first", now), ("chunk", later)):
            for counted in ("copy in", "copy out"):
                launches.kernels[counted].clear()
            with launches.during(phase):
                noise = head.draw(1, torch.Generator())
                asked.actions(chunks(asked.batch([[shown] * offsets]), None, noise))

    def blocking(counts: Mapping[tuple[str, str, str], int]) -> int:
        return sum(count for (phase, *_), count in counts.items() if phase in ("graph", "copy in", "chunk"))

    return ChunkLaunches(
        graph=launches.count("graph"),
        copied=launches.count("copy in"),
        outside=launches.count("chunk") + launches.count("copy out"),
        waits=blocking(launches.waits),
        copies=blocking(launches.copies),
    )


def without_memory(values: Mapping[str, Any]) -> VLAPolicy:
    """A policy of a preset's shape (configs/preset) without weights, however large it is."""
    return preset_policy({**values, "needs": None}, "meta", values.get("precision") or "fp32")


def example_schedule(policy: VLAPolicy, updates: int = 10, bubble: int = 5) -> Schedule:
    """A schedule of the shape that block-wise adaptive caching finds, of branches whose outputs drift at random, more
    than half of it in common: it computes about as many branches as a real one. What it decodes is worth nothing.
    """
    head, backbone = policy.head, policy.backbone
    if not isinstance(head, Diffusion):
        raise ValueError(f"schedule: expected a diffusion head, got {head.name}")
    steps, rng = head.denoising.steps, np.random.default_rng(0)
    alike: dict[Any, Any] = {}
    common = rng.uniform(0, 1, steps)
    for block in backbone.blocks():  # type: ignore[operator]
        path = np.cumsum(0.6 * common + 0.4 * rng.uniform(0, 1, steps))
        alike[block] = np.exp(-np.abs(path[:, None] - path) / steps)
    errors = {block: float(rng.uniform()) for block in alike}
    recording = Recording(alike, alike, errors, steps, head.denoising.sampler, policy.spec.weights, "cosine", "none")
    return schedule(recording, "bac", updates, bubble)


def table(presets: Iterable[Path], work: Path, only: Collection[str] = ()) -> list[dict[str, Any]]:
    """A row for every preset in these files and every shipped policy, as it decodes by default and, for diffusion over
    many steps, with caching. work: a folder for schedules; only: names of policies, all where there are none.

    ValueError for a name that is none of them.
    """
    known = {path.stem: yaml.safe_load(path.read_text()) for path in presets}
    known = {name: values for name, values in known.items() if values["name"] is not None and "backbone" in values}
    unknown = set(only) - set(known) - set(names())
    if unknown:
        raise ValueError(f"expected some of {sorted({*known, *names()})}, got {sorted(unknown)}")
    rows = []
    for name, values in known.items():
        if only and name not in only:
            continue
        decodes: dict[str, Decode] = {"plain": PLAIN}
        if values["head"]["name"] == "diffusion":
            file = work / f"{values['name']}.json"
            example_schedule(without_memory(values)).save(file)
            decodes = {"exact": Decode("exact"), "bac 10, 5": Decode("bac", schedule=str(file))}
        rows += [_row(name, how, without_memory(values), decode) for how, decode in decodes.items()]
    for name in names():
        if only and name not in only:
            continue
        policy = load_policy(name)
        mode = policy.spec.decode["mode"]
        named = load_policy(name, decode=PLAIN)
        head: Any = policy.head
        decode = Decode(mode)
        if isinstance(head, Diffusion):
            mode = f"exact, {head.denoising.sampler} {head.denoising.steps}"
            decode = Decode("exact", sampler=head.denoising.sampler, steps=head.denoising.steps)
        rows.append(_row(name, mode, named, decode))
    return rows


def _row(policy: str, name: str, made: VLAPolicy, decode: Decode) -> dict[str, Any]:
    return {"policy": policy, "decode": name, **asdict(count_chunk(made, replace(decode, graphs=True)))}
