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
from threading import Lock
from typing import Any

from policies.decoders import Decoder, GuidedFlow, MaskedDecoder, PlainDecoder
from policies.heads.diffusion import Diffusion, Flow
from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.heads.fused import FusedDecoder
from policies.heads.prepared import PreparedDecoder
from policies.precision import DTYPES, precision_of
from vla_runtime.decoding.bac import Schedule
from vla_runtime.decoding.compiled import CompiledBackbone, require_compiler
from vla_runtime.decoding.denoise import noise_schedule
from vla_runtime.decoding.prefix import RefreshedPrefix

MODES = ("auto", "plain", "exact", "bac")
# What a checkpoint folder may hold beside its weights: how it wants to be decoded.
NAMED = "decode.json"


@dataclass(frozen=True, slots=True)
class Decode:
    """What is asked for. mode: auto is what the checkpoint names, else plain; schedule: a file, for bac.

    sampler (ddpm, ddim, dpm) and steps (of denoising or flow; rounds of masked diffusion): None for the
    checkpoint's own. warm_start: None, or the share of the steps that is taken, from the chunk before on, shifted
    in time and noised again; an episode's first chunk begins with noise. confident, deadline: of masked diffusion,
    the probability at which no more rounds are made, and the seconds from the observation on after which one pass
    commits everything left; one is always made.
    refresh: with bac, of masked diffusion over a prefix that sees the slots (OpenVLA-OFT's mask), the rounds in which
    the prefix is computed anew; an approximation, unlike everything else about rounds.
    guide: of flow (plain) and diffusion (exact or bac), draw each chunk to the one before and to the rows that are
    given, instead of telling the network of them (real-time chunking at inference).
    graphs: CUDA graphs: one from the observation to the rows, or, where the host asks after every round (confident,
    deadline), one of what encodes and one of a round. They are captured before the first chunk; a backbone whose
    prompts are not padded (prismatic) captures at the first chunk with a prompt of another length.
    compile: passes of the network compiled by torch.compile, with plain, before the first chunk.
    precision: of the weights and of what the networks compute, fp32, bf16, or bf16 with the backbone's linear layers in
    fp8, or in int8, which saves memory only; None as they were loaded, in fp32.
    ValueError for a mode that is not known, a schedule where none is used, and numbers out of range.
    """

    mode: str = "auto"
    schedule: str | None = None
    sampler: str | None = None
    steps: int | None = None
    warm_start: float | None = None
    confident: float | None = None
    deadline: float | None = None
    precision: str | None = None
    refresh: tuple[int, ...] | None = None
    graphs: bool | None = None
    guide: bool | None = None
    compile: bool | None = None

    def __post_init__(self) -> None:
        if self.precision is not None and self.precision not in DTYPES:
            raise ValueError(f"decode.precision: expected one of {', '.join(DTYPES)}, got {self.precision!r}")
        if self.mode not in MODES:
            raise ValueError(f"decode: expected one of {', '.join(MODES)}, got {self.mode!r}")
        if self.schedule is not None and self.mode in ("plain", "exact"):
            raise ValueError(f"decode.schedule: expected none with decode={self.mode}, got {self.schedule}")
        if self.warm_start is not None and (self.mode == "plain" or not 0 < self.warm_start <= 1):
            raise ValueError(
                "decode.warm_start: expected a share in (0, 1], with decode=auto, exact or bac, "
                f"got {self.warm_start} with decode={self.mode}"
            )
        if self.steps is not None and (isinstance(self.steps, bool) or int(self.steps) != self.steps or self.steps < 1):
            raise ValueError(f"decode.steps: expected a whole number from 1 on, got {self.steps}")
        if self.refresh is not None:
            if self.mode not in ("auto", "bac") or not self.refresh or min(self.refresh) < 0:
                raise ValueError(
                    "decode.refresh: expected rounds from 0 on, with decode=auto or bac, "
                    f"got {self.refresh} with decode={self.mode}"
                )
            for name in ("schedule", "warm_start", "graphs"):
                if getattr(self, name):
                    raise ValueError(f"decode.refresh: expected no decode.{name}, got both; take one of them")
            object.__setattr__(self, "refresh", tuple(self.refresh))
        if self.guide and (self.warm_start is not None or self.graphs):
            raise ValueError("decode.guide: expected no decode.warm_start and no decode.graphs beside it, got one")
        if self.compile and (self.mode in ("exact", "bac") or self.guide or self.refresh is not None):
            beside = [f"decode.{name}" for name in ("guide", "refresh") if getattr(self, name)]
            other = beside[0] if beside else f"decode={self.mode}"
            raise ValueError(
                f"decode.compile: expected decode=plain, whose passes are compiled, got {other}; take decode=plain or "
                "decode.compile=false"
            )
        if self.deadline is not None and not self.deadline >= 0:
            raise ValueError(f"decode.deadline: expected at least 0 seconds, got {self.deadline}")

    def named(self, folder: Path, head: Any) -> Decode:
        """This, or what the checkpoint in `folder` names where this is auto; `schedule` is then a path there.

        head: its own.
        """
        path = folder / NAMED
        found = self
        if self.mode == "auto":
            known = PLAIN
            if path.is_file():
                try:
                    known = Decode(**json.loads(path.read_text()))
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{path}: expected how to decode, got {error}") from error
            if self.sampler is not None or self.steps is not None:
                # Whoever says which steps, or how many, means these, from noise on and in full.
                full = "plain" if isinstance(head, DiscreteDiffusion) else "exact"
                mode, steps = full if known.mode == "bac" else known.mode, None if self.sampler else known.steps
                theirs = dict.fromkeys(("warm_start", "schedule", "refresh", "confident", "deadline"))
                known = replace(known, mode=mode, steps=steps, **theirs)
            # Nothing that the plain way can do.
            if self.schedule is not None or self.refresh is not None:
                # A schedule is of the policy's own steps, unless others are asked for with it.
                known = replace(known, mode="bac", sampler=None, steps=None, warm_start=None)
            elif known.mode == "plain" and (
                self.warm_start is not None or (self.guide and isinstance(head, Diffusion))
            ):
                known = replace(known, mode="exact")
            found = replace(known, **self._asked())
        if found.schedule is not None and self.schedule is None:
            found = replace(found, schedule=str(folder / found.schedule))
        if found.mode == "bac" and found.schedule is None and found.refresh is None:
            found = replace(found, schedule=str(folder / "schedule.json"))
        return found

    def _asked(self) -> dict[str, Any]:
        asked = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "mode"}
        return {name: value for name, value in asked.items() if value is not None}


