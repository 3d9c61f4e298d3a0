"""What happened: of one tick, of a run, and one record a tick in small arrays with percentiles over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from vla_runtime.control.safety import Event
from vla_runtime.types import ActionChunk, Command, Float, Observation, Outcome


@dataclass(slots=True)
class Trace:
    """The record of one episode.

    states float32 [S] and commands float32 [A] as applied, one a tick; held: ticks no plan covered, held_at which;
    broken_at: ticks that broke a limit; forbidden_at: ticks in which safety let the policy move nothing; ages: seconds
    since what the plan in force answers was seen, one for each tick that has a plan; arrivals: ticks in which a chunk
    came; begins: when each tick began, on the machine's clock. latencies and ticks in seconds of wall time, planning
    excluded from ticks; overruns: ticks that ended after the next was due; missed: periods
    of the world that nobody served. delays: seconds from an observation to the
    tick that had its chunk, on the loop's clock; late: chunks that came after more rows than the policy was told of;
    refused: chunks that the join did not take; seams: ticks whose command came from another chunk than the one before.
    facts: what each chunk said of how it was decoded.
    """

    states: list[Float] = field(default_factory=list)
    commands: list[Float] = field(default_factory=list)
    held: int = 0
    held_at: list[int] = field(default_factory=list)
    broken_at: list[int] = field(default_factory=list)
    forbidden_at: list[int] = field(default_factory=list)
    ages: list[float] = field(default_factory=list)
    arrivals: list[int] = field(default_factory=list)
    begins: list[float] = field(default_factory=list)
    overruns: int = 0
    missed: int = 0
    latencies: list[float] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    late: int = 0
    refused: int = 0
    seams: list[int] = field(default_factory=list)
    ticks: list[float] = field(default_factory=list)
    facts: list[Mapping[str, float]] = field(default_factory=list)

    def timeline(self) -> dict[str, list[list[int]]]:
        """Ticks as runs [first, last]: held, forbidden by safety, limits broken, seams, chunks that came."""
        kinds = {
            "held": self.held_at, "safety": self.forbidden_at, "limits": self.broken_at, "seams": self.seams,
            "chunks": self.arrivals,
        }  # fmt: skip
        return {name: runs(ticks) for name, ticks in kinds.items()}

    def period_errors(self, period: float) -> list[float]:
        """Seconds by which each tick began too late or too early after the one before."""
        return [abs(after - before - period) for before, after in pairwise(self.begins)]

    def chunk_means(self) -> dict[str, float]:
        """The mean of every fact over the chunks that say it."""
        names = sorted({name for one in self.facts for name in one})
        return {name: round(float(np.mean([one[name] for one in self.facts if name in one])), 6) for name in names}


@dataclass(frozen=True, slots=True, eq=False)
class Tick:
    """One control period, after its command was applied.

    now: seconds on the loop's clock; wall: on the machine's, when the period began. observation: before the command,
    with the images it had. wanted: the action float32 [A] that was due, before limits; broken: the limits it broke.
    asked: rows [c, A] that the question of this tick told the policy of, None without a question. answer: the chunk the
    planner had in this tick, as it came, after thinking for `thought` seconds; ready: when an answer was known to come
    as the tick began, None where nobody knew. plan: the chunk in force, as it was joined. allowed, since, human:
    whether safety let the policy move, since when, and whether a human moved the robot.
    """

    index: int
    now: float
    wall: float
    observation: Observation
    command: Command
    wanted: Float
    broken: tuple[str, ...]
    asked: Float | None
    answer: ActionChunk | None
    thought: float
    ready: float | None
    plan: ActionChunk | None
    allowed: bool
    since: float
    human: bool


@dataclass(slots=True, eq=False)
class Broken:
    """How far a tick had come that ended a run: what it saw, the answer that had come and what it was to send, None for
    what it did not reach; sent: the command that keeps the robot where it is, None where none could be sent.
    """

    index: int
    now: float | None = None
    observation: Observation | None = None
    answer: ActionChunk | None = None
    wanted: Float | None = None
    sent: Float | None = None


@dataclass(slots=True, eq=False)
class Run:
    """How one episode went. steps: commands applied; plans: chunks taken; clamped: commands changed by limits.

    broken: how often which limit was broken; events: what safety did; last: the tick that an exception ended.
    """

    outcome: Outcome = field(default_factory=lambda: Outcome(False, "stopped"))
    steps: int = 0
    plans: int = 0
    clamped: int = 0
    broken: Mapping[str, int] = field(default_factory=dict)
    events: Sequence[Event] = ()
    trace: Trace = field(default_factory=Trace)
    last: Broken | None = None


def runs(ticks: Sequence[int]) -> list[list[int]]:
    """Ascending ticks as [first, last] of each unbroken run."""
    found: list[list[int]] = []
    for tick in ticks:
        if found and tick == found[-1][1] + 1:
            found[-1][1] = tick
        else:
            found.append([tick, tick])
    return found


def percentiles(values: Sequence[float], scale: float = 1.0) -> dict[str, float | None]:
    """p50, p95 and p99 of `values` times `scale`; None each when there are no values."""
    if not len(values):
        return {"p50": None, "p95": None, "p99": None}
    points = np.percentile(np.asarray(values, np.float64) * scale, [50, 95, 99])
    return {name: round(float(point), 4) for name, point in zip(("p50", "p95", "p99"), points, strict=True)}
