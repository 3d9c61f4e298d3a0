"""The line itself: observe, predict, splice, clamp, apply, at a fixed rate, with a planner in step or beside it.

In step means that time stands still while the policy thinks: the world waits for every answer. With a planner beside
it the plan in force goes on meanwhile, and a new one takes over where it belongs in time. It knows the protocols and
nothing of any particular environment or policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing

from vla_runtime.control.clock import Clock, SystemClock
from vla_runtime.control.controller import Controller
from vla_runtime.control.joins import Join
from vla_runtime.control.limits import Limits
from vla_runtime.control.planner import InStep, Planner
from vla_runtime.control.safety import Safety
from vla_runtime.control.trace import Run, Tick
from vla_runtime.interfaces import Env, Session
from vla_runtime.types import Outcome, PolicySpec


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
    limits: Limits | None = None,
    safety: Safety | None = None,
    deadline: bool = True,
    counted: bool = False,
) -> Run:
    """Drive `env`, which has just been reset, with `session` until it ends or `max_steps` have passed.

    replan: rows of a chunk that are executed before the next is asked for; rows are the policy's periods, which need
    not be the environment's. cameras_every: also render all cameras at every n-th tick, for recording. result: filled
    in as the episode goes, so that what happened survives an exception. wall: times planning and ticks; the machine's
    clock unless given. planner: made of the session and `wall`; `InStep` unless given. prefix: tell the policy which
    rows will be executed anyhow while it thinks, and execute them: as many as the slowest of the last answers took.
    Until the first chunk is there the robot stands. stands: so it does while the policy thinks, at every question, and
    then begins with the first row of the answer. join: what is executed where chunks overlap; the newest alone unless
    given. limits: the last look at every command; the range alone unless given. safety: asked at every tick; where it
    forbids motion the robot stands, and when it allows it again everything begins anew. deadline: tell the policy how
    long there is a plan, so that one which can be brief is; in real time alone. counted: the environment's time is that
    of its commands, as a simulator's: periods that were late are made up for at once, or its world would wait for
    whoever renders it; a robot's are left out.
    SpecMismatch for a chunk or an observation that breaks its spec.
    """
    if not 1 <= replan <= policy.horizon:
        raise ValueError(f"loop.replan: expected 1 to {policy.horizon} (the policy's horizon), got {replan}")
    if prefix and not policy.max_committed:
        raise ValueError(f"loop.join=prefix: expected a policy that takes committed rows, got {policy.name}")
    result = result or Run()
    wall = wall or SystemClock()
    limits = limits or Limits(env.spec.action)
    result.broken, result.events = limits.events, () if safety is None else safety.events
    last_step = env.spec.max_steps if max_steps is None else max_steps
    # The environment says what time it is when the loop begins; deadlines are the clock's.
    start = clock.now()
    with closing(planner(session, wall)) as thinking:
        controller = Controller(
            env, policy, thinking, wall, result, replan=replan, cameras_every=cameras_every, prefix=prefix, join=join,
            stands=stands, limits=limits, safety=safety, deadline=deadline,
        )  # fmt: skip
        try:
            for index in range(last_step):
                tick = controller.tick(index)
                try:
                    outcome = controller.act(tick.command)
                finally:
                    # Also the command that could not be executed.
                    if on_tick is not None:
                        on_tick(tick)
                due = start + (index + 1) * env.spec.period
                behind = clock.now() - due
                result.trace.overruns += behind > 0
                if behind > env.spec.period and not counted:
                    # Commands that come in a burst are faster than any limit meant.
                    start += math.floor(behind / env.spec.period) * env.spec.period
                clock.sleep_until(due)
                if outcome is not None:
                    result.outcome = outcome
                    return result
        except BaseException:
            # Whatever went wrong, the robot is not left with a velocity that nobody takes back.
            result.last = controller.reached
            result.last.sent = controller.halt()
            raise

    progress = getattr(env, "progress", None)
    reason = "time" if safety is None or safety.stopped is None else "stopped"
    result.outcome = Outcome(False, reason, None if progress is None else progress())
    return result
