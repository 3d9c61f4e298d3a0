"""What was typed on a command line, made ready for hydra's grammar of overrides: free text and paths need no quotes.

It works on text, and knows neither hydra nor what the options do. What an option takes follows from its default and,
where that is null, from its name.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from typing import Any

import yaml

# Sentences and secrets: nothing in them means anything to a command line.
PROSE = ("instruction", "instead", "token")
# Files, folders, addresses and names, whose default may be null: `out=20240101` is a folder's name and no number.
NAMES = (
    *("address", "assets", "bag", "ca", "certificate", "contract", "data", "export", "features", "folder", "interface"),
    *("key", "libero_assets", "merge", "node", "of", "out", "path", "pretrained", "replay", "resume", "schedule"),
    *("tokenizer",),
)
# Maps whose keys are the user's choice: a map that is given takes the place of the default one.
MAPS = ("env.cameras",)
# Numbers by default, which may also be text.
_NUMBER_OR_TEXT = ("loop.latency",)

_HOME = re.compile(r"(^|[\[,]\s*)(~\w*)(?=/|$|\s*[\],])")


class BadArguments(ValueError):
    """What the user typed makes no sense; the message names the nearest right thing. Commands exit 2."""


def named(arguments: Sequence[str], positional: Sequence[str]) -> list[str]:
    """`arguments` as `option=value`: those without a name take the names of `positional`, in order.

    BadArguments for one more than there are names.
    """
    found, free = [], list(positional)
    for argument in arguments:
        if re.match(r"^[\w./@+~-]+=", argument) or re.match(r"^~\w+(\.\w+)+$", argument):
            found.append(argument)
        elif free:
            found.append(f"{free.pop(0)}={argument}")
        else:
            raise BadArguments(f"expected option=value, got {argument!r}; --help lists the options")
    return found


def at_home(text: str) -> str:
    """`text` with `~` and `~name` at the beginning of a path as the home folder, in lists, too; no shell does it behind
    every name.
    """
    return _HOME.sub(lambda match: match[1] + os.path.expanduser(match[2]), text)


def quoted(text: str) -> str:
    """`text` as a string of hydra's grammar."""
    # A backslash means something before a quote and at the end only.
    inside = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{inside}'"


def written(key: str, text: str, default: Any) -> str:
    """The value `text` of an option as hydra's grammar has it, so that it is read as it was meant.

    default: what the option's YAML states, None where it states null or nothing.
    """
    name = key.rpartition(".")[2]
    if text == "null" or re.fullmatch(r"'[^']*'|\"[^\"]*\"", text):
        return text
    if name in PROSE and (default is None or isinstance(default, str)):
        # Not a reference to another option, either.
        return quoted(text.replace("${", "\\${"))
    text = at_home(text)
    named_so = default is None and (name in NAMES or key in ("a", "b"))
    if (named_so or isinstance(default, str)) and not text.startswith(("{", "${")):
        return _list(text) or quoted(text)
    return text


def check(key: str, value: Any, default: Any) -> None:
    """BadArguments for a value of a kind that an option with this default does not take."""
    expected = None
    if value is None or (isinstance(value, str) and value.startswith("${")) or key in _NUMBER_OR_TEXT:
        return
    if isinstance(default, bool):
        expected = None if isinstance(value, bool) else "true or false"
    elif isinstance(default, (int, float)):
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        expected = None if good else f"a number, such as {default}"
    elif isinstance(default, list):
        expected = None if isinstance(value, list) else f"a list, such as {default}"
    elif isinstance(default, dict):
        expected = None if isinstance(value, dict) else f"a map with keys among {', '.join(default)}"
        for inner in value if isinstance(value, dict) else ():
            if inner not in default:
                raise BadArguments(unknown(f"{key}.{inner}", [f"{key}.{name}" for name in default]))
            check(f"{key}.{inner}", value[inner], default[inner])
    if expected is not None:
        raise BadArguments(f"{key}: expected {expected}, got {value!r}")


def unknown(key: str, known: Sequence[str]) -> str:
    """The message for an option that is not there, with the nearest of those that are."""
    near = difflib.get_close_matches(key, known, 3, 0.4)
    return f"unknown option {key!r}; " + (f"nearest: {', '.join(near)}" if near else "--help lists the options")


def _list(text: str) -> str | None:
    """A list of names, each of them text; None for anything else."""
    if not re.fullmatch(r"\[.*\]", text, re.S):
        return None
    try:
        entries = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError:
        return None
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        return None
    return f"[{','.join(quoted(entry) for entry in entries)}]"
