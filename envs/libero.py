"""LIBERO's five suites (130 tasks) as environments, with the protocol that published numbers use as default.

Episode i of a task begins in its stored state i mod 50, whatever the seed; 10 settling steps with the gripper
open follow; success is the environment's own. Images are upright and, as in the published data, mirrored.
This file knows the suites and judges episodes; the arm is `envs.osc_arm`, resets are `envs.libero_scene`,
premises are `envs.libero_premise`.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.libero_assets import assets_hash, import_libero, use_assets
from envs.libero_premise import broken_premises
from envs.libero_scene import SETTLING_ACTION, SETTLING_STEPS, Scene
from envs.mujoco_range import require_supported_mujoco
from envs.osc_arm import DELTA, OscArm, numpy_seeded
from vla_runtime.interfaces import Policy
from vla_runtime.types import Image, Outcome

# Control periods an episode may take, as in the published evaluations.
MAX_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
CAMERAS: Mapping[str, Sequence[int]] = {"agentview": (256, 256), "robot0_eye_in_hand": (256, 256)}

# Names in an episode's row, and the distributions behind them.
_PACKAGES = {"libero": "hf-libero", "robosuite": "robosuite", "mujoco": "mujoco", "bddl": "bddl", "numpy": "numpy"}

# Sampled states are for data; seeds below this one belong to evaluation.
FIRST_SAMPLED_SEED = 10000
# A task's own samplers leave an object fallen in a few draws of a hundred; this many in a row are a fault.
_MAX_DRAWS = 50


class Libero(OscArm):
    """One LIBERO suite.

    suite: one of MAX_STEPS. control: "delta" (also None) is the published protocol, "absolute" the same controller with
    goals instead of increments. initial: "stored" states, or "sampled" from the task's own regions (for
    collecting; seeds from 10000 on), then `widen` metres around them. assets: folder of scene files; default
    $VLA_LIBERO_ASSETS, else hf-libero's own. allow_mujoco: accept a release outside the supported range.
    """

    def __init__(
        self,
        suite: str,
        *,
        control: str | None = None,
        initial: str = "stored",
        widen: float = 0.0,
        cameras: Mapping[str, Sequence[int]] = CAMERAS,
        dead_band: float = 0.0,
        assets: str | None = None,
        allow_mujoco: bool = False,
    ):
        if suite not in MAX_STEPS:
            raise ValueError(f"env.suite: expected one of {list(MAX_STEPS)}, got {suite!r}")
        if initial not in ("stored", "sampled"):
            raise ValueError(f"env.initial: expected stored or sampled, got {initial!r}")
        if not 0.0 <= widen <= 0.2:
            raise ValueError(f"env.widen: expected metres in [0, 0.2], got {widen!r}")
        if widen and initial != "sampled":
            raise ValueError(f"env.widen: expected 0 with env.initial=stored, got {widen!r}; set env.initial=sampled")
        self._facts = require_supported_mujoco(allow_mujoco)
        self._assets = use_assets(assets)
        self._tasks = _tasks(suite)
        self._initial = initial
        self._widen = float(widen)
        self._scene: Scene | None = None
        self._task = -1
        self._stored: NDArray[np.float64] | None = None
        self._success = False
        versions = {name: version(package) for name, package in _PACKAGES.items()}
        super().__init__(
            name=suite,
            tasks=_task_names(self._tasks),
            max_steps=MAX_STEPS[suite],
            cameras=cameras,
            control=control,
            dead_band=dead_band,
            versions={**versions, "libero_assets": assets_hash(self._assets)},
        )

    def reset(self, seed: int, task: int, episode: int) -> Mapping[str, object]:
        """Begin an episode. Facts: initial_state, init_index, initial, premise, premise_broken.

        initial_state is the hash of what the settling steps start from, fixture poses included.
        """
        if not 0 <= task < len(self._tasks):
            raise ValueError(f"task: expected 0 to {len(self._tasks) - 1} in {self._spec.name}, got {task}")
        if self._initial == "sampled" and seed < FIRST_SAMPLED_SEED:
            raise ValueError(
                f"seed: expected at least {FIRST_SAMPLED_SEED} with env.initial=sampled, got {seed}; "
                "lower seeds are kept for evaluation"
            )
        self._enter(task)
        if self._initial == "stored":
            index: int | None = episode % len(self._stored_states())
            initial_state, broken = self._begin((seed, task, episode), self._stored_states()[index])
        else:
            index = None
            initial_state, broken = self._begin_sampled(seed, task, episode)
        return {
            "initial_state": initial_state,
            "init_index": index,
            "initial": self._initial,
            "premise": not broken,
            "premise_broken": broken,
            **({"widen": self._widen} if self._widen else {}),
            **self._facts,
        }

    def outcome(self) -> Outcome | None:
        return Outcome(success=True, reason="success", progress=1.0) if self._success else None

    def progress(self) -> float:
        """Share of the goal's predicates that hold now, 0 to 1."""
        goal = self._raw.parsed_problem["goal_state"]
        return sum(bool(self._raw._eval_predicate(state)) for state in goal) / len(goal)

    def expert(self, seed: int, style: str = "uni") -> Policy:
        from envs.experts.libero import LiberoExpert

        return LiberoExpert(self, style, seed=seed)

    def close(self) -> None:
        super().close()
        self._scene = None
        self._task = -1

    def task_file(self, task: int) -> Path:
        """The BDDL file that states the task, for building the raw environment of it."""
        return self._tasks[task].bddl_file

    def stored_states(self, task: int) -> NDArray[np.float64]:
        """The task's stored initial states, float64 [50, 1 + nq + nv]: time, qpos, qvel."""
        import torch

        # Pickles of numpy arrays that ship inside the wheel, hence weights_only=False.
        states = torch.load(self._tasks[task].states_file, weights_only=False)
        return np.asarray(states, np.float64)

    def _enter(self, task: int) -> None:
        if task != self._task:
            self.close()
            use_assets(str(self._assets))  # one setting in hf-libero for the process; another environment may differ
            # Building draws from the generator as well; what it draws is drawn again when an episode begins.
            with numpy_seeded(task):
                self._scene = Scene(self.task_file(task), self._widen)
            self._task = task
            self._raw = self._scene.raw
            self._stored = None
            self._check_cameras()
        self._instruction = self._tasks[task].language

    def _stored_states(self) -> NDArray[np.float64]:
        if self._stored is None:
            self._stored = self.stored_states(self._task)
        return self._stored

    def _begin(self, key: tuple[int, ...], state: NDArray[np.float64] | None) -> tuple[str, list[str]]:
        assert self._scene is not None
        with numpy_seeded(*key):
            placed = self._scene.begin(state)
        initial_state = self.state_hash()
        controller = self._raw.robots[0].controller
        # Settling is the published one under either control, so that both start from the same state.
        for _ in range(SETTLING_STEPS):
            self._control_period(SETTLING_ACTION)
        controller.use_delta = self.control == DELTA
        self._tick = 0
        return initial_state, broken_premises(self._raw, placed, self._widen)

    def _begin_sampled(self, seed: int, task: int, episode: int) -> tuple[str, list[str]]:
        broken: list[str] = []
        for draw in range(_MAX_DRAWS):
            initial_state, broken = self._begin((seed, task, episode, draw), None)
            if not broken and not self._success:
                return initial_state, broken
        raise RuntimeError(
            f"{self._spec.name} task {task}, seed {seed}, episode {episode}: no intact placement in {_MAX_DRAWS} draws "
            f"({'; '.join(broken) or 'the goal held at the start'}); lower env.widen (now {self._widen})"
        )

    def _control_period(self, action: NDArray[Any]) -> None:
        super()._control_period(action)
        # As the raw step does: first what objects show (a stove's flame), then the verdict.
        self._raw._post_process()
        self._success = bool(self._raw._check_success())

    def _upright(self, image: Image) -> Image:
        # Published data and policies hold OpenGL's bottom-up rows turned by 180 degrees. That is upright, but
        # left and right are exchanged: print on a box reads backwards, as it does in theirs.
        return image[::-1, ::-1]


