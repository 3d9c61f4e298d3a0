"""What every robosuite 1.4 arm under OSC_POSE shares, robosuite's own tasks and LIBERO's alike.

The contract of state and action, one control period of physics, rendering on demand, and reproducible
resets. It knows no task: building the raw environment, resetting it and judging success are left to
`envs.robosuite` and `envs.libero`.

Two facts of robosuite 1.4 shape this file. Its observables are sampled at the *first* substep of a
control period, so what its `step` returns is almost one period old; here state and images are those of
the last substep, 2 ms ago. And a substep computes the same dynamics three times (`sim.forward`, again in
the controller, then `mj_step`); one `mj_step1` / `mj_step2` pair around the controller gives the same bits.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.egl_device import cuda_devices_unnamed
from envs.rendering import choose_gl
from vla_runtime.transforms import (
    absolute_from_delta,
    axis_angle_from_matrix,
    delta_from_absolute,
    matrix_from_rot6d,
    rot6d_from_matrix,
)
from vla_runtime.types import ActionSpec, CameraSpec, Command, EnvSpec, Float, Group, Image, Observation, StateSpec

choose_gl()  # MuJoCo reads MUJOCO_GL when it is imported

import mujoco  # noqa: E402

# robosuite warns about a file of macros that nobody needs; its logger takes its level from here.
logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
with cuda_devices_unnamed():
    import robosuite.utils.binding_utils  # noqa: F401

from envs.renderer import Computed, Renderer  # noqa: E402

# robosuite's OSC_POSE: an input of 1 is this much in one control period.
FULL_SCALE_POSITION = 0.05
FULL_SCALE_ROTATION = 0.5

_XYZ = ("x", "y", "z")
_R6 = ("x0", "x1", "x2", "y0", "y1", "y2")
_LOW, _HIGH = (-1.5, -1.5, 0.0), (1.5, 1.5, 2.5)
_GRIPPER = Group("gripper", ("command",), "binary", "1", (-1.0,), (1.0,), open=-1.0, close=1.0)

STATE = StateSpec(
    (
        Group("position", _XYZ, "measured", "m", _LOW, _HIGH, frame="world"),
        Group("rotation", _R6, "measured", "1", (-1.0,) * 6, (1.0,) * 6, frame="world", rotation="rot6d"),
        Group("fingers", ("left", "right"), "measured", "m", (-0.05, -0.05), (0.05, 0.05), frame="hand"),
    )
)


def delta_spec(dead_band: float = 0.0) -> ActionSpec:
    """LIBERO's published action: increments in [-1, 1], axis-angle, gripper -1 open and +1 close."""
    ones = (1.0, 1.0, 1.0)
    low = (-1.0, -1.0, -1.0)
    return ActionSpec(
        (
            Group("position", _XYZ, "delta", "1", low, ones, frame="world", full_scale=FULL_SCALE_POSITION),
            Group(
                "rotation",
                _XYZ,
                "delta",
                "1",
                low,
                ones,
                frame="world",
                rotation="axis_angle",
                full_scale=FULL_SCALE_ROTATION,
                dead_band=dead_band,
            ),
            _GRIPPER,
        )
    )


ABSOLUTE = ActionSpec(
    (
        Group("position", _XYZ, "absolute", "m", _LOW, _HIGH, frame="world"),
        Group("rotation", _R6, "absolute", "1", (-1.0,) * 6, (1.0,) * 6, frame="world", rotation="rot6d"),
        _GRIPPER,
    )
)