AUTO, PLAIN = Decode(), Decode("plain")


def require_precision(backbone: Any, decode: Decode) -> str:
    """The precision that a backbone's weights have. ValueError where another one is asked for."""
    found = precision_of(backbone)
    if decode.precision not in (None, found):
        raise ValueError(
            f"decode.precision: expected weights in {decode.precision}, got {found}; load the policy with it"
        )
    return found


def with_steps(head: Any, decode: Decode) -> Any:
    """The head with the sampler and the steps that are asked for; its weights are shared. ValueError if it has none."""
    masked = isinstance(head, DiscreteDiffusion)
    for name, value in (("confident", decode.confident), ("deadline", decode.deadline)):
        if value is not None and not masked:
            raise ValueError(f"decode.{name}: expected a discrete_diffusion head, got {head.name}")
    if (decode.sampler, decode.steps, decode.confident) == (None, None, None):
        return head
    if decode.sampler is not None and not isinstance(head, Diffusion):
        raise ValueError(f"decode.sampler: expected a diffusion head, got {head.name}")
    other = copy.copy(head)
    if isinstance(other, Diffusion):
        sampler = decode.sampler or other.denoising.sampler
        # A sampler that walks all steps is not asked for fewer by a checkpoint that named another.
        own = other.denoising.train_steps if sampler == "ddpm" else other.denoising.steps
        other.denoising = replace(other.denoising, sampler=sampler, steps=own if decode.steps is None else decode.steps)
        noise_schedule(other.denoising)  # a sampler that has no so many steps says so now
    elif isinstance(other, Flow) and decode.steps is not None:
        other.steps = decode.steps
    elif isinstance(other, DiscreteDiffusion):
        asked: dict[str, Any] = {"rounds": decode.steps, "confident": decode.confident}
        other.decoding = replace(other.decoding, **{name: one for name, one in asked.items() if one is not None})
    else:
        raise ValueError(f"decode.steps: expected a head with steps or rounds, got {head.name}, which takes one pass")
    return other


def running(backbone: Any, decode: Decode) -> Any:
    """What sessions ask instead of the backbone: compiled, or laid out for graphs, where that is asked for. ValueError
    for compiling without a compiler.
    """
    if decode.compile:
        require_compiler(next(backbone.parameters()).device)
        return CompiledBackbone(backbone)
    if decode.graphs:
        return backbone.prepared_inference()
    return backbone


def asks_between_rounds(head: Any, decode: Decode) -> bool:
    """Whether the host asks the device after every round, so that a chunk cannot be one graph. head: after
    `with_steps`.
    """
    ends_early = isinstance(head, DiscreteDiffusion) and head.decoding.confident is not None
    return ends_early or decode.deadline is not None


