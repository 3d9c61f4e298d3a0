"""The line itself: observe, predict, splice, clamp, apply, at a fixed rate, in step with the policy.

In step means that time stands still while the policy thinks: the world waits for every answer. It knows
the protocols and nothing of any particular environment or policy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from vla_runtime.control.clock import Clock, SystemClock
from vla_runtime.control.limits import Limits
from vla_runtime.control.schedule import ActionSchedule
from vla_runtime.control.trace import Trace
from vla_runtime.interfaces import Env, Session
from vla_runtime.types import Command, Observation, Outcome, PolicySpec, SpecMismatch


@dataclass(frozen=True, slots=True, eq=False)
class Tick:
    """One control period, after its command was applied. observation: before it, with the images it had."""

    index: int
    observation: Observation
    command: Command


@dataclass(slots=True, eq=False)
class Run:
    """How one episode went. steps: commands applied; plans: chunks predicted; clamped: commands changed by limits."""

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
) -> Run:
    """Drive `env`, which has just been reset, with `session` until it ends or `max_steps` have passed.

    replan: rows of a chunk that are executed before the next is asked for. cameras_every: also render all
    cameras at every n-th tick, for recording. result: filled in as the episode goes, so that what happened
    survives an exception. wall: times planning and ticks; the machine's clock unless given.
    SpecMismatch for a chunk or an observation that breaks its spec.
    """
    spec = env.spec
    result = result or Run()
    wall = wall or SystemClock()
    trace = result.trace
    if not 1 <= replan <= policy.horizon:
        raise ValueError(f"loop.replan: expected 1 to {policy.horizon} (the policy's horizon), got {replan}")
    limits = Limits(spec.action)
    schedule = ActionSchedule(spec.action, spec.period)
    policy_cameras = tuple(camera.name for camera in policy.cameras)
    every_camera = tuple(camera.name for camera in spec.cameras)
    offsets = policy.observation_offsets
    history: deque[Observation] = deque(maxlen=1 - offsets[0])
    last_step = spec.max_steps if max_steps is None else max_steps
    start = clock.now()
    next_plan = 0

    for index in range(last_step):
        tick_began = wall.now()
        now = start + index * spec.period
        cameras: tuple[str, ...] = ()
        if any(index - offset == next_plan for offset in offsets):
            cameras = policy_cameras
        if cameras_every is not None and index % cameras_every == 0:
            cameras = every_camera

        env_began = wall.now()
        observation = env.observe(cameras)
        outside = wall.now() - env_began
        spec.validate(observation)
        if abs(observation.time - now) > spec.period:
            raise SpecMismatch(
                f"observation time: expected {now:.4f} s on the loop's clock, got {observation.time:.4f} s"
            )
        history.append(observation)

        if index == next_plan:
            seen = [history[max(len(history) - 1 + offset, 0)] for offset in offsets]
            plan_began = wall.now()
            chunk = session.predict(seen)
            latency = wall.now() - plan_began
            trace.latencies.append(latency)
            trace.facts.append(chunk.facts)
            outside += latency
            result.plans += 1
            if len(chunk.actions) < replan:
                raise SpecMismatch(f"chunk: expected at least loop.replan = {replan} rows, got {len(chunk.actions)}")
            schedule.splice(chunk, now)
            next_plan = index + replan

        command = limits.clamp(schedule.command_at(now))
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
