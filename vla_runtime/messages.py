"""Values of the line as plain maps, for recordings and for the wire, and back.

Arrays stay arrays: `vla_runtime.wire` turns them into bytes. What is read is checked by the specs of whoever reads it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image as Pictures

from vla_runtime.contract import Contract
from vla_runtime.pictures import decode_picture
from vla_runtime.spline import SplineCurve
from vla_runtime.types import ActionChunk, CameraSpec, EnvSpec, Image, Observation, PolicySpec

# How an image may travel: as it is, as PNG without loss, or as JPEG, which is smaller and not the same.
ENCODINGS = ("raw", "png", "jpeg")
_QUALITY = 95


def chunk_document(chunk: ActionChunk) -> dict[str, Any]:
    """A chunk; `read_chunk` is the inverse."""
    curve = chunk.curve
    return {
        "actions": chunk.actions,
        "start": chunk.start,
        "period": chunk.period,
        "observed": chunk.observed,
        "facts": dict(chunk.facts),
        "curved": list(chunk.curved),
        "curve": None
        if curve is None
        else {"points": curve.points, "degree": curve.degree, "duration": curve.duration},
    }


def read_chunk(document: Mapping[str, Any]) -> ActionChunk:
    """The inverse of `chunk_document`. ValueError for a document that is none."""
    try:
        curve = document["curve"]
        given = {name: document[name] for name in ("actions", "start", "period", "observed", "facts")}
        return ActionChunk(
            **given, curved=tuple(document["curved"]), curve=None if curve is None else SplineCurve(**curve)
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"chunk: expected a message with a chunk, got {type(error).__name__}: {error}") from error


def observation_document(observation: Observation, encoding: str = "raw") -> dict[str, Any]:
    """An observation, its images encoded; `read_observation` is the inverse, but for what JPEG loses."""
    return {
        "state": observation.state,
        "images": {name: encode_image(image, encoding) for name, image in observation.images.items()},
        "instruction": observation.instruction,
        "time": observation.time,
        "image_times": dict(observation.image_times),
    }


def read_observation(document: Mapping[str, Any], cameras: Sequence[CameraSpec] | None = None) -> Observation:
    """The inverse of `observation_document`. ValueError for a document that is none.

    cameras: where given, theirs alone, and pictures of another size are not decoded at all.
    """
    shapes = None if cameras is None else {camera.name: camera.shape for camera in cameras}
    try:
        images = {
            str(name): decode_image(image, None if shapes is None else shapes[str(name)])
            for name, image in document["images"].items()
            if shapes is None or str(name) in shapes
        }
        given = {name: document[name] for name in ("state", "instruction", "time", "image_times")}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            "observation: expected state, images, instruction, time and image_times, "
            f"got {type(error).__name__}: {error}"
        ) from error
    return Observation(images=images, **given)


def encode_image(image: Image, encoding: str) -> Image | dict[str, bytes]:
    """uint8 [H, W, 3] as it is, or {encoding: bytes}. ValueError for an unknown encoding."""
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding: expected one of {', '.join(ENCODINGS)}, got {encoding!r}")
    if encoding == "raw":
        return image
    buffer = io.BytesIO()
    # Little time rather than little space: a loop waits for it.
    options: dict[str, Any] = {"compress_level": 1} if encoding == "png" else {"quality": _QUALITY}
    Pictures.fromarray(image).save(buffer, encoding.upper(), **options)
    return {encoding: buffer.getvalue()}


def decode_image(value: Any, shape: tuple[int, int, int] | None = None) -> Image:
    """The inverse of `encode_image`. ValueError for what is no image, or none of `shape`, where that is given."""
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in ENCODINGS[1:]:
        raise ValueError(f"image: expected an array, or png or jpeg bytes by their name, got {type(value).__name__}")
    ((encoding, data),) = value.items()
    try:
        return decode_picture(data, [encoding.upper()], shape)
    except ValueError as error:
        raise ValueError(f"image: {error}") from error


def env_document(spec: EnvSpec) -> dict[str, Any]:
    """An environment's spec; `read_env` is the inverse."""
    return {
        "contract": Contract.of(spec).document(),
        "name": spec.name,
        "period": spec.period,
        "tasks": list(spec.tasks),
        "max_steps": spec.max_steps,
    }


def read_env(document: Mapping[str, Any]) -> EnvSpec:
    """The inverse of `env_document`."""
    rest = {name: value for name, value in document.items() if name != "contract"}
    contract = Contract.read(document["contract"])
    return EnvSpec(
        cameras=contract.cameras,
        state=contract.state,
        action=contract.action,
        **{**rest, "tasks": tuple(rest["tasks"])},
    )


def policy_document(spec: PolicySpec) -> dict[str, Any]:
    """A policy's spec; `read_policy` is the inverse."""
    return {
        "contract": Contract.of(spec).document(),
        "name": spec.name,
        "period": spec.period,
        "observation_offsets": list(spec.observation_offsets),
        "max_committed": spec.max_committed,
        "seen": sorted(spec.seen),
        "executed": spec.executed,
        "weights": spec.weights,
        "decode": dict(spec.decode),
        "curves": spec.curves,
        "pins": spec.pins,
    }


def read_policy(document: Mapping[str, Any]) -> PolicySpec:
    """The inverse of `policy_document`. SpecMismatch for a contract of another version, ValueError for no document."""
    contract = Contract.read(document["contract"])
    if contract.horizon is None:
        raise ValueError("contract of a policy: expected a horizon, got none")
    rest = {name: value for name, value in document.items() if name != "contract"}
    rest["observation_offsets"] = tuple(rest["observation_offsets"])
    rest["seen"] = frozenset(rest["seen"])
    return PolicySpec(
        cameras=contract.cameras,
        state=contract.state,
        action=contract.action,
        horizon=contract.horizon,
        statistics=contract.statistics,
        **rest,
    )