def decoder_for(
    head: Any, backbone: Any, decode: Decode, weights: str | None
) -> tuple[Callable[[], Decoder], dict[str, Any]]:
    """What makes decoders, one for a session, and what a row should say of them.

    head: after `with_steps`; backbone: after `running`. ValueError for what this policy cannot do.
    """
    facts = _facts(head)
    for name in ("graphs", "compile"):
        if getattr(decode, name):
            facts[name] = True
            if head.name == "autoregressive":
                raise ValueError(f"decode.{name}: expected a head whose passes are alike, got autoregressive")
    if decode.mode == "auto":
        raise ValueError("decode=auto: expected plain, exact or bac here, where there is no checkpoint to name one")
    if isinstance(head, DiscreteDiffusion) and (decode.mode == "plain" or decode.refresh is not None):
        asked = {name: getattr(decode, name) for name in ("confident", "deadline", "refresh")}
        facts |= {name: list(one) if name == "refresh" else one for name, one in asked.items() if one is not None}
        if decode.refresh is None:
            return lambda: MaskedDecoder(head, backbone, decode.deadline), facts
        rounds = decode.refresh
        if not refreshable(backbone):
            raise ValueError(
                f"decode.refresh: expected a backbone whose prefix sees the slots, got {backbone.name}, which keeps "
                "its prefix exactly; take decode=plain"
            )
        if max(rounds) >= head.decoding.rounds:
            raise ValueError(f"decode.refresh: expected rounds below {head.decoding.rounds}, got {max(rounds)}")
        return lambda: MaskedDecoder(head, RefreshedPrefix(backbone, rounds), decode.deadline), facts
    if decode.refresh is not None:
        raise ValueError(f"decode.refresh: expected a discrete_diffusion head, got {head.name}")
    if decode.guide:
        facts["guide"] = True
        if not isinstance(head, Diffusion | Flow) or isinstance(head, Flow) != (decode.mode == "plain"):
            raise ValueError(
                "decode.guide: expected a flow head with decode=plain or a diffusion head with decode=exact or bac, "
                f"got {head.name} with decode={decode.mode}"
            )
        if decode.mode == "plain":
            return lambda: GuidedFlow(head, backbone), facts
    if decode.mode == "plain":
        return lambda: PlainDecoder(head, backbone), facts
    if not isinstance(head, Diffusion | Flow):
        raise ValueError(f"decode={decode.mode}: expected a diffusion or flow head, got {head.name}; take decode=plain")
    if not hasattr(backbone, "prepared"):
        raise ValueError(f"decode={decode.mode}: expected backbone nano, got {backbone.name}; take decode=plain")
    schedule = None
    if decode.mode == "bac":
        if decode.schedule is None:
            raise ValueError("decode=bac: expected decode.schedule, a file made by vla_runtime.calibrate, got none")
        schedule = Schedule.load(Path(decode.schedule))
        schedule.require(backbone.blocks(), facts["steps"], facts["sampler"], weights)
        full = len(schedule.blocks) * schedule.steps
        facts |= {
            "method": schedule.method, "updates": schedule.updates, "bubble": schedule.bubble,
            # Of a cold chunk; every chunk tells its own.
            "hit_rate": round(1 - schedule.evaluations() / full, 4), "calibration": schedule.calibration,
        }  # fmt: skip
    if decode.warm_start is not None:
        facts["warm_start"] = decode.warm_start
    return _twins(head, backbone, schedule), facts


def prepared_decoder(head: Diffusion | Flow, backbone: Any, schedule: Schedule | None = None) -> PreparedDecoder:
    """A decoder with the exact savings, and with branches reused where there is a schedule: fused on a GPU."""
    on_gpu = next(backbone.parameters()).device.type == "cuda"
    return (FusedDecoder if on_gpu else PreparedDecoder)(head, backbone, schedule)


def _twins(head: Diffusion | Flow, backbone: Any, schedule: Schedule | None) -> Callable[[], Decoder]:
    """Makes decoders that share what is computed from the weights, which is computed for the first of them."""
    made: list[PreparedDecoder] = []
    lock = Lock()

    def new() -> Decoder:
        with lock:
            if not made:
                made.append(prepared_decoder(head, backbone, schedule))
        return made[0].twin()

    return new


def refreshable(backbone: Any) -> bool:
    """Whether the prefix sees the slots, so that keeping it over rounds is an approximation."""
    return getattr(getattr(backbone, "config", None), "attention", None) == "oft"


def _facts(head: Any) -> dict[str, Any]:
    if isinstance(head, Diffusion):
        return {"sampler": head.denoising.sampler, "steps": head.denoising.steps}
    if isinstance(head, Flow):
        return {"sampler": "euler", "steps": head.steps}
    if isinstance(head, DiscreteDiffusion):
        return {"rounds": head.decoding.rounds}
    return {}
