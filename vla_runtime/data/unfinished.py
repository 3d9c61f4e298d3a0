"""What a collection that is not finished leaves in its folder: its parts and the settings it runs with.

Shared by the command that writes it and the reader that must refuse it; knows no environment.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_runtime.disk import plain, write_json
from vla_runtime.evaluation.folder import config_differences

PARTS = ".parts"
_SETTINGS = f"{PARTS}/settings.json"
# They change how fast a set is made, not what is in it.
_FREE = ("workers", "out", "timeout")


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the content of a set, out of a composed configuration."""
    return {key: value for key, value in plain(dict(config)).items() if key not in _FREE}


def save_settings(folder: Path, config: Mapping[str, Any], arguments: list[str]) -> None:
    """Note the configuration, and the command-line arguments that gave it, in an unfinished folder."""
    write_json(folder / _SETTINGS, {"settings": settings(config), "arguments": arguments})


def saved_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of an unfinished folder; None where there are none."""
    try:
        found: dict[str, Any] = json.loads((folder / _SETTINGS).read_text())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def resume_command(folder: Path) -> str:
    """The command line that finishes an unfinished folder."""
    try:
        arguments = list(json.loads((folder / _SETTINGS).read_text())["arguments"])
    except (OSError, ValueError, KeyError, TypeError):
        arguments = ["<the options it was started with>"]
    kept = [argument for argument in arguments if not argument.startswith("out=")]
    return shlex.join(["python", "-m", "vla_runtime.collect", *kept, f"out={folder}"])


def require_same(folder: Path, have: Mapping[str, Any], want: Mapping[str, Any]) -> None:
    """ValueError with every key that differs between the settings of the folder and those asked for."""
    lines = config_differences(dict(have), dict(want))
    if lines:
        differing = "\n  ".join(lines)
        raise ValueError(
            f"out={folder}: expected the settings it was begun with, got {len(lines)} that differ:\n  {differing}\n"
            "Repeat the options it was begun with, or choose another out="
        )
