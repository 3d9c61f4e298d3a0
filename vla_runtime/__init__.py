"""A robot-control policy runtime: camera frames and an instruction in, a robot command out, on time.

Importing this package loads numpy and nothing heavier.
"""

from vla_runtime.types import (
    ActionChunk,
    ActionSpec,
    CameraSpec,
    Command,
    EnvSpec,
    Group,
    Observation,
    Outcome,
    PolicySpec,
    SpecMismatch,
    StateSpec,
    UnsupportedTask,
)

__version__ = "0.1.0"

__all__ = [
    "ActionChunk",
    "ActionSpec",
    "CameraSpec",
    "Command",
    "EnvSpec",
    "Group",
    "Observation",
    "Outcome",
    "PolicySpec",
    "SpecMismatch",
    "StateSpec",
    "UnsupportedTask",
    "__version__",
]
