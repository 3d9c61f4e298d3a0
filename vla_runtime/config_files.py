"""Where the YAML of commands and config groups lies, what it states, and the text of --help made from it.

It reads files and knows neither hydra nor what the options mean. Configs of other packages take part through the entry
point group `vla_runtime.configs`, whose values name packages with a `configs` folder.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml

ENTRY_POINTS = "vla_runtime.configs"

# A config that sets options of several groups begins with this line.
_GLOBAL = "# @package _global_"


def configs_folder() -> Path:
    """Where the YAML lies: inside the installed package, else beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


@cache
def plugin_folders() -> tuple[Path, ...]:
    """The `configs` folders of installed packages with the entry point; ImportError for a package without one.

    Installed packages are searched once: that takes longer than all else here.
    """
    folders = []
    for point in entry_points(group=ENTRY_POINTS):
        found = importlib.util.find_spec(point.value)
        places = list(found.submodule_search_locations or []) if found else []
        folder = Path(places[0]) / "configs" if places else None
        if folder is None or not folder.is_dir():
            raise ImportError(
                f"entry point {point.name!r} in group {ENTRY_POINTS}: expected the name of a package with a "
                f"configs folder, got {point.value!r}"
            )
        folders.append(folder)
    return tuple(folders)


def options(group: str) -> list[str]:
    """The names a config group can be set to, those of installed plug-ins included."""
    return sorted({path.stem for folder in _folders() for path in (folder / group).glob("*.yaml")})


def defaults(command: str, chosen: Mapping[str, str]) -> dict[str, Any]:
    """The values that the YAML of a command and of its groups states, as a tree; `chosen` names files by group.

    Groups that are not chosen are those of the command's own list. Interpolations stay as they are written.
    """
    tree = _read(configs_folder() / f"{command}.yaml")
    files = {key: str(name) for one in tree.pop("defaults", []) if isinstance(one, dict) for key, name in one.items()}
    for group, name in {**files, **chosen}.items():
        for folder in _folders():
            path = folder / group / f"{name}.yaml"
            if path.is_file():
                whole = path.read_text().startswith(_GLOBAL)
                _merge(tree, _with_own_defaults(path) if whole else {group: _with_own_defaults(path)})
                break
    return tree


def describe(command: str) -> str:
    """The text of --help: the command's options as its YAML states them, and what each group offers."""
    text = (configs_folder() / f"{command}.yaml").read_text()
    groups = re.findall(r"^ +- +(\w+):", text, re.M)
    lines = [f"python -m vla_runtime.{command} [option=value ...]", ""]
    lines += [line for line in text.splitlines() if not re.match(r"^(defaults:| +- )", line)]
    for group in groups:
        lines += ["", f"{group}=   one of: " + ", ".join(options(group))]
        for path in sorted(path for folder in _folders() for path in (folder / group).glob("*.yaml")):
            lines += [f"  {group}={path.stem}", *_described(path.read_text(), group)]
    return "\n".join(lines) + "\n"


def _described(text: str, group: str) -> list[str]:
    """The options that a group's YAML states, each with the comment above it."""
    lines, comment = [], ""
    if text.startswith(_GLOBAL):
        # Sets options of several groups, and has none of its own: its first comment says what it is.
        return [f"    {text.splitlines()[1].lstrip('# ')}"]
    for line in text.splitlines():
        match = re.match(r"^(\w+): *(.*)$", line)
        if line.startswith("#"):
            comment = f"{comment} {line.lstrip('# ')}".strip()
        elif match and match[1] != "_target_":
            lines.append(f"    {group}.{match[1]}={match[2]}".ljust(40) + f"  {comment}".rstrip())
            comment = ""
        else:
            comment = ""
    return lines


def _folders() -> list[Path]:
    return [configs_folder(), *plugin_folders()]


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text()) or {}


def _with_own_defaults(path: Path) -> dict[str, Any]:
    """The values of a group's file over those of the files beside it that it builds on."""
    values = _read(path)
    tree: dict[str, Any] = {}
    for name in values.pop("defaults", []):
        if isinstance(name, str) and name != "_self_":
            _merge(tree, _with_own_defaults(path.with_name(f"{name}.yaml")))
    _merge(tree, values)
    return tree


def _merge(tree: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value
