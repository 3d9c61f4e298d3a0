"""robosuite's offscreen renderer: opened when something is looked at, and kept while what it was given stays the same.

Opening one gives every mesh and texture to OpenGL, which takes half a second; a reset that builds the model anew,
because sizes of objects are drawn with it, changes none of them.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from envs.culling import only_what_is_seen
from vla_runtime.types import CameraSpec, Image

# Of a model, all that `mjr_makeContext` reads: names of arrays begin so.
_GIVEN = ("mesh_", "tex_", "mat_", "hfield_", "skin_", "flex_")


class Computed:
    """A robosuite MjSim whose `forward` is already done; the controller and a new renderer ask for it once more."""

    def __init__(self, sim: Any):
        self._sim = sim

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sim, name)

    def forward(self) -> None:
        """Nothing: mj_step1 has just computed all that is read."""


class Renderer:
    """The renderer of one environment, whatever becomes of its simulation."""

    def __init__(self) -> None:
        self._kept: Any = None

    def draw(self, sim: Any, camera: CameraSpec) -> Image:
        """What a camera of a robosuite MjSim shows now: uint8 [height, width, 3], OpenGL's first row the bottom one."""
        context = sim._render_context_offscreen or self._open(sim)
        # Two environments in one process have a context each, and robosuite draws into whichever is current.
        context.gl_ctx.make_current()
        model, data, groups = sim.model._model, sim.data._data, context.vopt.geomgroup > 0
        index = sim.model.camera_name2id(camera.name)
        with only_what_is_seen(model, data, index, camera.width / camera.height, groups):
            image: Image = sim.render(width=camera.width, height=camera.height, camera_name=camera.name)
        return image

    def keep(self, sim: Any) -> None:
        """Take the renderer from a simulation that is about to end."""
        # None: a reset failed between the end of one and the beginning of the next.
        if sim is not None and sim._render_context_offscreen is not None:
            self._kept, sim._render_context_offscreen = sim._render_context_offscreen, None

    def close(self, sim: Any) -> None:
        """Free it; the simulation has none any more."""
        self.keep(sim)
        if self._kept is not None:
            self._kept.gl_ctx.make_current()  # else what is freed belongs to another environment
        self._kept = None

    def _open(self, sim: Any) -> Any:
        from robosuite.utils.binding_utils import MjRenderContextOffscreen

        kept = self._kept
        if kept is not None and same_given(kept.model._model, sim.model._model):
            kept.sim, kept.model, kept.data = Computed(sim), sim.model, sim.data
            kept.scn = mujoco.MjvScene(sim.model._model, maxgeom=1000)
            sim.add_render_context(kept)
            self._kept = None
            return kept
        del kept
        self.close(sim)
        # A new context runs `sim.forward`, which would refresh derived state that the physics has not
        # reached yet; looking must change nothing, so it is given a simulation that is computed already.
        context = MjRenderContextOffscreen(Computed(sim), device_id=-1)
        context.vopt.geomgroup[0] = 0
        context.vopt.geomgroup[1] = 1
        return context


def same_given(one: Any, other: Any) -> bool:
    """Whether two MuJoCo models give a renderer the same: meshes, textures, materials, planes and how it draws."""
    if repr(one.vis) != repr(other.vis) or one.stat.extent != other.stat.extent:
        return False
    # Planes are cut to their size.
    planes = [np.flatnonzero(model.geom_type == int(mujoco.mjtGeom.mjGEOM_PLANE)) for model in (one, other)]
    pairs = [tuple(planes)]
    for name in ("geom_size", "geom_matid"):
        pairs.append((getattr(one, name)[planes[0]], getattr(other, name)[planes[1]]))
    pairs += [(getattr(one, name), getattr(other, name)) for name in dir(one) if name.startswith(_GIVEN)]
    # By their bytes: unused places hold NaN.
    return all(first.shape == second.shape and first.tobytes() == second.tobytes() for first, second in pairs)
