"""Whether a question fits the policy that it is for, checked before anything is computed with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_runtime.types import Observation, PolicySpec, SpecMismatch


def check_observations(spec: PolicySpec, observations: Sequence[Observation]) -> None:
    """SpecMismatch, naming what is wrong, unless there is one observation for each offset, oldest first, with a valid
    state, a valid image of each camera, an instruction and times.
    """
    wanted = spec.observation_offsets
    if len(observations) != len(wanted):
        raise SpecMismatch(
            f"observations: expected {len(wanted)}, one for each of the periods {list(wanted)} before now, "
            f"got {len(observations)}"
        )
    for observation in observations:
        spec.state.validate(observation.state)
        for camera in spec.cameras:
            if camera.name not in observation.images:
                raise SpecMismatch(f"camera {camera.name!r}: expected an image, got {sorted(observation.images)}")
            camera.validate(observation.images[camera.name])
        if not isinstance(observation.instruction, str):
            raise SpecMismatch(
                f"observation: expected an instruction as text, got {type(observation.instruction).__name__}"
            )
        _check_seconds("time", observation.time)
        if not isinstance(observation.image_times, Mapping):
            raise SpecMismatch(
                f"observation: expected image_times as a map, got {type(observation.image_times).__name__}"
            )
        for name, time in observation.image_times.items():
            _check_seconds(f"image_times[{name!r}]", time)


def check_committed(spec: PolicySpec, rows: Any) -> None:
    """SpecMismatch, naming the dimension, unless `rows` is None or finite floats [c, A], c at most max_committed."""
    if rows is None:
        return
    size = spec.action.size
    if not isinstance(rows, np.ndarray) or rows.dtype.kind != "f" or rows.ndim != 2 or rows.shape[1] != size:
        got = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise SpecMismatch(f"committed: expected float32 [c, {size}] ({', '.join(spec.action.names)}), got {got}")
    if len(rows) > spec.max_committed:
        raise SpecMismatch(f"committed: expected at most {spec.max_committed} rows, got {len(rows)}")
    wrong = np.argwhere(~np.isfinite(rows))
    if len(wrong):
        row, dimension = wrong[0]
        raise SpecMismatch(
            f"committed: expected finite values, got {rows[row, dimension]} in row {row}, dimension {dimension} "
            f"({spec.action.names[dimension]})"
        )


def _check_seconds(what: str, value: object) -> None:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not math.isfinite(value):  # type: ignore[arg-type]
        got = value if number else type(value).__name__
        raise SpecMismatch(f"observation: expected {what} in seconds, got {got}")
