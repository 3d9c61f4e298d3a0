"""Bags of a robot as episodes: streams put on the contract's grid by the robot's own stamps, nothing made up.

An episode ends where the outcome is said. A row holds the newest of every stream at its moment and the command that
answered it; one in which a stream had been silent for too long ends the episode's use. Commands are what a bridge said
and, where there was none or a human had taken over, what the robot's controllers heard. It knows bags and messages.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vla_runtime.contract import Contract
from vla_runtime.data import schema
from vla_runtime.data.episode import Episode
from vla_runtime.ros.aligned import Line
from vla_runtime.ros.bag_files import Report
from vla_runtime.ros.recorded import read_robot
from vla_runtime.ros.robot import command_topics
from vla_runtime.ros.streams import robot_of
from vla_runtime.types import Outcome


def demonstrations(
    path: Path, contract: Contract, instruction: str | None, succeeded: bool = False, report: Report | None = None
) -> Iterator[Episode]:
    """The episodes of a bag, failures included; what cannot be used is left out with a warning, and counted in report.

    instruction: until the bag says another; succeeded: a bag that says no outcome is one episode, and it succeeded.
    ValueError where there is no instruction, for a bag without an outcome that nobody answers for, for one that lacks a
    topic of the contract, and for one with a stream that another clock stamped.
    """
    report = Report(path) if report is None else report
    robot = read_robot(path, contract, report)
    ends, topic = robot.ends, robot_of(contract).desk.outcome
    if not ends:
        if not succeeded:
            where = "robot.desk.outcome of the contract" if topic is None else topic
            raise ValueError(
                f"{path}: expected an outcome on {where}, got none; nobody said how it ended. Take "
                "succeeded=true for bags that are one successful episode each"
            )
        ends = [(max(line.times[-1] for line in robot.streams.values()), Outcome(True, "as told"))]
    begins = -np.inf
    for number, (end, outcome) in enumerate(ends):
        if outcome is None:
            report.note(f"episode {number}: left out, how it ended cannot be read ({report.first[str(topic)]})")
            begins = end
            continue
        place = robot.instructions.before(end)
        words = robot.instructions.values[place] if place >= 0 else instruction
        if words is None:
            raise ValueError(
                f"{path}: instruction: expected what the robot was to do, got none in the bag or on the command line"
            )
        marks = [[start, stop] for start, stop in robot.takeovers if start < end and stop > begins]
        facts = {
            "success": outcome.success, "reason": outcome.reason, "task": 0, "instruction": words, "attempt": number,
            "seed": 0, "begin_seed": 0, "initial_state": f"{path.name}:{number}", "trimmed": 0,
            "reset": {"takeovers": marks},
        }  # fmt: skip
        found = _episode(contract, robot.streams, robot.moves, begins, end, facts, report)
        if found is None:
            report.note(f"episode {number}: left out, its streams do not overlap or fall silent")
        else:
            yield found
        begins = end


def _episode(
    contract: Contract, lines: dict[str, Line], moves: Line, begins: float, ends: float, facts: dict[str, Any],
    report: Report,
) -> Episode | None:  # fmt: skip
    side, period = robot_of(contract), 1.0 / contract.rate_hz
    ages = {f"camera {name}": one.max_age for name, one in side.cameras.items()}
    ages |= {f"state {name}": one.max_age for name, one in side.state.items()}
    commands = [lines[f"action {topic}"] for topic in command_topics(side.action)]
    firsts = [
        line.times[bisect_right(line.times, begins)] if bisect_right(line.times, begins) < len(line.times) else np.inf
        for line in lines.values()
    ]
    start = max(firsts)
    rows: list[dict[str, Any]] = []
    images: dict[str, list[Any]] = {camera.name: [] for camera in contract.cameras}
    shown: list[int] = []
    last: tuple[int, ...] = ()
    broken_off = False
    for step in range(int((ends - start) / period) if np.isfinite(start) else 0):
        moment = start + step * period
        places = {name: lines[name].before(moment) for name in ages}
        stale = [name for name, place in places.items() if moment - lines[name].times[place] > ages[name]]
        if stale:
            report.note(
                f"episode {facts['attempt']}: {stale[0]} fell silent after {moment - start:.2f} s; the rest is not used"
            )
            broken_off = True
            break
        answered = [bisect_left(line.times, moment - 1e-6) for line in commands]
        # What answered this moment, or what was still in force.
        fresh = all(
            at < len(line.times) and line.times[at] < moment + period
            for line, at in zip(commands, answered, strict=True)
        )
        chosen = [at if fresh else line.before(moment) for line, at in zip(commands, answered, strict=True)]
        action = np.zeros(contract.action.size, np.float32)
        for line, at in zip(commands, chosen, strict=True):
            for name, values in line.values[at].items():
                action[contract.action.slices[name]] = values
        seen = tuple(places[f"camera {camera.name}"] for camera in contract.cameras)
        new = seen != last
        if new:
            for camera in contract.cameras:
                images[camera.name].append(lines[f"camera {camera.name}"].values[places[f"camera {camera.name}"]])
            last = seen
        shown.append(max(0, len(next(iter(images.values()), [])) - 1))
        state = np.concatenate(
            [lines[f"state {group.name}"].values[places[f"state {group.name}"]] for group in contract.state.groups]
        )
        still = all(moment - line.times[at] <= side.expiry for line, at in zip(commands, chosen, strict=True))
        # What keeps a robot where it is that may not move teaches nothing.
        may = moves.before(moment) < 0 or bool(moves.values[moves.before(moment)])
        row: dict[str, Any] = {schema.STATE: state, "action": action, schema.FRESH: new or not images}
        rows.append({**row, schema.DISTURBED: not (still and may)})
    if not rows:
        return None
    if side.ends is not None:
        # It is not said on any topic: with its last row a demonstration has finished.
        place, group = contract.action.slices[side.ends], contract.action.group(side.ends)
        for row in rows:
            row["action"][place] = group.open
        # With the last that somebody commanded, if it was not broken off.
        while rows and not broken_off and rows[-1][schema.DISTURBED]:
            rows.pop()
            shown.pop()
        if not rows:
            return None
        images = {name: kept[: shown[-1] + 1] for name, kept in images.items()}
        if not broken_off:
            rows[-1]["action"][place] = group.close
    facts["steps"] = len(rows)
    # Seconds from the first row on, of this episode alone; a hand that was still there when the bag ended stayed.
    whole = len(rows) * period
    inside = [[max(one - start, 0.0), min(other - start, whole)] for one, other in facts["reset"]["takeovers"]]
    facts["reset"]["takeovers"] = [[round(one, 6), round(other, 6)] for one, other in inside if one < other]
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return Episode(facts, columns, images, np.array(shown, np.int64))
