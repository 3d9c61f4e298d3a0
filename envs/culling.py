"""Geoms of which no pixel of an image can show anything are left out of it; the image is the same, bit for bit.

A software renderer transforms every vertex of every mesh, whatever the camera looks at, and once more for each mirror
(robosuite's floor is one). Two tests, on boxes around geoms, say "hidden" only where it is so: outside the camera's
frustum, or wholly behind the upper face of an opaque box, as what lies below a table is. A geom is left out where
both it and its images in all mirrors that are seen are hidden. Where a light casts shadows nothing is left out: what
is not seen may still throw one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

# No viewer of ours draws this group.
_UNDRAWN = 5
# Share of a box around a geom, and metres: what lies just outside is drawn anyhow.
_SHARE, _MARGIN = 1e-3, 1e-3
# Triangles of a mesh and half extents of a face, metres: below, asking costs more than drawing.
_LARGE, _WIDE = 200, 0.1
_PLANE, _BOX, _MESH = (
    int(kind) for kind in (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_MESH)
)
_CUBE = np.array(list(product((-1.0, 1.0), repeat=3)))

Doubles = NDArray[np.float64]
Mask = NDArray[np.bool_]


@contextmanager
def only_what_is_seen(model: Any, data: Any, camera: int, aspect: float, groups: Mask) -> Iterator[None]:
    """Draw an image of `camera` inside: what it cannot show is put aside, and put back.

    model, data: MuJoCo's own; aspect: width / height; groups bool [6]: which are drawn. ValueError if those put aside
    would be drawn.
    """
    if groups[_UNDRAWN]:
        raise ValueError(f"groups: expected geoms of group {_UNDRAWN} not to be drawn, got {groups.tolist()}")
    away = hidden(model, data, camera, aspect, groups)
    before = model.geom_group[away].copy()
    model.geom_group[away] = _UNDRAWN
    try:
        yield
    finally:
        model.geom_group[away] = before


def hidden(model: Any, data: Any, camera: int, aspect: float, groups: Mask) -> Mask:
    """bool [ngeom]: large meshes, and planes, that an image of `camera` shows nothing of, by what `data` holds."""
    away = np.zeros(model.ngeom, bool)
    # Neither an off-centre frustum nor a parallel one is anything that ours have.
    odd = model.cam_sensorsize[camera].any() or model.cam_orthographic[camera]
    if model.light_castshadow.any() or odd:
        return away
    drawn = groups[model.geom_group]
    large, planes = np.flatnonzero(drawn & _large(model)), drawn & (model.geom_type == _PLANE)
    view = _View(data.cam_xpos[camera], data.cam_xmat[camera].reshape(3, 3), model.cam_fovy[camera], aspect)
    faces = list(_faces(model, data, view.at, drawn))
    # Of a box around each mesh, in its own axes.
    middle, half = model.geom_aabb[large, None, :3], model.geom_aabb[large, None, 3:]
    local = middle + (half * (1 + _SHARE) + _MARGIN) * _CUBE
    corners = local @ data.geom_xmat[large].reshape(-1, 3, 3).transpose(0, 2, 1) + data.geom_xpos[large, None]

    def seen(corners: Doubles, faces: Sequence[_Face]) -> Mask:
        found = view.touches(corners)
        for face in faces:
            found &= ~face.covers(view.at, corners)
        return found

    filled = [face for face in faces if face.fills(view)]
    mirrors = _reflects(model) & drawn
    for plane in map(int, np.flatnonzero(planes)):
        # MuJoCo reflects in the first mirror alone: without it another's turn comes. And others may show this plane.
        alone = mirrors.sum() == int(mirrors[plane])
        away[plane] = alone and any(face.is_above(data, plane) for face in filled)
    kept = seen(corners, faces)
    for mirror in map(int, np.flatnonzero(mirrors & ~away)):
        normal = data.geom_xmat[mirror].reshape(3, 3)[:, 2]
        height = normal @ data.geom_xpos[mirror] + (0.0 if planes[mirror] else model.geom_size[mirror, 2])
        # A face hides what is seen in a mirror where it is nearer than the mirror.
        nearer = [face for face in faces if planes[mirror] and face.is_above(data, mirror)]
        kept |= seen(corners - 2 * (corners @ normal - height)[..., None] * normal, nearer)
    away[large] = ~kept
    return away


class _View:
    """A camera's frustum. at [3]: its place; axes [3, 3]: its x, y and z (backwards) as columns; fovy: degrees."""

    def __init__(self, at: Doubles, axes: Doubles, fovy: float, aspect: float):
        up = np.tan(np.radians(fovy) / 2)
        across = up * aspect
        out = np.array([(1, 0, across), (-1, 0, across), (0, 1, up), (0, -1, up)], np.float64)
        self.at, self._outward = at, out @ axes.T
        # Rays through the corners of the image.
        self.rays = np.array([(x * across, y * up, -1.0) for x, y in product((-1, 1), repeat=2)]) @ axes.T

    def touches(self, corners: Doubles) -> Mask:
        """bool [n]: boxes, by their corners [n, 8, 3], that no side of it keeps out."""
        outside: Any = (corners - self.at) @ self._outward.T > 0
        return np.asarray(~outside.all(axis=1).any(axis=1))


