"""How a policy decodes: plainly, with the exact savings, or with block-wise adaptive caching; and with which steps.

`Decode` is what a user asks for, `decoder_for` what a session then runs: a callable with the signature of a
head's own `decode`, which is the reference. Asking for what a head cannot do is an error.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from policies.batch import Committed
from policies.heads.diffusion import Diffusion, Flow
from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.heads.prepared import PreparedDecoder
from vla_runtime.decoding.bac import Schedule

MODES = ("auto", "plain", "exact", "bac")
# What a checkpoint folder may hold beside its weights: how it wants to be decoded.
NAMED = "decode.json"
Decoder = Callable[[Any, Committed | None, dict[str, Tensor], int], Tensor]


@dataclass(frozen=True, slots=True)
class Decode:
    """What is asked for. mode: auto is what the checkpoint names, else plain; schedule: a file, for bac.

    sampler (ddpm, ddim, dpm) and steps (of denoising or flow; rounds of masked diffusion): None for the
    checkpoint's own. ValueError for a mode that is not known and a schedule where none is used.
    """

    mode: str = "auto"
    schedule: str | None = None
    sampler: str | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"decode: expected one of {', '.join(MODES)}, got {self.mode!r}")
        if self.schedule is not None and self.mode in ("plain", "exact"):
            raise ValueError(f"decode.schedule: expected none with decode={self.mode}, got {self.schedule}")

    def named(self, folder: Path) -> Decode:
        """This, or what the checkpoint in `folder` names where this is auto; `schedule` is then a path there."""
        path = folder / NAMED
        if self.mode != "auto":
            found = self
        elif path.is_file():
            try:
                values = json.loads(path.read_text())
                found = replace(Decode(**values), **self._asked())
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}: expected how to decode, got {error}") from error
        else:
            found = replace(self, mode="plain")
        if found.schedule is not None and self.schedule is None:
            found = replace(found, schedule=str(folder / found.schedule))
        if found.mode == "bac" and found.schedule is None:
            found = replace(found, schedule=str(folder / "schedule.json"))
        return found

    def _asked(self) -> dict[str, Any]:
        asked = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "mode"}
        return {name: value for name, value in asked.items() if value is not None}


AUTO, PLAIN = Decode(), Decode("plain")


def with_steps(head: Any, decode: Decode) -> Any:
    """The head with the sampler and the steps that are asked for; its weights are shared. ValueError if it has none."""
    if decode.sampler is None and decode.steps is None:
        return head
    if decode.sampler is not None and not isinstance(head, Diffusion):
        raise ValueError(f"decode.sampler: expected a diffusion head, got {head.name}")
    other = copy.copy(head)
    if isinstance(other, Diffusion):
        sampler = decode.sampler or other.denoising.sampler
        # A sampler that walks all steps is not asked for fewer by a checkpoint that named another.
        steps = decode.steps or (other.denoising.train_steps if sampler == "ddpm" else other.denoising.steps)
        other.denoising = replace(other.denoising, sampler=sampler, steps=steps)
    elif isinstance(other, Flow):
        if decode.steps is None or decode.steps < 1:
            raise ValueError(f"decode.steps: expected at least 1, got {decode.steps}")
        other.steps = decode.steps
    elif isinstance(other, DiscreteDiffusion) and decode.steps is not None:
        other.decoding = replace(other.decoding, rounds=decode.steps)
    else:
        raise ValueError(f"decode.steps: expected a head with steps or rounds, got {head.name}, which takes one pass")
    return other


def decoder_for(
    head: Any, backbone: Any, decode: Decode, weights: str | None
) -> tuple[Callable[[], Decoder], dict[str, Any]]:
    """What makes decoders, one for a session, and what a row should say of them.

    head: after `with_steps`. ValueError for what this policy cannot do.
    """
    facts = _facts(head)
    if decode.mode == "plain":
        return lambda: _plain(head, backbone), facts
    if not isinstance(head, Diffusion | Flow):
        raise ValueError(
            f"decode={decode.mode}: expected a diffusion or flow head, got {head.name}; take decode=plain, "
            "which for this head computes nothing twice"
        )
    if not hasattr(backbone, "timed"):
        raise ValueError(f"decode={decode.mode}: expected backbone nano, got {backbone.name}; take decode=plain")
    schedule = None
    if decode.mode == "bac":
        assert decode.schedule is not None
        schedule = Schedule.load(Path(decode.schedule))
        schedule.require(backbone.blocks(), facts["steps"], facts["sampler"], weights)
        full = len(schedule.blocks) * schedule.steps
        facts |= {
            "method": schedule.method, "updates": schedule.updates, "bubble": schedule.bubble,
            "hit_rate": round(1 - schedule.evaluations() / full, 4),
        }  # fmt: skip
    return lambda: PreparedDecoder(head, backbone, schedule), facts


def _facts(head: Any) -> dict[str, Any]:
    if isinstance(head, Diffusion):
        return {"sampler": head.denoising.sampler, "steps": head.denoising.steps}
    if isinstance(head, Flow):
        return {"sampler": "euler", "steps": head.steps}
    if isinstance(head, DiscreteDiffusion):
        return {"rounds": head.decoding.rounds}
    return {}


def _plain(head: Any, backbone: Any) -> Decoder:
    def decode(context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int = 1) -> Tensor:
        actions: Tensor = head.decode(backbone, context, committed, noise, batch)
        return actions

    return decode
