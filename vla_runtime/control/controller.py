"""A control period: look, ask, take what was answered, and decide on the one command that is due.

When a period begins is `loop`'s to say; here is what happens in it. It knows the protocols and nothing of any
particular environment or policy.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from dataclasses import replace

import numpy as np

from vla_runtime.control.clock import Clock
from vla_runtime.control.joins import Join
from vla_runtime.control.limits import Limits
from vla_runtime.control.planner import Planner
from vla_runtime.control.safety import Safety
from vla_runtime.control.schedule import ActionSchedule
from vla_runtime.control.standing import held, standing
from vla_runtime.control.trace import Broken, Run, Tick
from vla_runtime.interfaces import Env
from vla_runtime.types import ActionChunk, Command, Float, Observation, Outcome, PolicySpec, SpecMismatch

# Of so many answers the slowest says how long the next may take.
_REMEMBERED = 20


class Controller:
    """What is remembered from tick to tick: the plan in force, the question that is being thought about, the times.

    Takes what `run` takes, whose docstring says it; `reached` is how far the tick has come that is going on.
    """

    def __init__(
        self,
        env: Env,
        policy: PolicySpec,
        thinking: Planner,
        wall: Clock,
        result: Run,
        *,
        replan: int,
        cameras_every: int | None,
        prefix: bool,
        join: Join | None,
        stands: bool,
        limits: Limits,
        safety: Safety | None,
        deadline: bool,
    ):
        self._env, self._policy, self._thinking, self._wall, self._result = env, policy, thinking, wall, result
        self._replan, self._cameras_every, self._stands, self._deadline = replan, cameras_every, stands, deadline
        self._prefix, self._join, self._limits, self._safety = prefix, join, limits, safety
        self._period = env.spec.period
        # Control periods that a row of the policy lasts.
        self._per_row = policy.period / self._period
        self._offsets = [round(offset * self._per_row) for offset in policy.observation_offsets]
        self._history: deque[Observation] = deque(maxlen=1 - self._offsets[0])
        self._policy_cameras = tuple(camera.name for camera in policy.cameras)
        self._all_cameras = tuple(camera.name for camera in env.spec.cameras)
        self._newest: Observation | None = None
        # Ticks from one question to the next.
        self._replan_ticks = max(1, round(replan * self._per_row))
        self._first = 0.0
        self._next_plan = 0
        # Of the question that is being thought about: when it was asked, how many rows it was given, holds before it.
        self._asked_at, self._given, self._held_before = 0.0, 0, 0
        self._waiting = False
        # How long the last answers took; begun anew with the motion.
        self._waits: deque[float] = deque(maxlen=_REMEMBERED)
        # The first is longer than all that follow, where a policy warms up: it counts until there is another.
        self._first_wait: float | None = None
        self._stand: Float | None = None
        self._allowed = True
        self._moves_since = self._since = -math.inf
        self._ready: float | None = None
        self._began = self._outside = 0.0
        self._playing: ActionChunk | None = None
        self.reached = Broken(0)
        # Whether it stands between two chunks while the policy thinks.
        self._pausing = False
        self._forget()

    def tick(self, index: int) -> Tick:
        """Look, think and decide: everything of a period but the command's execution."""
        self._began, self._outside = self._wall.now(), 0.0
        self.reached = Broken(index)
        self._ready = self._thinking.ready
        observation, now = self._look(index)
        self.reached.now, self.reached.observation = now, observation
        if index == 0:
            self._limits.begin(self._env.spec, observation)
        allowed = self._safe(index, now, observation)
        # What is there first: whoever has answered can be asked again.
        answer = self._take(index, now, allowed)
        asked = self._ask(index, now)
        if answer is None and asked is not None:
            answer = self._take(index, now, allowed)
        if self._stands and self._waiting:
            self._pausing |= self._playing is not None
            self._forget()
            # Rows count from the answer on.
            self._next_plan += 1
        wanted = self._due(index, now, observation)
        self.reached.wanted = wanted.values
        command = self._limits.clamp(wanted)
        trace = self._result.trace
        self._result.clamped = self._limits.clamped
        trace.held += command.held
        if command.held:
            trace.held_at.append(index)
        if not allowed:
            trace.forbidden_at.append(index)
        if self._schedule.chunk is not None:
            trace.ages.append(now - self._schedule.chunk.observed)
        if self._limits.broken:
            trace.broken_at.append(index)
        trace.begins.append(self._began)
        trace.states.append(observation.state)
        trace.commands.append(command.values)
        return Tick(
            index, now, self._began, observation, command, wanted.values, self._limits.broken, asked, answer,
            self._thinking.seconds, self._ready, self._schedule.chunk, allowed, self._moves_since,
            self._safety is not None and self._safety.human,
        )  # fmt: skip

    def act(self, command: Command) -> Outcome | None:
        """Execute a command; how the episode ended, if it did."""
        began = self._wall.now()
        self._env.apply(command)
        outcome = self._env.outcome()
        self._outside += self._wall.now() - began
        self._result.steps += 1
        self._result.trace.ticks.append(self._wall.now() - self._began - self._outside)
        return outcome

    def halt(self) -> Float | None:
        """One last command that keeps the robot where it was seen, as far as that still can be done; what it was."""
        last = self._newest
        if last is not None and self._result.steps:
            with suppress(Exception):
                still = standing(self._env.spec, last, self._result.trace.commands[-1])
                self._env.apply(Command(still, last.time, held=True))
                return still
        return None

    def _look(self, index: int) -> tuple[Observation, float]:
        cameras: tuple[str, ...] = ()
        # Whoever thinks for longer puts the next question off, to any tick that earlier images then belong to; and
        # nobody knows yet when the question after the next comes.
        reach = -self._offsets[0]
        may_be_asked = reach > 0 and (self._puts_off() or reach > self._replan_ticks)
        wanted = may_be_asked or any(index - offset == self._next_plan for offset in self._offsets)
        if wanted and not self._pauses_beyond(index):
            cameras = self._policy_cameras
        if self._cameras_every is not None and index % self._cameras_every == 0:
            cameras = self._all_cameras
        began = self._wall.now()
        observation = self._env.observe(cameras)
        self._outside += self._wall.now() - began
        missing = sorted(set(cameras) - set(observation.images))
        if missing:
            raise SpecMismatch(f"observation: expected images of {list(cameras)}, got none of {missing}")
        self._env.spec.validate(observation)
        self._first = observation.time if index == 0 else self._first
        now = self._first + index * self._period
        ahead = observation.time - now
        if ahead > self._period:
            # A stall: the world went on. Periods that nobody served are left out, not made up for.
            missed = int(ahead / self._period)
            self._result.trace.missed += missed
            self._first, now = self._first + missed * self._period, now + missed * self._period
        # With somebody who watches the age of observations it is theirs to judge.
        watched = self._safety is not None and self._safety.timeouts.observation is not None
        if -ahead > self._period and not watched:
            raise SpecMismatch(
                f"observation time: expected {now:.4f} s on the loop's clock, got {observation.time:.4f} s"
            )
        self._newest = observation
        self._history.append(observation)
        return observation, now

    def _puts_off(self) -> bool:
        """Whether the answer that is thought about may come only after the next question is due."""
        if not self._thinking.busy:
            return False
        # A robot that stands meanwhile counts its rows from the answer on.
        return self._stands or self._ready is None or self._ready > self._first + self._next_plan * self._period + 1e-6

    def _pauses_beyond(self, index: int) -> bool:
        """Whether it is known that the robot still stands when this tick is over, and so that no question is due before
        more ticks have passed than a policy looks back."""
        if not self._stands or not self._waiting or self._ready is None or self._asked_at < self._moves_since:
            return False
        return -self._offsets[0] <= self._replan_ticks and self._ready > self._first + index * self._period + 1e-6

    def _safe(self, index: int, now: float, observation: Observation) -> bool:
        """Whether the policy may move the robot; where that has changed, nothing of before is used."""
        if self._safety is None:
            return True
        if index == 0:
            self._safety.begin(now)
        covered = self._schedule.committed([now]) is not None
        # A camera that stands still does not stop the clock of the joints.
        observed = min([observation.time, *observation.image_times.values()])
        allowed = self._safety.check(now, observed, covered)
        anew = self._safety.since != self._since
        if allowed and (anew or not self._allowed):
            # Somebody may have moved it meanwhile: where it stood is a place to go to, not to stay at.
            self._stand = None
        self._allowed = allowed
        # Also where a stop came and went between two ticks.
        if not allowed or anew:
            looked = set(self._policy_cameras) <= set(observation.images)
            # What was seen before belongs to another motion, which may have been a human's.
            self._history.clear()
            if allowed and looked:
                self._history.append(observation)
            self._pausing = False
            self._since, self._next_plan = self._safety.since, index + (not allowed or not looked)
            # On the loop's own time, which lags behind the clock of whoever allowed it by an observation's age.
            self._moves_since = now
            self._forget()
            self._thinking.forget()
            self._limits.begin(self._env.spec, observation)
            self._waits.clear()
        return allowed

    def _ask(self, index: int, now: float) -> Float | None:
        """Ask if a question is due and nobody is thinking; the rows it was told of."""
        if index != self._next_plan:
            return None
        if self._thinking.busy:
            self._next_plan += 1
            return None
        seen = [self._history[max(len(self._history) - 1 + offset, 0)] for offset in self._offsets]
        committed = None
        if self._prefix:
            # As many rows as will have passed when the answer is there: as in the slowest of the last, rounded up.
            slowest = max(self._waits, default=self._first_wait or 0.0)
            rows = min(math.ceil(slowest / self._policy.period - 1e-3), self._policy.max_committed)
            told = self._schedule.told(now, rows, self._policy.period)
            # As they will be sent: every command of every row, after limits.
            count = round(told * self._per_row)
            ticks = self._schedule.committed(self._first + (index + k) * self._period for k in range(count))
            if ticks is not None:
                committed = self._limits.ahead(ticks)[:: max(1, round(self._per_row))]
        self._asked_at, self._held_before = now, self._result.trace.held
        self._given = 0 if committed is None else len(committed)
        began = self._wall.now()
        # What comes when nothing is left to execute comes late. A robot that stands anyhow waits as long as it takes.
        deadline = self._schedule.left(now) if self._deadline and not self._stands else None
        self._thinking.ask(seen, committed, deadline)
        self._outside += self._wall.now() - began
        self._next_plan = index + self._replan_ticks
        self._waiting = True
        return np.zeros((0, self._env.spec.action.size), np.float32) if committed is None else committed

    def _take(self, index: int, now: float, allowed: bool) -> ActionChunk | None:
        """The answer, if it is there, and into the plan with it, unless it answers what no longer counts."""
        answer = self._thinking.take(now)
        if answer is None:
            return None
        self.reached.answer = answer
        self._waiting = False
        if not allowed or self._asked_at < self._moves_since:
            return answer
        # Observations are a little older than the tick that asks; rows are played from tick to tick.
        chunk = replace(answer, start=answer.start + self._asked_at - answer.observed, observed=self._asked_at)
        trace = self._result.trace
        trace.latencies.append(self._thinking.seconds)
        trace.delays.append(now - self._asked_at)
        trace.arrivals.append(index)
        if self._first_wait is None:
            self._first_wait = now - self._asked_at
        else:
            self._waits.append(now - self._asked_at)
        trace.facts.append(chunk.facts)
        self._result.plans += 1
        if len(chunk.actions) < self._replan:
            raise SpecMismatch(f"chunk: expected at least loop.replan = {self._replan} rows, got {len(chunk.actions)}")
        if abs(chunk.period - self._policy.period) > 1e-9:
            raise SpecMismatch(f"chunk period: expected the policy's {self._policy.period} s, got {chunk.period} s")
        # More rows have passed than the policy was told of: it planned from another place.
        passed = (now - self._asked_at) / self._policy.period - (trace.held - self._held_before) / self._per_row
        trace.late += self._prefix and self._schedule.chunk is not None and passed > self._given + 1e-3
        accepted = self._schedule.splice(chunk, now, chunk.observed + self._given * self._policy.period)
        self._result.plans -= not accepted
        trace.refused += not accepted
        return answer

    def _due(self, index: int, now: float, observation: Observation) -> Command:
        """What the plan says of now; what keeps the robot still where there is none."""
        trace = self._result.trace
        if self._schedule.chunk is None:
            # Once: a robot that is told where it is sinks with every look. A hand that moves it moves the place.
            if self._stand is None or (self._safety is not None and self._safety.human):
                last = trace.commands[-1] if trace.commands else None
                if self._pausing and last is not None:
                    # It goes on in a moment: where it was told to be is not where it has come yet.
                    self._stand = held(self._env.spec.action, last)
                else:
                    self._stand = standing(self._env.spec, observation, last)
            return Command(self._stand, now, held=True)
        self._stand = None
        command = self._schedule.command_at(now)
        went_on = self._playing is not None or self._pausing
        if went_on and self._schedule.chunk is not self._playing:
            trace.seams.append(index)
        self._pausing = False
        self._playing = self._schedule.chunk
        return command

    def _forget(self) -> None:
        """No plan is in force any more."""
        self._schedule = ActionSchedule(self._env.spec.action, self._period, self._join)
        self._playing = None
