"""The line itself: observe, predict, splice, clamp, apply, at a fixed rate, with a planner in step or beside it.

In step means that time stands still while the policy thinks: the world waits for every answer. With a planner beside
it the plan in force goes on meanwhile, and a new one takes over where it belongs in time. It knows the protocols and
nothing of any particular environment or policy.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace

from vla_runtime.control.clock import Clock, SystemClock
from vla_runtime.control.joins import Join
from vla_runtime.control.limits import Limits
from vla_runtime.control.planner import InStep, Planner
from vla_runtime.control.safety import Safety
from vla_runtime.control.schedule import ActionSchedule, standing
from vla_runtime.control.trace import Trace
from vla_runtime.interfaces import Env, Session
from vla_runtime.types import ActionChunk, Command, Float, Observation, Outcome, PolicySpec, SpecMismatch

# Of so many answers the slowest says how long the next may take.
_REMEMBERED = 20


@dataclass(frozen=True, slots=True, eq=False)
class Tick:
    """One control period, after its command was applied. observation: before it, with the images it had."""

    index: int
    observation: Observation
    command: Command


@dataclass(slots=True, eq=False)
class Run:
    """How one episode went. steps: commands applied; plans: chunks taken; clamped: commands changed by limits."""

    outcome: Outcome = field(default_factory=lambda: Outcome(False, "stopped"))
    steps: int = 0
    plans: int = 0
    clamped: int = 0
    trace: Trace = field(default_factory=Trace)


def run(
    env: Env,
    session: Session,
    policy: PolicySpec,
    clock: Clock,
    *,
    replan: int,
    max_steps: int | None = None,
    cameras_every: int | None = None,
    on_tick: Callable[[Tick], None] | None = None,
    result: Run | None = None,
    wall: Clock | None = None,
    planner: Callable[[Session, Clock], Planner] = InStep,
    prefix: bool = False,
    join: Join | None = None,
    stands: bool = False,
    safety: Safety | None = None,
) -> Run:
    """Drive `env`, which has just been reset, with `session` until it ends or `max_steps` have passed.

    replan: rows of a chunk that are executed before the next is asked for. cameras_every: also render all
    cameras at every n-th tick, for recording. result: filled in as the episode goes, so that what happened
    survives an exception. wall: times planning and ticks; the machine's clock unless given. planner: made of the
    session and `wall`; `InStep` unless given. prefix: tell the policy which rows will be executed anyhow while it
    thinks, and execute them: as many as the slowest of the last answers took. Until the first chunk is there the
    robot stands. stands: so it does while the policy thinks, at every question, and then begins with the first row
    of the answer. join: what is executed where chunks overlap; the newest alone unless given. safety: asked at every
    tick; where it forbids motion the robot stands, and when it allows it again everything begins anew.
    SpecMismatch for a chunk or an observation that breaks its spec.
    """
    spec = env.spec
    result = result or Run()
    wall = wall or SystemClock()
    trace = result.trace
    if not 1 <= replan <= policy.horizon:
        raise ValueError(f"loop.replan: expected 1 to {policy.horizon} (the policy's horizon), got {replan}")
    if prefix and not policy.max_committed:
        raise ValueError(f"loop.join=prefix: expected a policy that takes committed rows, got {policy.name}")
    thinking = planner(session, wall)
    limits = Limits(spec.action)
    schedule = ActionSchedule(spec.action, spec.period, join)
    policy_cameras = tuple(camera.name for camera in policy.cameras)
    every_camera = tuple(camera.name for camera in spec.cameras)
    offsets = policy.observation_offsets
    history: deque[Observation] = deque(maxlen=1 - offsets[0])
    last_step = spec.max_steps if max_steps is None else max_steps
    # The environment says what time it is when the loop begins; deadlines are the clock's.
    start, first = clock.now(), 0.0
    next_plan = 0
    # Of the question that is being thought about: when it was asked, how many rows it was given, holds before it.
    asked_at, given, held_before = 0.0, 0, 0
    waiting = False
    # How long the last answers took; begun anew with the motion.
    waits: deque[float] = deque(maxlen=_REMEMBERED)
    playing: ActionChunk | None = None
    stand: Float | None = None
    moves_since = -math.inf

    with closing(thinking):
        for index in range(last_step):
            tick_began = wall.now()
            cameras: tuple[str, ...] = ()
            if any(index - offset == next_plan for offset in offsets):
                cameras = policy_cameras
            if cameras_every is not None and index % cameras_every == 0:
                cameras = every_camera

            env_began = wall.now()
            observation = env.observe(cameras)
            outside = wall.now() - env_began
            spec.validate(observation)
            first = observation.time if index == 0 else first
            now = first + index * spec.period
            if abs(observation.time - now) > spec.period:
                raise SpecMismatch(
                    f"observation time: expected {now:.4f} s on the loop's clock, got {observation.time:.4f} s"
                )
            history.append(observation)

            allowed = True
            if safety is not None:
                if index == 0:
                    safety.begin(now)
                allowed = safety.check(now, observation.time, schedule.committed(now, 1) is not None)
                if not allowed or safety.since != moves_since:
                    # Also where a stop came and went between two ticks: nothing of before is used.
                    moves_since, next_plan = safety.since, index + (not allowed)
                    schedule, playing = ActionSchedule(spec.action, spec.period, join), None
                    limits.forget()
                    waits.clear()

            if index == next_plan and thinking.busy:
                next_plan += 1
            elif index == next_plan:
                seen = [history[max(len(history) - 1 + offset, 0)] for offset in offsets]
                committed = schedule.committed(now, _expected_rows(waits, spec.period, policy)) if prefix else None
                asked_at, given, held_before = now, 0 if committed is None else len(committed), trace.held
                asked = wall.now()
                thinking.ask(seen, committed if committed is None else limits.inside(committed))
                outside += wall.now() - asked
                next_plan = index + replan
                waiting = True
            chunk = thinking.take(now)
            if stands and waiting and chunk is None:
                schedule, playing = ActionSchedule(spec.action, spec.period, join), None
                next_plan += 1
            waiting = waiting and chunk is None
            if chunk is not None and (not allowed or asked_at < moves_since):
                chunk = None
            if chunk is not None:
                # Observations are a little older than the tick that asks; rows are played from tick to tick.
                chunk = replace(chunk, start=chunk.start + asked_at - chunk.observed, observed=asked_at)
                trace.latencies.append(thinking.seconds)
                trace.delays.append(now - asked_at)
                waits.append(now - asked_at)
                trace.facts.append(chunk.facts)
                result.plans += 1
                if len(chunk.actions) < replan:
                    raise SpecMismatch(
                        f"chunk: expected at least loop.replan = {replan} rows, got {len(chunk.actions)}"
                    )
                # More rows have passed than the policy was told of: it planned from another place.
                passed = round((now - asked_at) / spec.period) - (trace.held - held_before)
                trace.late += prefix and schedule.chunk is not None and passed > given
                schedule.splice(chunk, now, chunk.observed + given * spec.period)

            if schedule.chunk is None:
                # Once: a robot that is told where it is sinks with every look. A hand that moves it moves the place.
                if stand is None or (safety is not None and safety.human):
                    stand = standing(spec, observation, trace.commands[-1] if trace.commands else None)
                command = limits.clamp(Command(stand, now, held=True))
            else:
                stand = None
                command = limits.clamp(schedule.command_at(now))
                if playing is not None and schedule.chunk is not playing:
                    trace.seams.append(index)
                playing = schedule.chunk
            result.clamped = limits.clamped
            trace.held += command.held
            trace.states.append(observation.state)
            trace.commands.append(command.values)

            env_began = wall.now()
            env.apply(command)
            outcome = env.outcome()
            outside += wall.now() - env_began
            result.steps = index + 1
            trace.ticks.append(wall.now() - tick_began - outside)
            if on_tick is not None:
                on_tick(Tick(index, observation, command))
            deadline = start + (index + 1) * spec.period
            trace.overruns += clock.now() > deadline
            clock.sleep_until(deadline)
            if outcome is not None:
                result.outcome = outcome
                return result

    progress = getattr(env, "progress", None)
    result.outcome = Outcome(False, "time", None if progress is None else progress())
    return result


def _expected_rows(waits: Iterable[float], period: float, policy: PolicySpec) -> int:
    """How many rows will pass before the next answer is there: as in the slowest of the last, rounded up."""
    slowest = max(waits, default=0.0)
    return min(math.ceil(slowest / period - 1e-3), policy.max_committed)
