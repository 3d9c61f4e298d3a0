"""One task's raw LIBERO environment, kept while episodes of that task follow each other, and put back exactly.

A hard reset of the raw environment parses and compiles the scene anew (about 2 s) into a model that is the
same every time, except for the fixtures' poses, which are drawn afterwards. So the compiled model is kept:
`begin` puts back the arrays an episode may change and reruns the part of the reset that draws, with the same
calls in the same order, so that a kept scene, a fresh one and the raw environment after
`seed(s); reset(); set_init_state(state)` agree in every bit. Who calls seeds numpy's global generator.
It knows no instruction and no verdict.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.libero_premise import Placement, placements

# LIBERO's dummy action: no motion, gripper open.
SETTLING_ACTION = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)
SETTLING_STEPS = 10

# What a reset or an episode writes into the model; everything else in it stays as compiled.
_CHANGED_ARRAYS = ("body_pos", "body_quat", "site_rgba")

# LIBERO draws each object up to 5000 times before it gives up on the scene; crowded ones need a few more.
_MAX_DRAWS = 50


def build(bddl_file: Path) -> Any:
    """The raw environment of one task, without camera observables or a renderer: cameras are drawn on demand."""
    from libero.libero.envs.env_wrapper import ControlEnv
    from robosuite.utils.errors import RandomizationError

    for _ in range(_MAX_DRAWS):
        try:
            with redirect_stdout(sys.stderr):
                return ControlEnv(
                    bddl_file_name=str(bddl_file), use_camera_obs=False, has_offscreen_renderer=False, ignore_done=True
                ).env
        except RandomizationError:  # it draws a scene when built, too
            continue
    raise RuntimeError(f"{bddl_file.name}: LIBERO's samplers found no placement in {_MAX_DRAWS} builds")


class Scene:
    """A built raw environment and what it takes to begin an episode in it."""

    def __init__(self, bddl_file: Path, widen: float = 0.0):
        raw = build(bddl_file)
        # The raw environment appends its joint initialisers to this list when it is built and again at every
        # hard reset, and so draws more at each. Published runs begin after one reset: the list is frozen there.
        raw.object_property_initializers *= 2
        if widen:
            _widen(raw, widen)
        raw._destroy_sim()  # first, so that never two compiled models are in memory
        raw._initialize_sim()
        self.raw = raw
        self._compiled = {name: np.copy(getattr(raw.sim.model._model, name)) for name in _CHANGED_ARRAYS}

    def begin(self, state: NDArray[np.float64] | None) -> dict[str, Placement]:
        """Draw fixtures and placements anew; then go to the stored `state` (time, qpos, qvel) unless it is None.

        Returns the placements as drawn.
        """
        self._draw()
        raw = self.raw
        placed = placements(raw)
        if state is not None:
            raw.sim.set_state_from_flattened(state)
            raw.sim.forward()
            raw._check_success()
        raw._post_process()
        return placed

    def _draw(self) -> None:
        """The reset of the raw environment; repeated, as there, when LIBERO's samplers find no placement."""
        from robosuite.utils.errors import RandomizationError

        for _ in range(_MAX_DRAWS):
            try:
                self._draw_once()
            except RandomizationError:
                continue
            return
        raise RuntimeError(f"LIBERO's samplers found no placement in {_MAX_DRAWS} draws; lower env.widen")

    def _draw_once(self) -> None:
        raw = self.raw
        model = raw.sim.model._model
        for name, array in self._compiled.items():
            np.copyto(getattr(model, name), array)
        raw.sim.reset()
        raw.sim.forward()
        for robot in raw.robots:
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        raw._reset_internal()
        raw.sim.forward()
        raw.visualize(vis_settings=dict.fromkeys(raw._visualizations, False))


def _widen(raw: Any, widen: float) -> None:
    """Let movable objects be placed up to `widen` metres outside the regions of the task, to every side."""
    for sampler in raw.placement_initializer.samplers.values():
        if any(thing.name in raw.fixtures_dict for thing in sampler.mujoco_objects):
            continue
        for axis in ("x_ranges", "y_ranges"):
            ranges = getattr(sampler, axis)
            setattr(sampler, axis, [[low - widen, high + widen] for low, high in ranges])
