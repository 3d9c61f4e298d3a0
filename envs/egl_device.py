"""Which EGL device is drawn on, from the variables that name one.

MuJoCo reads MUJOCO_EGL_DEVICE_ID. robosuite also takes CUDA_VISIBLE_DEVICES for a list of EGL devices, which it is not:
it may be empty, -1 or a UUID, and CUDA may number other devices than EGL does. Here it is a preference only. Nothing in
this file imports a simulator.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

DEVICE = "MUJOCO_EGL_DEVICE_ID"
_CUDA = "CUDA_VISIBLE_DEVICES"


def required_device() -> int | None:
    """The index in MUJOCO_EGL_DEVICE_ID, None where it is unset or blank. ValueError for anything else."""
    text = os.environ.get(DEVICE, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{DEVICE}: expected the index of an EGL device, such as 0, got {text!r}; unset or change it")
    return int(text)


def preferred_device() -> int | None:
    """The first GPU of CUDA_VISIBLE_DEVICES, None where it names none by a number."""
    first = os.environ.get(_CUDA, "").split(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() else None


def cuda_devices_named() -> bool:
    """Whether CUDA_VISIBLE_DEVICES is set, be it to nothing."""
    return _CUDA in os.environ


@contextmanager
def cuda_devices_unnamed() -> Iterator[None]:
    """Within, CUDA_VISIBLE_DEVICES is not set: robosuite refuses its import where that does not list the EGL device."""
    value = os.environ.pop(_CUDA, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[_CUDA] = value
