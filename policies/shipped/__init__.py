"""Trained policies in the box: each a checkpoint folder beside this file, known by the folder's name.

It only says where they lie; `policies.checkpoint` loads them like any other folder.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The shipped policies."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/checkpoint.json"))


def folder_of(name_or_folder: str | Path) -> Path:
    """Where a checkpoint lies: the folder of a shipped policy for its bare name, else the folder itself.

    A folder of one's own that is called like a shipped policy is meant by ./name.
    """
    if isinstance(name_or_folder, str) and name_or_folder in names():
        return _FOLDER / name_or_folder
    return Path(name_or_folder)
