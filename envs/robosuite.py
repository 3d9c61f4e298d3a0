"""robosuite 1.4's single-arm tasks as environments: any of them by name, under OSC_POSE at 20 Hz.

It stands at both ends of the line: `observe` and `apply`. The contract, the physics of a control period
and rendering are `envs.osc_arm`'s; what a task means is in `envs.robosuite_tasks`. It knows no policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from envs.mujoco_range import require_supported_mujoco
from envs.osc_arm import DELTA, OscArm, numpy_seeded
from envs.robosuite_tasks import INSTRUCTIONS, check_robot, check_task, progress, widen_placement
from vla_runtime.interfaces import Policy
from vla_runtime.types import Outcome

# Substeps a second of robosuite 1.4.
_PHYSICS_HZ = 500
CAMERAS: Mapping[str, Sequence[int]] = {"agentview": (128, 128), "robot0_eye_in_hand": (128, 128)}


class Robosuite(OscArm):
    """One robosuite task.

    task_class: robosuite's name of it. cameras: {name in the model: [height, width]}. instruction: the text
    of observations, by default the task's own. widen: metres by which the region where objects start grows
    on every side. dead_band: see `OscArm`. The hand is always the Panda's, whose two fingers the state
    describes; robot: the arm that carries it. rate_hz: of control; max_steps are periods at 20 Hz.
    allow_mujoco: accept a MuJoCo outside the supported range.
    """

    # Whether loop.rate may choose how often commands come.
    takes_rate = True

    def __init__(
        self,
        *,
        task_class: str,
        name: str | None = None,
        instruction: str | None = None,
        robot: str = "Panda",
        control: str | None = None,
        cameras: Mapping[str, Sequence[int]] = CAMERAS,
        max_steps: int = 200,
        widen: float = 0.0,
        dead_band: float = 0.0,
        allow_mujoco: bool = False,
        rate_hz: float = 20.0,
    ):
        check_task(task_class)
        if not 0 < rate_hz <= _PHYSICS_HZ or _PHYSICS_HZ % rate_hz or rate_hz != int(rate_hz):
            raise ValueError(
                f"loop.rate: expected a whole part of the physics' {_PHYSICS_HZ} Hz, as 20, 100 or 250, got {rate_hz}"
            )
        if control in (None, DELTA) and rate_hz != 20.0:
            raise ValueError(
                f"loop.rate: expected env.control=absolute, got delta at {rate_hz} Hz; increments mean their own period"
            )
        self._facts = require_supported_mujoco(allow_mujoco)
        versions = _versions()
        super().__init__(
            name=name or task_class.lower(),
            tasks=(instruction or INSTRUCTIONS[task_class],),
            max_steps=round(max_steps * rate_hz / 20.0),
            cameras=cameras,
            control=control,
            dead_band=dead_band,
            versions=versions,
            rate_hz=rate_hz,
        )
        self._instruction = self._spec.tasks[0]
        self._raw = _build(task_class, robot, self.control, rate_hz=round(1.0 / self._spec.period))
        widen_placement(self._raw, widen)
        self._check_cameras()

    def reset(self, seed: int, task: int, episode: int) -> Mapping[str, object]:
        if task != 0:
            raise ValueError(f"task: expected 0, the only task of {self._spec.name}, got {task}")
        # A hard reset builds the model anew: sizes of objects are drawn with it, and neither the gripper's
        # ramp nor the controller's goal outlives it. It takes a fifth of a second.
        self._renderer.keep(self._raw.sim)
        with numpy_seeded(seed, task, episode):
            self._raw.reset()
        self._tick = 0
        return {"initial_state": self.state_hash(), **self._facts}

    def outcome(self) -> Outcome | None:
        return Outcome(True, "success", 1.0) if self._raw._check_success() else None

    def progress(self) -> float | None:
        """How far the task is, in [0, 1]; None for a task without a measure."""
        return progress(self._raw)

    def expert(self, seed: int, style: str = "uni") -> Policy:
        from envs.experts.robosuite import expert_for

        return expert_for(self, seed, style)


def _build(task_class: str, robot: str, control: str, rate_hz: int) -> Any:
    """The raw environment, without cameras of its own: `OscArm` renders when asked."""
    import robosuite

    check_robot(robot)
    controller = robosuite.load_controller_config(default_controller="OSC_POSE")
    controller["control_delta"] = control == DELTA
    # What the constructor draws is replaced by the first reset; seeded only to leave the caller's generator alone.
    with numpy_seeded(0):
        return robosuite.make(
            task_class,
            robots=robot,
            gripper_types="PandaGripper",
            controller_configs=controller,
            control_freq=rate_hz,
            use_camera_obs=False,
            has_offscreen_renderer=False,
            ignore_done=True,
            hard_reset=True,
        )


def _versions() -> Mapping[str, str]:
    import mujoco
    import robosuite

    return {"robosuite": robosuite.__version__, "mujoco": mujoco.__version__, "numpy": np.__version__}
