"""Recorded robots become a data set: the successful episodes of their bags."""

from __future__ import annotations

import logging
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_runtime.compose import BadArguments
from vla_runtime.contract import Contract
from vla_runtime.data import schema
from vla_runtime.data.assembly import Tally, assemble, last_line
from vla_runtime.data.attempts import part_name
from vla_runtime.data.episode import Episode, write_part
from vla_runtime.data.unfinished import PARTS, save_settings, saved_settings
from vla_runtime.disk import locked
from vla_runtime.ros.bag_files import Report
from vla_runtime.ros.demonstrations import demonstrations
from vla_runtime.types import EnvSpec

_log = logging.getLogger(__name__)


def set_from_bags(config: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Write what `config` (configs/collect.yaml, with `bag`) asks for; returns the last line (with the messages
    that were left out, by stream, and what else must be known of the bags) and the exit code 0.

    BadArguments for settings that cannot be and for an out= that holds something else, ValueError for bags without
    success or that cannot be read.
    """
    if config["contract"] is None:
        raise BadArguments("contract: expected a YAML file with the robot's contract, got none")
    if config["images"] not in schema.IMAGES:
        raise BadArguments(f"images: expected one of {list(schema.IMAGES)}, got {config['images']!r}")
    # A text such as "no" is as true as any.
    if not isinstance(config["succeeded"], bool):
        raise BadArguments(f"succeeded: expected true or false, got {config['succeeded']!r}")
    contract = _with_cameras(Contract.load(config["contract"]), config["cameras"])
    bags = [Path(one) for one in ([config["bag"]] if isinstance(config["bag"], str) else config["bag"])]
    if not bags:
        raise BadArguments("bag: expected a bag, or several as [a,b], got an empty list")
    out = Path(config["out"] or f"{bags[0]}_data")
    with locked(out):
        _begin_anew(out)
        found, reports = _episodes(bags, contract, config["instruction"], config["succeeded"])
        kept = [episode for episode in found if episode.facts["success"]]
        if not kept:
            notes = [f"{bag}: {note}" for bag, report in reports.items() for note in report.notes]
            raise ValueError("; ".join([f"bag: expected successful episodes, got none of {len(found)}", *notes]))
        tasks = sorted({str(episode.facts["instruction"]) for episode in kept})
        name = "robot" if contract.robot is None else contract.robot.name
        spec = EnvSpec(
            name, contract.cameras, contract.state, contract.action, 1.0 / contract.rate_hz, tuple(tasks),
            max(episode.length for episode in kept),
        )  # fmt: skip
        tallies = [Tally(task, 0, given=True) for task in range(len(tasks))]
        rate = schema.frames_per_second(spec.period)
        save_settings(out, config, sys.argv[1:])
        for episode in found:
            if episode.facts["instruction"] not in tasks:
                _log.warning(
                    "an episode of %r, which never succeeded, is no part of the set", episode.facts["instruction"]
                )
                continue
            tally = tallies[tasks.index(str(episode.facts["instruction"]))]
            attempt = len(tally.done)
            facts = {**episode.facts, "task": tally.task, "attempt": attempt}
            tally.done[attempt] = bool(facts["success"])
            tally.wanted += tally.done[attempt]
            written = episode if facts["success"] else None
            write_part(out / PARTS / part_name(tally.task, attempt), facts, written, config["images"], rate)
        own = assemble(config, out, spec, {"action": spec.action}, tallies)
        shutil.rmtree(out / PARTS)
        left_out = sum((report.left_out for report in reports.values()), Counter[str]())
        notes = [f"{bag}: {note}" for bag, report in reports.items() for note in report.notes]
        return {**last_line(own, out), "left_out": dict(left_out), "notes": notes}, 0


def _episodes(
    bags: Sequence[Path], contract: Contract, instruction: str | None, succeeded: bool
) -> tuple[list[Episode], dict[Path, Report]]:
    """(episodes of all bags, what could not be used of each). ValueError that names the bags that cannot be used at
    all, and those that can.
    """
    found: list[Episode] = []
    reports: dict[Path, Report] = {}
    errors: dict[Path, ValueError] = {}
    for bag in bags:
        reports[bag] = Report(bag)
        try:
            found += demonstrations(bag, contract, instruction, succeeded, reports[bag])
        except ValueError as error:
            errors[bag] = error
    if not errors:
        return found, reports
    usable = [str(bag) for bag in bags if bag not in errors]
    if len(bags) == 1:
        raise errors[bags[0]]
    reasons = "; ".join(str(error) for error in errors.values())
    rest = f"the others can be read: bag=[{','.join(usable)}]" if usable else "none of the bags can be used"
    raise ValueError(
        f"bag: expected {len(bags)} bags that can be used, got {len(errors)} that cannot: {reasons}; {rest}"
    )


def _with_cameras(contract: Contract, names: str | Sequence[str] | None) -> Contract:
    """The contract with some of its cameras; the topics of others need not be in a bag."""
    cameras = schema.choose(contract.cameras, names, "the contract")
    side = contract.robot
    if side is not None:
        side = replace(side, cameras={camera.name: side.cameras[camera.name] for camera in cameras})
    return replace(contract, cameras=cameras, robot=side)


def _begin_anew(out: Path) -> None:
    """Begin in an empty folder, or in one where bags were read before to no end: reading them again costs little, and
    what is left of others may be of another contract or instruction.
    """
    names = sorted(path.name for path in out.iterdir())
    ours = names == [PARTS] and (saved_settings(out) or {}).get("bag") is not None
    if names and not ours:
        raise BadArguments(f"out={out}: expected a new folder, got one with {names[:5]}; choose another out=")
    shutil.rmtree(out / PARTS, ignore_errors=True)
