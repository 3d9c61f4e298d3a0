"""Bags of a robot as episodes: streams put on the contract's grid by the robot's own stamps, nothing made up.

An episode ends where the outcome is said. A row holds the newest of every stream at its moment and the command that
answered it; one in which a stream had been silent for too long ends the episode's use. Commands are what a bridge said
and, where there was none or a human had taken over, what the robot's controllers heard. It knows bags and messages.
"""

from __future__ import annotations

import json
import logging
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla_runtime.contract import Contract
from vla_runtime.data import schema
from vla_runtime.data.episode import Episode
from vla_runtime.ros.bags import messages, topics_of
from vla_runtime.ros.messages import ours, read_command, read_image, read_state, stamp
from vla_runtime.ros.robot import command_topics, gated
from vla_runtime.ros.streams import robot_of
from vla_runtime.types import Float, SpecMismatch

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Line:
    """Samples of one stream, in the order of their stamps."""

    times: list[float] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def add(self, time: float, value: Any) -> None:
        if not self.times or time > self.times[-1]:
            self.times.append(time)
            self.values.append(value)

    def before(self, time: float) -> int:
        """Index of the newest at `time`; -1 for none."""
        return bisect_right(self.times, time + 1e-6) - 1


def demonstrations(
    path: Path, contract: Contract, instruction: str | None, succeeded: bool = False
) -> Iterator[Episode]:
    """The episodes of a bag, failures included; what cannot be used is left out with a warning.

    instruction: until the bag says another; succeeded: a bag that says no outcome is one episode, and it succeeded.
    ValueError where there is no instruction, for a bag without an outcome that nobody answers for, and for one that
    lacks a topic of the contract.
    """
    lines, moves, ends, humans, said = _read(path, contract)
    if not ends:
        if not succeeded:
            topic = robot_of(contract).desk.outcome
            where = "robot.desk.outcome of the contract" if topic is None else topic
            raise ValueError(
                f"{path}: expected an outcome on {where}, got none; nobody said how it ended. Take succeeded=true for "
                "bags that are one successful episode each"
            )
        ends = [(max(line.times[-1] for line in lines.values()), True, "as told")]
    begins = -np.inf
    for number, (end, success, reason) in enumerate(ends):
        words = said.values[said.before(end)] if said.before(end) >= 0 else instruction
        if words is None:
            raise ValueError(
                "instruction: expected what the robot was to do, got none in the bag or on the command line"
            )
        marks = [[start, stop] for start, stop in humans if start < end and stop > begins]
        facts = {
            "success": success, "reason": reason, "task": 0, "instruction": words, "attempt": number, "seed": 0,
            "begin_seed": 0, "initial_state": f"{path.name}:{number}", "trimmed": 0, "reset": {"takeovers": marks},
        }  # fmt: skip
        found = _episode(contract, lines, moves, begins, end, facts)
        if found is None:
            _log.warning("%s, episode %d: left out, its streams do not overlap or fall silent", path, number)
        else:
            yield found
        begins = end


def _episode(
    contract: Contract, lines: dict[str, _Line], moves: _Line, begins: float, ends: float, facts: dict[str, Any]
) -> Episode | None:
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
            _log.warning("episode %d: %s fell silent after %.2f s", facts["attempt"], stale[0], moment - start)
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