class _Task:
    """Where one task's files are, and what it is called."""

    def __init__(self, task: Any, package: Path):
        self.name: str = task.name
        self.language: str = task.language
        self.bddl_file: Path = package / "bddl_files" / task.problem_folder / task.bddl_file
        self.states_file: Path = package / "init_files" / task.problem_folder / task.init_states_file


def _tasks(suite: str) -> list[_Task]:
    """The tasks of a suite in the benchmark's order."""
    package = Path(import_libero().__file__).parent
    with redirect_stdout(sys.stderr):  # it reports the order there; stdout belongs to the command
        benchmark = import_module("libero.libero.benchmark").get_benchmark(suite)()
    return [_Task(task, package) for task in benchmark.tasks]


def _task_names(tasks: Sequence[_Task]) -> tuple[str, ...]:
    """The instructions; where scenes share one, each with its scene, as in "turn on the stove (KITCHEN_SCENE3)"."""
    counts = Counter(task.language for task in tasks)
    names = []
    for task in tasks:
        scene = re.match(r"[A-Z_]+SCENE\d+", task.name)
        shared = counts[task.language] > 1 and scene is not None
        names.append(f"{task.language} ({scene.group()})" if shared and scene else task.language)
    assert len(set(names)) == len(names)
    return tuple(names)
