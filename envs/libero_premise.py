"""Whether a LIBERO scene is as its task presumes: the bowl on the ramekin, the drawer closed, nothing fallen.

LIBERO's own predicates decide terms about two objects, about a region of an object and about joints. For "on a
region of the table" they compare the object's origin with the height of a zone of no thickness and are false
on intact scenes, so these terms are decided by the region's outline and by how LIBERO's own sampler holds the
thing upright. Reads the simulator and changes nothing; knows no episode and no suite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# LIBERO drops things from up to 7 cm above the table, and some roll or slide before the state was stored: over
# the stored states of the test suites intact things stay well within these. Tables are 0.4 m or higher.
_SLID = 0.10
_FALLEN = 0.15
_TILTED = np.deg2rad(30.0)

# Where the origin of a thing that rests on a site may be, seen from the site; LIBERO's own upper limit is 0.10.
_ORIGIN_BELOW = 0.02
_ORIGIN_ABOVE = 0.10

_Rectangles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where LIBERO's sampler put a thing, upright: height in metres, and world up in the thing's own axes [3]."""

    height: float
    up: NDArray[np.float64]


def placements(raw: Any) -> dict[str, Placement]:
    """The placement of every object and fixture as it is now; taken right after LIBERO has drawn them."""
    return {name: _placement(raw, name) for name in (*raw.objects_dict, *raw.fixtures_dict)}


def broken_premises(raw: Any, placed: dict[str, Placement], widen: float = 0.0) -> list[str]:
    """The terms of the task's initial condition that do not hold now, as text; empty when the scene is intact.

    widen: metres that placements were allowed outside their regions.
    """
    broken = []
    for term in raw.parsed_problem["initial_state"]:
        surface = _surface_region(raw, term)
        if surface is None:
            holds = raw._eval_predicate(term) or _rests_on_site(raw, term, placed)
            reason = None if holds else "does not hold"
        else:
            reason = _off_surface(raw, term[1], surface, placed[term[1]], widen)
        if reason is not None:
            broken.append(f"{' '.join(term)}: {reason}")
    return broken


def _surface_region(raw: Any, term: list[str]) -> _Rectangles | None:
    """The rectangles [n, 4] (low x, low y, high x, high y; metres, world) of "on <thing> <region of the table>"."""
    if len(term) != 3 or term[0] != "on" or term[2] not in raw.parsed_problem["regions"]:
        return None
    region = raw.parsed_problem["regions"][term[2]]
    target = region["target"]
    # As LIBERO decides it when placing: fixtures include the table itself in the problem, but not in this dict.
    if target in raw.objects_dict or target in raw.fixtures_dict:
        return None
    offset = np.asarray(raw.workspace_offset, np.float64)[[0, 1, 0, 1]]
    return np.asarray(region["ranges"], np.float64).reshape(-1, 4) + offset


def _off_surface(raw: Any, name: str, rectangles: _Rectangles, placed: Placement, widen: float) -> str | None:
    position = np.asarray(raw.sim.data.body_xpos[raw.obj_body_id[name]])
    outside = np.maximum(rectangles[:, :2] - position[:2], position[:2] - rectangles[:, 2:])
    fallen = placed.height - _placement(raw, name).height
    if fallen > _FALLEN:
        return f"fallen by {fallen * 100:.0f} cm"
    distance = float(np.min(np.linalg.norm(np.maximum(outside - widen, 0.0), axis=1)))
    if distance > _SLID:
        return f"{distance * 100:.0f} cm outside its region"
    tilt = _tilt(raw, name, placed)
    if tilt > _TILTED:
        return f"tilted by {np.rad2deg(tilt):.0f} degrees"
    return None


def _rests_on_site(raw: Any, term: list[str], placed: dict[str, Placement]) -> bool:
    """Whether "on <thing> <site on top of another>" holds for a thing whose origin lies below what it stands with.

    LIBERO asks for the origin above the site and a contact in this very substep; the white bowl that rests on
    the microwave (libero_90) has neither.
    """
    if term[0] != "on" or term[2] not in raw.object_sites_dict:
        return False
    site, data = raw.object_sites_dict[term[2]], raw.sim.data
    matrix = np.asarray(data.get_site_xmat(site.name))
    offset = matrix.T @ (data.body_xpos[raw.obj_body_id[term[1]]] - data.get_site_xpos(site.name))
    above = bool(np.all(np.abs(offset[:2]) < site.size[:2])) and -_ORIGIN_BELOW < offset[2] < _ORIGIN_ABOVE
    return above and _tilt(raw, term[1], placed[term[1]]) < _TILTED


def _tilt(raw: Any, name: str, placed: Placement) -> float:
    return float(np.arccos(np.clip(_placement(raw, name).up @ placed.up, -1.0, 1.0)))


def _placement(raw: Any, name: str) -> Placement:
    body = raw.obj_body_id[name]
    matrix = np.asarray(raw.sim.data.body_xmat[body]).reshape(3, 3)
    return Placement(float(raw.sim.data.body_xpos[body][2]), matrix[2].copy())