def _read(
    path: Path, contract: Contract
) -> tuple[dict[str, _Line], _Line, list[tuple[float, bool, str]], list[tuple[float, float]], _Line]:
    """(streams and commands by name, whether a bridge says that it may move, outcomes, takeovers, instructions), all on
    the robot's clock.
    """
    side, desk = robot_of(contract), robot_of(contract).desk
    lines: dict[str, _Line] = defaultdict(_Line)
    cameras = {one.topic: (name, one) for name, one in side.cameras.items()}
    states: dict[str, list[str]] = defaultdict(list)
    for name, stream in side.state.items():
        states[stream.topic].append(name)
    actions = command_topics(side.action)
    specs = {camera.name: camera for camera in contract.cameras}
    left_out: dict[str, str] = {}

    def leave_out(what: str, error: Exception) -> None:
        if what not in left_out:
            _log.warning("%s: %s: left out: %s", path, what, error)
            left_out[what] = str(error)

    # How far the robot's clock is behind that of the bag, at the least delay so far.
    delay = np.inf
    ends: list[tuple[float, bool, str]] = []
    humans: list[tuple[float, float]] = []
    taken: float | None = None
    said, moves = _Line(), _Line()
    there = topics_of(path)
    heard = {one: topic for topic in actions for one in (topic, gated(topic)) if one in there}
    both = {topic for topic in actions if {topic, gated(topic)} <= there}
    needed = {*cameras, *states, *(gated(topic) for topic in actions if topic not in heard.values())}
    if not needed <= there:
        ways = ", or without /gated what the controllers heard" if any(one.endswith("/gated") for one in needed) else ""
        raise ValueError(f"{path}: expected the topics {sorted(needed - there)}{ways}, got {sorted(there)}")
    others = {one for one in (desk.takeover, desk.instruction, desk.outcome, desk.status) if one in there}
    for topic, message, moment in messages(path, needed | others | set(heard)):
        try:
            if topic in cameras:
                name, camera = cameras[topic]
                lines[f"camera {name}"].add(stamp(message), read_image(message, camera, specs[name]))
            elif topic in states:
                delay = min(delay, moment - stamp(message))
                for name in states[topic]:
                    try:
                        values = read_state(message, side.state[name], contract.state.group(name)).astype(np.float32)
                        if not np.isfinite(values).all():
                            raise SpecMismatch(f"state {name!r}: expected finite values")
                    except SpecMismatch as error:
                        # Of one group: what the message says of others can be used.
                        leave_out(f"state {name}", error)
                    else:
                        lines[f"state {name}"].add(stamp(message), values)
            elif topic in heard:
                own, names = heard[topic], actions[heard[topic]]
                # What a bridge says is the policy's; a gate passes it on, where nothing else is said but by a human.
                if own in both and (topic == own) == (taken is None):
                    continue
                moving = contract.action.group(names[0]).kind == "velocity"
                wanted = [one for name in names for one in side.action[name].names]
                numbers, when = read_command(message, wanted, moving)
                when = moment - delay if when is None else when
                if np.isfinite(when):
                    lines[f"action {own}"].add(when, _groups(numbers, names, contract))
            elif topic == desk.outcome:
                told = json.loads(message.data)
                ends.append((moment - delay, bool(told["success"]), str(told["reason"])))
            elif topic == desk.status:
                moves.add(moment - delay, bool(json.loads(message.data)["allowed"]))
            elif topic == desk.instruction:
                said.add(moment - delay, str(message.data))
            elif message.data:
                taken = moment - delay if taken is None else taken
            elif taken is not None:
                humans.append((taken, moment - delay))
                taken = None
        except (SpecMismatch, ValueError, KeyError, TypeError) as error:
            if topic in states:
                for name in states[topic]:
                    leave_out(f"state {name}", error)
            else:
                what = f"camera {cameras[topic][0]}" if topic in cameras else topic
                leave_out(f"action {heard[topic]}" if topic in heard else what, error)
    if taken is not None:
        humans.append((taken, np.inf))
    lines_needed = [f"camera {name}" for name in side.cameras] + [f"state {name}" for name in side.state]
    lines_needed += [f"action {topic}" for topic in actions]
    if missing := [name for name in lines_needed if not lines[name].times]:
        # All of them; the first of each says why.
        reasons = [f"{name} (left out: {left_out[name]})" if name in left_out else name for name in missing]
        raise ValueError(f"{path}: expected messages that can be read of {', '.join(reasons)}, got none")
    return dict(lines), moves, ends, humans, said


def _groups(numbers: dict[str, float], names: list[str], contract: Contract) -> dict[str, Float]:
    side = robot_of(contract)
    return {name: ours(numbers, side.action[name], contract.action.group(name)).astype(np.float32) for name in names}
