"""An environment that does not always do as it is told: wrong starts, pushes, dropped objects and missed grasps.

Or one that a trained policy has driven first, as far as it may have gone astray: what an expert then shows is what
that policy was never shown (dataset aggregation, Ross, Gordon and Bagnell 2011, arXiv 1011.0686).

It wears the Env protocol around another environment, so that nothing else knows of it. What it disturbs is
what is *executed*; a recorder on the line still sees the answer to the state, which is how demonstrations
of coming back are made. Everything is drawn from (seed, task, episode): equal resets are disturbed equally.

A disturbance stays inside the range of the ActionSpec. Of the arm, groups of kind delta and velocity are
replaced by a random direction, absolute ones are offset from the command, whose rotations are left alone
(an offset on a rotation's components is no rotation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vla_runtime.contract import Contract, require_match
from vla_runtime.interfaces import Env, Policy
from vla_runtime.types import ActionSpec, Command, EnvSpec, Float, Group, Observation, Outcome, UnsupportedTask

# Absolute positions in metres are offset by this much; other absolute groups by this share of their range.
_OFFSET_METRES = 0.05
_OFFSET_SHARE = 0.05
# Rotations by delta or velocity are pushed with this share of their range: the hand must not turn over.
_ROTATION_SHARE = 0.3
_FIRST_PUSH = 5


@dataclass(frozen=True, slots=True, eq=False)
class _Push:
    """Periods [start, start + steps), and the directions, float64 [A] in [-1, 1], that the arm is pushed in."""

    start: int
    steps: int
    direction: np.ndarray[Any, np.dtype[np.float64]]


class Perturbed:
    """Env around `env`. wrong_start, drop, miss: chances in [0, 1] an episode; others as in configs/collect.yaml.

    lead: a policy that drives for up to `lead_steps` periods before the episode begins, instead of a wrong start.
    ValueError for a chance outside [0, 1] or a negative count, SpecMismatch for a policy of another contract.
    """

    def __init__(
        self,
        env: Env,
        lead: Policy | None = None,
        seed: int = 0,
        wrong_start: float = 0.7,
        wrong_start_steps: int = 20,
        pushes: int = 3,
        push_steps: int = 8,
        drop: float = 0.3,
        miss: float = 0.3,
        lead_steps: int = 120,
    ):
        for name, chance in (("wrong_start", wrong_start), ("drop", drop), ("miss", miss)):
            if not 0 <= chance <= 1:
                raise ValueError(f"perturbation.{name}: expected a chance from 0 to 1, got {chance}")
        counts = {"wrong_start_steps": wrong_start_steps, "pushes": pushes, "push_steps": push_steps}
        for name, count in {**counts, "lead_steps": lead_steps}.items():
            if count < 0:
                raise ValueError(f"perturbation.{name}: expected at least 0, got {count}")
        if lead is not None:
            policy = Contract.of(lead.spec)
            require_match(Contract.of(env.spec), policy, f"environment {env.spec.name}", f"policy {lead.spec.name}")
        self._lead, self._lead_steps = lead, lead_steps
        self._env, self._seed = env, seed
        self._wrong_start, self._wrong_start_steps = wrong_start, wrong_start_steps
        self._max_pushes, self._push_steps = pushes, push_steps
        self._drop_chance, self._miss_chance = drop, miss
        self._start_time = 0.0
        self._step = 0
        self._closed_for = self._open_for = 0
        self._pushes: list[_Push] = []
        self._drop: tuple[int, int] | None = None
        self._miss: tuple[int, int] | None = None
        self._disturbed = False

    @property
    def disturbed(self) -> bool:
        """Whether the last command was executed otherwise than it was given."""
        return self._disturbed

    def __getattr__(self, name: str) -> Any:
        # What else the environment offers (progress, control_specs, both_controls) shows through.
        if name == "_env":
            raise AttributeError(name)
        return getattr(self._env, name)

    @property
    def spec(self) -> EnvSpec:
        return self._env.spec

    def reset(self, seed: int, task: int, episode: int) -> Mapping[str, object]:
        """As the environment's own, then perhaps some wrong motion or a policy's; time begins at 0 after it."""
        facts = dict(self._env.reset(seed, task, episode))
        generator = np.random.default_rng((self._seed, seed, task, episode))
        wrong = int(generator.integers(1, self._wrong_start_steps + 1)) if self._wrong_start_steps else 0
        wrong *= int(generator.random() < self._wrong_start)
        towards = generator.uniform(-1, 1, self.spec.action.size)
        self._pushes = self._draw_pushes(generator)
        drop_after, drop_for = int(generator.integers(3, 25)), int(generator.integers(6, 13))
        self._drop = (drop_after, drop_for) if generator.random() < self._drop_chance else None
        miss_after, miss_for = int(generator.integers(5, 30)), int(generator.integers(3, 10))
        self._miss = (miss_after, miss_for) if generator.random() < self._miss_chance else None
        self._step = self._closed_for = self._open_for = 0
        mover = int(generator.integers(2**31))
        if self._lead is None:
            moved, led = self._move_wrongly(_Push(0, wrong, towards), mover), 0
        else:
            moved, led = 0, self._drive(self._lead, int(generator.integers(0, self._lead_steps + 1)), mover)
        if self._env.outcome() is not None:
            # There is nothing left to show.
            self._env.reset(seed, task, episode)
            moved = led = 0
        self._start_time = self._env.observe().time
        self._disturbed = False
        facts["perturbation"] = {
            "wrong_start": moved,
            "led": led,
            "pushes": [[push.start, push.steps] for push in self._pushes],
            "drop": None if self._drop is None else list(self._drop),
            "miss": None if self._miss is None else list(self._miss),
        }
        return facts

    def observe(self, cameras: Sequence[str] = ()) -> Observation:
        observation = self._env.observe(cameras)
        times = {name: time - self._start_time for name, time in observation.image_times.items()}
        return replace(observation, time=observation.time - self._start_time, image_times=times)

    def apply(self, command: Command) -> None:
        """Carry out the command, or what a push makes of it."""
        spec = self.spec.action
        spec.validate(command.values)
        values = command.values
        for push in self._pushes:
            if push.start <= self._step < push.start + push.steps:
                values = pushed(spec, values, push.direction)
        values = self._forced(spec, values)
        self._disturbed = not np.array_equal(values, command.values)
        self._step += 1
        self._env.apply(command if values is command.values else replace(command, values=values))

    def outcome(self) -> Outcome | None:
        return self._env.outcome()

    def expert(self, seed: int, style: str = "uni") -> Policy:
        return self._env.expert(seed, style)

    def close(self) -> None:
        self._env.close()

    def _draw_pushes(self, generator: np.random.Generator) -> list[_Push]:
        found: list[_Push] = []
        start = _FIRST_PUSH
        for _ in range(int(generator.integers(0, self._max_pushes + 1))):
            start += int(generator.integers(0, 40))
            steps = int(generator.integers(1, self._push_steps + 1)) if self._push_steps else 0
            found.append(_Push(start, steps, generator.uniform(-1, 1, self.spec.action.size)))
            # Time to come back before the next.
            start += steps + 10
        return found

    def _move_wrongly(self, push: _Push, seed: int) -> int:
        """Execute pushed answers of the expert; returns for how many periods."""
        if not push.steps:
            return 0
        try:
            policy = self._env.expert(seed)
        except UnsupportedTask:
            return 0
        session, spec = policy.begin(seed), self.spec.action
        first: Float | None = None
        steps = 0
        while steps < push.steps and self._env.outcome() is None:
            cameras = [camera.name for camera in policy.spec.cameras]
            observation = self._env.observe(cameras)
            answer = spec.clamp(session.predict([observation]).actions[0])[0]
            # The gripper stays as it was told first: an object is not to be gripped before the episode begins.
            first = answer if first is None else first
            values = _with_binary(spec, pushed(spec, answer, push.direction), first)
            self._env.apply(Command(values, observation.time))
            steps += 1
        policy.close()
        return steps

    def _drive(self, policy: Policy, steps: int, seed: int) -> int:
        """Let a policy drive for `steps` periods or to the end; returns for how many it did."""
        spec, session = self.spec, policy.begin(seed)
        every = policy.spec.executed or policy.spec.horizon
        cameras, offsets = [camera.name for camera in policy.spec.cameras], policy.spec.observation_offsets
        seen: list[Observation] = []
        for step in range(steps):
            asked = step % every == 0
            if asked or len(offsets) > 1:
                observation = self._env.observe(cameras)
                seen.append(observation)
            if asked:
                shown = seen[-1:] if len(offsets) == 1 else [seen[max(len(seen) - 1 + one, 0)] for one in offsets]
                rows, first = session.predict(shown).actions, observation.time
            values = spec.action.clamp(rows[step % every])[0]
            self._env.apply(Command(values, first + (step % every) * spec.period))
            if self._env.outcome() is not None:
                return step + 1
        return steps

    def _forced(self, spec: ActionSpec, values: Float) -> Float:
        """Force the gripper for a moment, once each: open after it was told to close for a while, and the reverse.

        A policy that has closed on nothing is somewhere its demonstrations never were, unless they have, too.
        """
        for group in spec.groups:
            if group.open is None or group.close is None:
                continue
            part = spec.slices[group.name]
            closing = bool((np.abs(values[part] - group.close) < np.abs(values[part] - group.open)).all())
            self._closed_for += closing
            self._open_for += not closing
            forced, told_for, to = (
                (self._drop, self._closed_for, group.open) if closing else (self._miss, self._open_for, group.close)
            )
            if forced is not None and forced[0] < told_for <= sum(forced):
                values = values.copy()
                values[part] = to
        return values


def pushed(spec: ActionSpec, values: Float, direction: np.ndarray[Any, np.dtype[np.float64]]) -> Float:
    """`values` float32 [A] with the arm pushed along `direction` [A] in [-1, 1], within the range; not the gripper."""
    result = values.copy()
    for group in spec.groups:
        part = spec.slices[group.name]
        result[part] = _pushed_group(group, values[part], direction[part])
    return spec.clamp(result)[0]


def _pushed_group(group: Group, values: Float, direction: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    reach = np.array([_half_range(low, high) for low, high in zip(group.low, group.high, strict=True)])
    if group.kind in ("delta", "velocity"):
        return direction * reach * (1.0 if group.rotation is None else _ROTATION_SHARE)
    if group.kind == "absolute" and group.rotation is None:
        return values + direction * (_OFFSET_METRES if group.units == "m" else 2 * reach * _OFFSET_SHARE)
    return values


def _half_range(low: float, high: float) -> float:
    return (high - low) / 2 if np.isfinite(high - low) else 1.0


def _with_binary(spec: ActionSpec, values: Float, source: Float) -> Float:
    for group in spec.groups:
        if group.kind == "binary":
            values[spec.slices[group.name]] = source[spec.slices[group.name]]
    return values
