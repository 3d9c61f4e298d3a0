"""What a run needs to go on where it was: written beside its checkpoint's folder, read back or refused.

It knows tensors and settings as values, and not what is trained.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_runtime.disk import replacing, through_python

_KEYS = {"settings", "learner", "optimiser", "average", "losses", "validations"}


@dataclass(slots=True, eq=False)
class Progress:
    """What a run reports: losses of every step, and each validation as {step, l1, ...}."""

    losses: list[float]
    validations: list[dict[str, float]]


def state_path(folder: Path) -> Path:
    """Where the state lies: beside the checkpoint, which is replaced as a whole and travels without it."""
    return folder.with_name(f"{folder.name}.training.pt")


def require_state(folder: Path) -> None:
    """ValueError where a run in `folder` has left no state to go on from."""
    if not state_path(folder).is_file():
        raise ValueError(
            f"resume: expected the training state {state_path(folder)}, got no such file; {_other_way(folder)}"
        )


def save(
    folder: Path,
    learner: nn.Module,
    optimiser: Any,
    average: dict[str, Tensor],
    progress: Progress,
    settings: Mapping[str, Any],
) -> None:
    """Write the state of a run: whole, or the old one stays. OSError of the disk."""
    state = {
        "settings": settings,
        "learner": learner.state_dict(),
        "optimiser": optimiser.state_dict(),
        "average": average,
        "losses": progress.losses,
        "validations": progress.validations,
    }
    with replacing(state_path(folder)) as part, through_python(part) as file:
        torch.save(state, file)


def restore(
    folder: Path,
    learner: nn.Module,
    optimiser: Any,
    average: dict[str, Tensor],
    progress: Progress,
    settings: Mapping[str, Any],
) -> None:
    """Put a saved state into what is given. ValueError for one that is missing, unreadable or of other settings."""
    require_state(folder)
    path = state_path(folder)
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        # Not in torch's words, which advise to run code that a file may hold.
        raise ValueError(
            f"resume: expected the training state {path} as finetune saves it, got a file that cannot be read as one "
            f"({type(error).__name__}): cut short, or of something else; {_other_way(folder)}"
        ) from error
    if not isinstance(state, dict) or state.keys() != _KEYS:
        got = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"resume: expected {sorted(_KEYS)} in {path}, got {got}; {_other_way(folder)}")
    if state["settings"] != settings:
        raise ValueError(f"resume: expected the settings of {path}, got: {differing(state['settings'], settings)}")
    learner.load_state_dict(state["learner"])
    optimiser.load_state_dict(state["optimiser"])
    average.update(state["average"])
    progress.losses[:] = state["losses"]
    progress.validations[:] = state["validations"]


def differing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """Every value that two trees of settings do not share, in words."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found.append(differing(one, other, f"{prefix}{key}."))
        elif one != other:
            found.append(f"{prefix}{key} was {one!r}, is {other!r}")
    return ", ".join(text for text in found if text)


def _other_way(folder: Path) -> str:
    if not folder.is_dir():
        return f"begin with out={folder} instead of resume="
    return f"begin with another out=, and from the weights that were kept with init.folder={folder} init.parts=all"