@dataclass(frozen=True, slots=True, eq=False)
class _Face:
    """The upper face of a box. centre [3]; axes [3, 3]: along it, along it, up, as columns; sizes: half extents [2]."""

    centre: Doubles
    axes: Doubles
    sizes: Doubles

    def covers(self, at: Doubles, corners: Doubles) -> Mask:
        """bool [n]: boxes, by their corners [n, 8, 3], of which nothing is seen from `at`, a place above it: they lie
        below it, and the straight lines to them go through it.
        """
        eye, low = (at - self.centre) @ self.axes, (corners - self.centre) @ self.axes
        below = low[..., 2] < 0
        share = eye[2] / (eye[2] - np.where(below, low[..., 2], -1.0))
        met = eye[:2] + share[..., None] * (low[..., :2] - eye[:2])
        covered: Mask = (below & (np.abs(met) <= self.sizes).all(axis=-1)).all(axis=1)
        return covered

    def fills(self, view: _View) -> bool:
        """Whether nothing else is seen, but for what is nearer."""
        eye, rays = (view.at - self.centre) @ self.axes, view.rays @ self.axes
        if (rays[:, 2] >= -1e-9).any():
            return False
        met = eye[:2] - eye[2] / rays[:, 2:] * rays[:, :2]
        return bool((np.abs(met) <= self.sizes).all())

    def is_above(self, data: Any, plane: int) -> bool:
        """Whether a geom that is a plane is parallel to it and lower."""
        up = self.axes[:, 2]
        parallel = abs(data.geom_xmat[plane].reshape(3, 3)[:, 2] @ up) > 1 - 1e-9
        return bool(parallel and (data.geom_xpos[plane] - self.centre) @ up < -_MARGIN)


def _faces(model: Any, data: Any, at: Doubles, drawn: Mask) -> Iterator[_Face]:
    """Upper faces of opaque boxes that are drawn, as far as the camera is above them and its near plane, too."""
    boxes = (model.geom_type == _BOX) & _opaque(model) & drawn & (model.geom_size[:, :2] >= _WIDE).all(axis=1)
    near = model.vis.map.znear * model.stat.extent
    for box in np.flatnonzero(boxes):
        axes = data.geom_xmat[box].reshape(3, 3)
        centre = data.geom_xpos[box] + model.geom_size[box, 2] * axes[:, 2]
        # A wide image's corners are further away than its near plane is.
        if (at - centre) @ axes[:, 2] > 3 * near + _MARGIN:
            yield _Face(centre, axes, model.geom_size[box, :2] - _MARGIN)


def _large(model: Any) -> Mask:
    """Meshes that are worth the question."""
    found = (model.geom_type == _MESH) & (model.geom_dataid >= 0)
    found[found] = model.mesh_facenum[model.geom_dataid[found]] >= _LARGE
    return np.asarray(found)


def _reflects(model: Any) -> Mask:
    """MuJoCo mirrors the scene in planes and in the upper faces of boxes, where their material reflects."""
    shines = np.zeros(model.ngeom, bool)
    made = model.geom_matid >= 0
    shines[made] = model.mat_reflectance[model.geom_matid[made]] > 0
    return shines & np.isin(model.geom_type, (_PLANE, _BOX))


def _opaque(model: Any) -> Mask:
    """Neither a geom's colour nor its material's lets anything through."""
    clear = model.geom_rgba[:, 3] < 1
    made = model.geom_matid >= 0
    clear[made] |= model.mat_rgba[model.geom_matid[made], 3] < 1
    return np.asarray(~clear)