@contextmanager
def numpy_seeded(*key: int) -> Iterator[None]:
    """numpy's *global* generator, seeded from `key` and put back afterwards: robosuite and LIBERO draw from it."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(np.random.SeedSequence(key).generate_state(4))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


# The control of whoever asks for none.
DELTA = "delta"


class OscArm:
    """An Env over one raw robosuite environment; subclasses build it, reset it and judge its outcome.

    control: "delta" or "absolute"; None: delta. dead_band: rotation deltas with every component below it are passed on
    as an exact zero, which alone leaves the orientation goal untouched; 0 passes every action unchanged.
    """

    def __init__(
        self,
        *,
        name: str,
        tasks: tuple[str, ...],
        max_steps: int,
        cameras: Mapping[str, Sequence[int]],
        control: str | None,
        dead_band: float,
        versions: Mapping[str, str],
        rate_hz: float = 20.0,
    ):
        control = control or DELTA
        if control not in (DELTA, "absolute"):
            raise ValueError(f"env.control: expected delta or absolute, got {control!r}")
        for camera, size in cameras.items():
            if not (isinstance(size, Sequence) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
                raise ValueError(f"env.cameras.{camera}: expected [height, width] in pixels, got {size!r}")
        self.control_specs = {DELTA: delta_spec(dead_band), "absolute": ABSOLUTE}
        self.control = control
        self._dead_band = dead_band
        self._spec = EnvSpec(
            name=name,
            cameras=tuple(CameraSpec(camera, size[0], size[1]) for camera, size in cameras.items()),
            state=STATE,
            action=self.control_specs[control],
            period=1.0 / rate_hz,
            tasks=tasks,
            max_steps=max_steps,
            versions=versions,
        )
        self._cameras = {camera.name: camera for camera in self._spec.cameras}
        self._raw: Any = None
        self._renderer = Renderer()
        self._instruction = ""
        self._tick = 0

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    @property
    def raw(self) -> Any:
        """The robosuite environment underneath, for experts and tests: privileged state."""
        return self._raw

    def observe(self, cameras: Sequence[str] = ()) -> Observation:
        time = self._tick * self._spec.period
        images = {name: self._render(name) for name in cameras}
        return Observation(
            state=self._state(),
            images=images,
            instruction=self._instruction,
            time=time,
            image_times=dict.fromkeys(images, time),
        )

    def apply(self, command: Command) -> None:
        self._spec.action.validate(command.values)
        self._control_period(self._raw_action(command.values))
        self._tick += 1

    def both_controls(self, observation: Observation, values: Float) -> dict[str, Float]:
        """One action float32 [A] of this environment, said in both controls from the observed pose."""
        position, matrix = observation.state[:3], matrix_from_rot6d(observation.state[3:9])
        delta = self.control_specs["delta"]
        if self.control == DELTA:
            return {"delta": values, "absolute": absolute_from_delta(values, position, matrix, delta)}
        return {"delta": delta_from_absolute(values, position, matrix, delta), "absolute": values}

    def pose(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The hand now: position float64 [3] in metres, rotation matrix [3, 3], world frame."""
        site = self._raw.robots[0].eef_site_id
        data = self._raw.sim.data
        return np.array(data.site_xpos[site]), np.array(data.site_xmat[site]).reshape(3, 3)

    def state_hash(self) -> str:
        """Hash of everything the episode goes on from: time, qpos, qvel and the poses of all bodies of the model."""
        sim = self._raw.sim
        digest = hashlib.sha256()
        for array in (sim.get_state().flatten(), sim.model.body_pos, sim.model.body_quat):
            digest.update(np.ascontiguousarray(array, np.float64).tobytes())
        return digest.hexdigest()[:16]

    def close(self) -> None:
        if self._raw is not None:
            self._renderer.close(self._raw.sim)
            self._raw.close()
            self._raw = None

    def _check_cameras(self) -> None:
        """ValueError, with the nearest name, for a camera that the model does not have."""
        known = self._raw.sim.model.camera_names
        for camera in self._cameras:
            if camera not in known:
                nearest = get_close_matches(camera, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"env.cameras: expected some of {sorted(known)}, got {camera!r}; nearest: {nearest}")

    def _state(self) -> Float:
        position, matrix = self.pose()
        robot = self._raw.robots[0]
        fingers = self._raw.sim.data.qpos[robot._ref_gripper_joint_pos_indexes]
        return np.concatenate([position, rot6d_from_matrix(matrix), fingers]).astype(np.float32)

    def _raw_action(self, values: Float) -> NDArray[Any]:
        if self.control == DELTA:
            if self._dead_band and np.all(np.abs(values[3:6]) < self._dead_band):
                values = values.copy()
                values[3:6] = 0.0
            return values
        rotation = axis_angle_from_matrix(matrix_from_rot6d(values[3:9]))
        return np.concatenate([values[:3].astype(np.float64), rotation, values[9:].astype(np.float64)])

    def _control_period(self, action: NDArray[Any]) -> None:
        raw = self._raw
        model, data = raw.sim.model._model, raw.sim.data._data
        controller = raw.robots[0].controller
        if not isinstance(controller.sim, Computed):
            controller.sim = Computed(raw.sim)
        for substep in range(int(raw.control_timestep / raw.model_timestep)):
            self._before_substep()
            mujoco.mj_step1(model, data)
            raw._pre_action(action, substep == 0)
            mujoco.mj_step2(model, data)
        raw.timestep += 1
        raw.cur_time += raw.control_timestep

    def _before_substep(self) -> None:
        """Called before every substep; a world that moves by itself sets its velocities here."""

    def _render(self, name: str) -> Image:
        camera = self._cameras.get(name)
        if camera is None:
            raise ValueError(f"camera: expected one of {sorted(self._cameras)}, got {name!r}")
        # OpenGL's first row is the bottom one: flipped here, once, so that images are upright everywhere.
        return np.ascontiguousarray(self._upright(self._renderer.draw(self._raw.sim, camera)))

    def _upright(self, image: Image) -> Image:
        return image[::-1]
