"""One attempt of an expert at a task, recorded from the line itself.

`Attempter` holds an environment for as long as a process lives and writes each attempt as one part. The
recorded action is what the session answered to the recorded state, after the loop's limits; what a
perturbing environment executes instead is not seen here.

An environment that speaks both controls says so by two attributes, `control_specs` ({"delta": ActionSpec,
"absolute": ActionSpec}) and `both_controls(observation, values) -> {"delta": float32 [D], "absolute":
float32 [A]}`; then `action.delta` and `action.absolute` are recorded beside `action`. Others record
`action` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_runtime.compose import build, build_env
from vla_runtime.control.clock import VirtualClock
from vla_runtime.control.loop import run
from vla_runtime.control.trace import Tick
from vla_runtime.data import schema
from vla_runtime.data.episode import Columns, Episode, write_part
from vla_runtime.data.idle import idle_rows
from vla_runtime.evaluation.episodes import begin_seed
from vla_runtime.interfaces import Env
from vla_runtime.machine import check_parent
from vla_runtime.types import ActionSpec, EnvSpec, Float, Image, Observation

Job = tuple[int, int]
BothControls = Callable[[Observation, Float], Mapping[str, Float]]


def part_name(task: int, attempt: int) -> str:
    """The folder name of an attempt; names sort as (task, attempt)."""
    return f"task-{task:03d}-attempt-{attempt:05d}"


def action_specs(env: Env) -> dict[str, ActionSpec]:
    """The ActionSpec of every action feature that `env` lets be recorded."""
    controls: Mapping[str, ActionSpec] = getattr(env, "control_specs", {})
    return {"action": env.spec.action, **{f"action.{name}": spec for name, spec in controls.items()}}


def recorded_spec(spec: EnvSpec, config: Mapping[str, Any]) -> EnvSpec:
    """An environment's spec with the cameras that `config` asks to record. ValueError for others than it has."""
    return replace(spec, cameras=schema.choose(spec.cameras, config["cameras"], spec.name))


class Recorder:
    """Collects the ticks of one episode; give it to the loop as `on_tick`.

    disturbed: whether the command that was just applied was executed otherwise than it was given.
    """

    def __init__(
        self,
        spec: EnvSpec,
        both_controls: BothControls | None = None,
        disturbed: Callable[[], bool] = lambda: False,
    ):
        self._spec, self._both, self._disturbed_now = spec, both_controls, disturbed
        self._columns: dict[str, list[Float]] = {}
        self._images: dict[str, list[Image]] = {camera.name: [] for camera in spec.cameras}
        self._shown: list[int] = []
        self._fresh: list[bool] = []
        self._disturbed: list[bool] = []
        self._num_rendered = 0

    def __call__(self, tick: Tick) -> None:
        observation, values = tick.observation, tick.command.values
        fresh = bool(self._images) and all(camera in observation.images for camera in self._images)
        if fresh:
            self._num_rendered += 1
            for camera, images in self._images.items():
                images.append(observation.images[camera])
        row = {schema.STATE: observation.state, "action": values}
        if self._both is not None:
            row |= {f"action.{name}": said for name, said in self._both(observation, values).items()}
        for name, value in row.items():
            self._columns.setdefault(name, []).append(value)
        self._shown.append(max(self._num_rendered - 1, 0))
        # An environment without cameras has nothing that could be stale.
        self._fresh.append(fresh or not self._images)
        self._disturbed.append(self._disturbed_now())

    def episode(self, facts: Mapping[str, Any]) -> Episode:
        columns: Columns = {name: np.stack(values) for name, values in self._columns.items()}
        columns[schema.FRESH] = np.array(self._fresh, bool)
        columns[schema.DISTURBED] = np.array(self._disturbed, bool)
        return Episode(facts, columns, self._images, np.array(self._shown, np.int64))


class Attempter:
    """Makes attempts with one environment. config: the composed configuration of `collect`; parts: where they go."""

    def __init__(self, config: Mapping[str, Any], parts: Path):
        self._config, self._parts = config, parts
        self.env = build_env(config["env"])
        lead = build(config["lead"]) if config["lead"]["folder"] is not None else None
        self._world: Env = build(config["perturbation"], self.env, lead) if config["recover"] else self.env
        self._both: BothControls | None = getattr(self.env, "both_controls", None)
        self._actions = action_specs(self.env)
        self._spec = recorded_spec(self.env.spec, config)

    def __call__(self, job: Job) -> dict[str, Any]:
        """Make one attempt, (task, attempt), and write it as a part; returns its facts."""
        task, attempt = job
        config, spec = self._config, self._spec
        seed = int(config["seed"])
        begin = begin_seed(seed, task, attempt)
        reset = self._world.reset(seed, task, attempt)
        expert = self._world.expert(seed, config["style"])
        recorder = Recorder(spec, self._both, lambda: bool(getattr(self._world, "disturbed", False)))
        try:
            done = run(
                self._world,
                expert.begin(begin),
                expert.spec,
                VirtualClock(self._world.observe().time),
                replan=1,
                cameras_every=int(config["image_stride"]),
                on_tick=_watched(recorder),
            )
        finally:
            expert.close()
        facts: dict[str, Any] = {
            "success": done.outcome.success,
            "reason": done.outcome.reason,
            "task": task,
            "instruction": spec.tasks[task],
            "attempt": attempt,
            "seed": seed,
            "begin_seed": begin,
            "initial_state": reset["initial_state"],
            "steps": done.steps,
            "trimmed": 0,
            "reset": {key: value for key, value in reset.items() if key != "initial_state"},
        }
        episode = None
        if done.outcome.success:
            episode = recorder.episode(facts)
            if config["trim_idle"]:
                idle = idle_rows(episode.columns, spec.state, self._actions)
                facts["trimmed"] = int(np.count_nonzero(idle))
                episode = episode.keep(~idle)
        rate = schema.frames_per_second(spec.period)
        write_part(self._parts / part_name(task, attempt), facts, episode, config["images"], rate)
        return facts

    def close(self) -> None:
        self._world.close()


def _watched(recorder: Recorder) -> Callable[[Tick], None]:
    def on_tick(tick: Tick) -> None:
        check_parent()
        recorder(tick)

    return on_tick


def start_attempter(config: Mapping[str, Any], parts: Path) -> tuple[None, Attempter]:
    """What a process of `evaluation.workers.run_jobs` begins with."""
    return None, Attempter(config, parts)
