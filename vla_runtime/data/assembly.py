"""Parts become a data set: which attempts a task still wants, which of them are taken, and what is told of them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

from vla_runtime.contract import Contract
from vla_runtime.data import page, report
from vla_runtime.data.attempts import part_name
from vla_runtime.data.episode import Part
from vla_runtime.data.unfinished import PARTS, settings
from vla_runtime.data.writer import Writer
from vla_runtime.disk import plain, write_text
from vla_runtime.types import ActionSpec, EnvSpec

REPORT = "report.html"

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Tally:
    """The attempts at one task. done: success by attempt; given: nobody chose when to stop, so that all count."""

    task: int
    wanted: int
    done: dict[int, bool] = field(default_factory=dict)
    given: bool = False

    @property
    def missing(self) -> int:
        return max(0, self.wanted - sum(self.done.values()))

    def next(self, spare: bool) -> list[int]:
        """The attempts to make now; RuntimeError when as many as are allowed have been made.

        As many as would complete the task if all succeeded; with `spare`, as many as would at the success rate
        so far, since beginning another round of processes costs more than a few attempts too many.
        """
        if not self.missing:
            # One that a kill left out, below those that a spare process made: the first successes are taken, always.
            return [attempt for attempt in range(max(self.chosen(), default=0)) if attempt not in self.done]
        limit = 5 * self.wanted + 20
        free = [attempt for attempt in range(limit) if attempt not in self.done]
        if not free:
            raise RuntimeError(
                f"task {self.task}: expected {self.wanted} successes of the expert, got {sum(self.done.values())} in "
                f"{limit} attempts; choose another task or style, or look at it with vla_runtime.rollout policy=expert"
            )
        rate = (sum(self.done.values()) + 1) / (len(self.done) + 1) if spare else 1.0
        return free[: ceil(self.missing / rate)]

    def chosen(self) -> list[int]:
        """The first successes, in the order of attempts."""
        return sorted(attempt for attempt, success in self.done.items() if success)[: self.wanted]

    def attempts(self) -> int:
        """Attempts up to the last chosen one: what the episodes cost."""
        return len(self.done) if self.given else self.chosen()[-1] + 1


def read_tally(out: Path, task: int, wanted: int) -> Tally:
    """What an unfinished folder holds of a task; parts that are incomplete are removed, and made again."""
    tally = Tally(task, wanted)
    for folder in (out / PARTS).glob(f"task-{task:03d}-attempt-*"):
        try:
            part = Part.read(folder)
        except ValueError:
            _log.warning("%s is incomplete and made again", folder)
            shutil.rmtree(folder)
            continue
        tally.done[part.facts["attempt"]] = part.success
    return tally


def assemble(
    config: Mapping[str, Any], out: Path, spec: EnvSpec, actions: Mapping[str, ActionSpec], tallies: list[Tally]
) -> dict[str, Any]:
    """Write the data set from the chosen parts; returns what meta/vla_runtime.json holds."""
    writer = Writer(out, spec, actions, config["images"])
    columns, facts, attempts = [], [], []
    try:
        for tally in tallies:
            for attempt in tally.chosen():
                part = Part.read(out / PARTS / part_name(tally.task, attempt))
                columns.append(writer.add(part, spec.tasks[tally.task]))
                facts.append({key: value for key, value in part.facts.items() if key not in ("histograms", "sizes")})
            attempts.append(
                {
                    "task": tally.task,
                    "instruction": spec.tasks[tally.task],
                    "attempts": tally.attempts(),
                    "successes": tally.wanted,
                    "success_rate": tally.wanted / tally.attempts(),
                }
            )
        contract = Contract.of(spec)
        own: dict[str, Any] = {
            "version": 1,
            "env": spec.name,
            "versions": dict(spec.versions),
            "collect": settings(config),
            "recover": config["recover"],
            "image_stride": config["image_stride"],
            "contract": contract.document(),
            "actions": {
                name: replace(contract, action=action).document()["action"] for name, action in actions.items()
            },
            "attempts": attempts,
            "episodes": facts,
            "report": report.build(columns, facts, attempts, spec.state, actions),
        }
        own = plain(own)
        notes = {key: config[key] for key in ("style", "recover", "seed", "image_stride", "images", "trim_idle")}
        write_text(out / REPORT, page.page(f"Demonstrations of {spec.name}", own["report"], notes))
        writer.finish(own)
    except BaseException:
        writer.abandon()
        raise
    return own


def last_line(own: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """What a command says of a data set, by what `assemble` returned."""
    attempts = sum(task["attempts"] for task in own["attempts"])
    episodes = len(own["episodes"])
    return {
        "env": own["env"],
        "episodes": episodes,
        "frames": sum(facts["length"] for facts in own["episodes"]),
        "attempts": attempts,
        "expert_success_rate": round(episodes / attempts, 4),
        "out": str(out),
    }
