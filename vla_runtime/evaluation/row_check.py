"""What a row of episodes.jsonl must hold for whoever reads it: rows may be of another version, or edited.

`make_row` writes them. Which episode a row is, and whether it is JSON at all, `folder.read_rows` checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_NUMBER = (int, float)
_NOTHING = type(None)
_PLAIN = (str, int, float, bool, _NOTHING, list, dict)

# Types that JSON's values may have, by key.
FIELDS: Mapping[str, tuple[type, ...]] = {
    "env": (str,), "seed": (int,), "policy": (str,), "policy_seed": (int,), "statistics": _PLAIN, "weights": _PLAIN,
    "contract": _PLAIN, "control": _PLAIN, "style": _PLAIN, "recover": _PLAIN, "faults": (dict,), "versions": (dict,),
    "loop": (dict,), "decode": (dict,), "task": (int,), "task_name": (str,), "episode": (int,),
    "initial_state": (str, int, _NOTHING), "init_seen": (bool, _NOTHING), "success": (bool,), "reason": (str,),
    "progress": (*_NUMBER, _NOTHING), "steps": (int,), "plans": (int,), "clamped": (int,), "limits": (dict,),
    "safety": (list,), "held": (int,), "late": (int,), "refused": (int,), "delay": (*_NUMBER, _NOTHING),
    "plan_age": (dict,), "error": (str, _NOTHING), "error_source": (str, _NOTHING), "facts": (dict,),
    "smoothness": (dict, _NOTHING), "timeline": (dict, _NOTHING), "recording": (str, _NOTHING),
    "video": (str, _NOTHING), "timing": (dict,),
}  # fmt: skip
# What lies below them and is read without asking.
_BELOW: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "loop": {"rate_hz": _NUMBER},
    "timing": {"latencies_ms": (list,), "overruns": (int,)},
}
_NAMES = {str: "text", bool: "true or false", int: "a whole number", float: "a number", dict: "a map", list: "a list"}


def check_rows(folder: Path, rows: Iterable[Mapping[str, Any]], fields: Sequence[str] | None = None) -> None:
    """ValueError, naming row and key, where one lacks a key or holds another type of value.

    fields: the keys that are looked at; None: all, and those below them.
    """
    path = folder / "episodes.jsonl"
    for number, row in enumerate(rows, 1):
        _check(f"{path}, row {number}", row, {key: FIELDS[key] for key in fields or FIELDS})
        for key, below in _BELOW.items() if fields is None else ():
            _check(f"{path}, row {number}, {key}", row[key], below)


def _check(where: str, values: Mapping[str, Any], fields: Mapping[str, tuple[type, ...]]) -> None:
    for key, types in fields.items():
        value = values.get(key, values)
        # JSON's true is no number.
        if value is values or not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            got = "none" if value is values else "null" if value is None else f"{value!r:.60}"
            names = (_NAMES.get(one, "null") for one in types if one is not int or float not in types)
            expected = " or ".join(names)
            raise ValueError(
                f"{where}: expected {key!r} to be {expected}, got {got}; it was edited, or written by another version: "
                "run it again in another out="
            )
