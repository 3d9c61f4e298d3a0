"""A recording decided once more: schedule, joins and limits always, decoding where the images were kept.

The same loop runs, on what was seen, with the answers that came when they came; what it decides must be what was
decided, bit for bit. What safety allowed is taken from the recording, since others may have told it something.
`explain` says of one command where it came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vla_runtime.control.planner import forget
from vla_runtime.control.recorder import Recording
from vla_runtime.control.safety import Safety, Timeouts
from vla_runtime.control.settings import Settings
from vla_runtime.control.trace import Run, Tick
from vla_runtime.interfaces import Policy, Session
from vla_runtime.messages import read_env, read_policy
from vla_runtime.types import ActionChunk, Command, EnvSpec, Float, Observation, Outcome


class Replay:
    """Decides a recording once more. session: decodes again where images were kept; without it, answers are taken.

    ticks: of the new run; differences: one line for each thing that was decided otherwise; decoded: chunks that were
    decoded again; timed: those among them that a deadline cut short, which no other time can repeat.
    """

    def __init__(self, recording: Recording, session: Session | None = None):
        self._recording = recording
        env, policy = read_env(recording.header["env"]), read_policy(recording.header["policy"])
        if not recording.ticks:
            ended = "nothing" if recording.end is None else recording.end["end"]["error"]
            raise ValueError(f"{recording.path}: expected at least one tick, got none; it ended with: {ended}")
        self.ticks: list[Tick] = []
        self.differences: list[str] = []
        told = _Told(recording)
        config = recording.header["config"]
        seen = _Seen(recording, env)
        planner = _Answers(recording, seen, session, self.differences)
        Settings(config["loop"], config["limits"], config["safety"], env, policy).play(
            seen, _Nobody(), Run(), lambda session, wall: planner, 0, self._compare, told
        )
        self.decoded, self.timed = planner.decoded, planner.timed

    def _compare(self, tick: Tick) -> None:
        self.ticks.append(tick)
        was = self._recording.ticks[tick.index]
        pairs: dict[str, tuple[Any, Any]] = {
            "command": (was["command"], tick.command.values),
            "action before limits": (was["wanted"], tick.wanted),
            "rows told to the policy": (was["asked"], tick.asked),
            "held": (was["held"], tick.command.held),
            "limits broken": (was["broken"], list(tick.broken)),
        }
        for what, (then, now) in pairs.items():
            if not _same(then, now):
                self.differences.append(f"tick {tick.index} at {tick.now:.3f} s, {what}: was {then}, now {now}")


def explain(ticks: Sequence[Tick], time: float, env: EnvSpec, end: Mapping[str, Any] | None) -> list[str]:
    """Lines that say why the command at `time` (of the tick in force then) was what it was. end: a recording's.

    ValueError for a time before the first or after the last tick.
    """
    first, last = ticks[0].now, ticks[-1].now + env.period
    if not first - 1e-9 <= time < last:
        raise ValueError(f"explain: expected a time from {first:.3f} to {last:.3f} s, got {time}")
    index = max(tick.index for tick in ticks if tick.now <= time + 1e-9)
    tick = ticks[index]
    lines = [f"tick {index} at {tick.now:.3f} s: sent {_rounded(tick.command.values)}"]
    lines += _safety(ticks, index, env.period, None if end is None else end["events"])
    if tick.plan is None:
        lines.append(_stands(ticks, index))
    else:
        lines += _plan(ticks, index, env)
    if tick.asked is not None:
        told = f"told that {len(tick.asked)} rows would be executed meanwhile" if len(tick.asked) else "told of no rows"
        lines.append(f"the policy was asked in this tick, {told}")
    if tick.answer is not None:
        lines.append(
            f"a chunk came in this tick: {len(tick.answer.actions)} rows for what was seen at "
            f"{tick.answer.observed:.3f} s, {tick.now - tick.answer.observed:.3f} s ago; "
            f"thinking took {1e3 * tick.thought:.1f} ms"
        )
        lines += [f"  {name}: {value:g}" for name, value in sorted(tick.answer.facts.items())]
    if tick.broken:
        moved = "sent all the same" if np.array_equal(tick.wanted, tick.command.values) else "brought inside"
        lines.append(f"limits broken: {', '.join(tick.broken)}; wanted {_rounded(tick.wanted)}, {moved}")
    if index == len(ticks) - 1:
        ended = "the recording was cut short" if end is None else end["end"]["error"] or end["end"]["reason"]
        lines.append(f"the last tick: {ended}")
        lines += _ended_by(None if end is None else end.get("last"))
    return lines


def _ended_by(last: Mapping[str, Any] | None) -> list[str]:
    """How far the tick after the last had come, if an exception ended it."""
    if last is None:
        return []
    when = "" if last["now"] is None else f" at {last['now']:.3f} s"
    lines = [f"tick {last['tick']}{when} ended it"]
    if last["answer"] is not None:
        rows = np.asarray(last["answer"]["actions"])
        lines.append(f"a chunk came in it: {len(rows)} rows, the first {_rounded(rows[0]) if len(rows) else 'missing'}")
    if last["wanted"] is not None:
        lines.append(f"it was to send {_rounded(last['wanted'])}")
    if last["sent"] is not None:
        lines.append(f"sent instead, to stay where it was seen: {_rounded(last['sent'])}")
    return lines


def _plan(ticks: Sequence[Tick], index: int, env: EnvSpec) -> list[str]:
    tick = ticks[index]
    plan = tick.plan
    assert plan is not None
    row = plan.row(tick.now)
    lines = [
        f"the plan in force answers what was seen at {plan.observed:.3f} s, {tick.now - plan.observed:.3f} s before; "
        f"it covers {plan.start:.3f} to {plan.end:.3f} s" + (", as a curve" if plan.curve is not None else "")
    ]
    if tick.command.held:
        lines.append(f"it says nothing of this tick (row {row} of {len(plan.actions)}): the last action is held")
    else:
        lines.append(f"row {row} of {len(plan.actions)}: {_rounded(plan.actions[min(row, len(plan.actions) - 1)])}")
        alone = plan.at(tick.now)
        if alone is not None and not np.array_equal(alone, tick.wanted):
            lines.append(f"joined with earlier chunks to {_rounded(tick.wanted)}")
    before = ticks[index - 1] if index else None
    if before is not None and before.plan is not None and before.plan is not plan:
        jump = np.abs(tick.command.values - before.command.values)
        dim = env.action.names[int(jump.argmax())]
        lines.append(f"a seam: the first command of this plan; largest change from the last, {jump.max():.4g} in {dim}")
    return lines


def _stands(ticks: Sequence[Tick], index: int) -> str:
    """Why there is no plan in force."""
    if not ticks[index].allowed:
        return "the robot stands where it was seen: the policy may not move the robot"
    anew = next((i + 1 for i in range(index, -1, -1) if not ticks[i].allowed), 0)
    if any(one.plan is not None for one in ticks[anew:index]):
        return "the robot stands where it was told to be: the policy thinks about the next chunk"
    return "the robot stands where it was seen: no chunk has come yet"


def _safety(
    ticks: Sequence[Tick], index: int, period: float, events: Sequence[tuple[float, str, str]] | None
) -> list[str]:
    tick = ticks[index]
    if tick.human:
        return ["a human moves the robot"]
    if not tick.allowed:
        began = next(i for i in range(index, -1, -1) if i == 0 or ticks[i - 1].allowed)
        # Whoever stops it does so on a clock that is ahead of a tick's time by an observation's age.
        stops = [one for one in events or () if one[1] == "stopped" and one[0] <= tick.now + 2 * period]
        why = [f"{what}: {reason}" for _, what, reason in stops[-1:]]
        if events is not None and not why:
            why = ["no heartbeat has been heard yet"]
        return [f"safety: the robot may not move since {ticks[began].now:.3f} s", *why]
    if index and not ticks[index - 1].allowed:
        return ["safety lets the policy move again from this tick on; nothing of before is used"]
    return []


class _Seen:
    """The Env protocol over what was seen."""

    def __init__(self, recording: Recording, spec: EnvSpec):
        self.spec = spec
        self._recording, self.index = recording, -1
        # Times of observations whose images are not those that were seen.
        self.stand_ins: set[float] = set()

    def observe(self, cameras: Sequence[str] = ()) -> Observation:
        self.index += 1
        seen = self._recording.observation(self.index)
        if seen.images:
            return seen
        # That there were images decides when the next are due; which, nobody asks who takes the answers as they were.
        known = {camera.name: camera.example() for camera in self.spec.cameras}
        if seen.image_times:
            self.stand_ins.add(seen.time)
        return replace(seen, images={name: known[name] for name in seen.image_times})

    def apply(self, command: Command) -> None: ...

    def outcome(self) -> Outcome | None:
        last = self.index == len(self._recording.ticks) - 1
        return Outcome(False, "stopped") if last else None

    def reset(self, seed: int, task: int, episode: int) -> Mapping[str, Any]:
        raise RuntimeError("a recording is not reset")

    def expert(self, seed: int, style: str = "uni") -> Policy:
        raise RuntimeError("a recording has no expert")

    def close(self) -> None: ...


class _Nobody:
    def predict(
        self, observations: Sequence[Observation], committed: Float | None = None, deadline: float | None = None
    ) -> ActionChunk:
        raise RuntimeError("nobody is asked: answers are recorded")


class _Answers:
    """A planner whose answers come when they came; decodes them again beside that where it can."""

    def __init__(self, recording: Recording, seen: _Seen, session: Session | None, differences: list[str]):
        self._recording, self._seen, self._session, self._differences = recording, seen, session, differences
        self._taken = -1
        self._again: ActionChunk | None = None
        self._thinks = False
        self.seconds = 0.0
        self.decoded = self.timed = 0

    @property
    def busy(self) -> bool:
        return self._thinks

    @property
    def ready(self) -> float | None:
        # Asked before a tick looks. What was known then decides which images were.
        found: float | None = self._recording.ticks[self._seen.index + 1]["ready"]
        return found

    def ask(self, observations: Sequence[Observation], committed: Float | None, deadline: float | None = None) -> None:
        self._thinks, self._again = True, None
        # The last images of a recording that was cut short may be missing.
        if self._session is not None and not any(one.time in self._seen.stand_ins for one in observations):
            self._again = self._session.predict(observations, committed)
            self.decoded += 1

    def take(self, now: float) -> ActionChunk | None:
        index = self._seen.index
        answer = self._recording.answer(index) if self._thinks and self._taken < index else None
        if answer is None:
            return None
        self._taken, self._thinks = index, False
        self.seconds = self._recording.ticks[index]["thought_s"]
        if self._again is None:
            return answer
        if answer.facts.get("cut") or self._again.facts.get("cut"):
            self.timed += 1
        elif found := _chunk_difference(answer, self._again):
            self._differences.append(f"tick {index}: decoded again, the chunk differs: {found}")
        return answer

    def forget(self) -> None:
        if self._session is not None:
            forget(self._session)

    def close(self) -> None: ...


class _Told(Safety):
    """What safety said, said again."""

    def __init__(self, recording: Recording):
        # Where somebody watched the age of observations, the loop leaves it to them.
        super().__init__(Timeouts(**recording.header["config"]["safety"]))
        self._said, self._index = recording.ticks, -1

    @property
    def human(self) -> bool:
        return bool(self._said[max(self._index, 0)]["human"])

    def check(self, now: float, observed: float, covered: bool) -> bool:
        self._index += 1
        self.since = self._said[self._index]["since"]
        return bool(self._said[self._index]["allowed"])


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return type(a) is type(b) and bool(a == b)


def _chunk_difference(then: ActionChunk, now: ActionChunk) -> str:
    """What of two chunks is not the same; nothing if all is."""
    if then.actions.shape != now.actions.shape:
        return f"{list(then.actions.shape)} rows, now {list(now.actions.shape)}"
    if not _same(then.actions, now.actions):
        return f"rows, by up to {float(np.abs(then.actions - now.actions).max()):.3g}"
    for name in ("start", "period", "observed", "curved"):
        if getattr(then, name) != getattr(now, name):
            return f"{name} {getattr(then, name)}, now {getattr(now, name)}"
    if (then.curve is None) != (now.curve is None):
        return "a curve, now none" if now.curve is None else "no curve, now one"
    if then.curve is not None and now.curve is not None and not _same(then.curve.points, now.curve.points):
        return "the curve's control points"
    return ""


def _rounded(values: Float) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"
