"""Documents of plain values (YAML, JSON) as typed objects: every field is checked by its type when it is read.

Ranges and what fields mean together are the objects' own affair. The module knows no particular document.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml

from vla_runtime.types import SpecMismatch

# Types of fields, as a person who writes a document calls them.
_CALLED = {
    "str": "text",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a finite number",
    "tuple[str, ...]": "a list of text",
    "tuple[float, ...]": "a list of numbers, one for each dimension",
    "float | tuple[float, ...]": "a finite number or a list of them",
}


class _Loader(yaml.SafeLoader):
    """YAML in which a key is stated once: of two, the later one would count without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                problem = f"expected every key once, got {key.value!r} twice; delete or rename one of them"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path, what: str) -> Any:
    """The value in a YAML file. SpecMismatch, beginning with `what` and naming the file, for one that cannot be read,
    is not UTF-8, is no YAML, or states a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        loader = _Loader(text)
        loader.name = str(path)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise SpecMismatch(
            f"{what}: expected a YAML file in UTF-8, got {path} with the byte 0x{error.object[error.start]:02x} at "
            f"{error.start}; save it as UTF-8"
        ) from error
    except OSError as error:
        raise SpecMismatch(f"{what}: expected a YAML file, got {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise SpecMismatch(f"{what}: expected a YAML file, got {path}: {error}") from error


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    """`value` itself. SpecMismatch for what is no map, and for keys that are no text."""
    if not isinstance(value, Mapping):
        raise SpecMismatch(f"{what}: expected a map, got {kind_of(value)}")
    for key in value:
        if not isinstance(key, str):
            raise SpecMismatch(f"{what}: expected keys of text, got {key!r}; put it in quotes")
    return value


def made(kind: Any, values: Any, what: str) -> Any:
    """A dataclass of a document's values; lists become tuples, and fields that have a default may be missing.

    SpecMismatch with all keys that are missing or unknown and all values of another type, and for what the class itself
    refuses.
    """
    given = mapping(values, what)
    known = fields(kind)
    needed = [one.name for one in known if one.default is MISSING and one.default_factory is MISSING]
    found = key_faults(given, needed, [one.name for one in known], what)
    found += type_faults(given, {one.name: str(one.type) for one in known}, what)
    if found:
        raise SpecMismatch("\n  ".join(found))
    return kind(**{key: tuple(one) if isinstance(one, list) else one for key, one in given.items()})


def key_faults(given: Collection[str], needed: Collection[str], known: Collection[str], what: str) -> list[str]:
    """Keys that are missing, and keys that nobody knows with the nearest that is missing; `what` may be empty."""
    where = f"{what}: " if what else ""
    found = [f"{where}expected the key {key!r}, got none; add it" for key in needed if key not in given]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, [one for one in known if one not in given], 1, 0.5)
            remedy = f"; did you mean {near[0]!r}?" if near else "; delete it"
            found.append(f"{where}expected keys among {', '.join(known)}, got {key!r}{remedy}")
    return found


def type_faults(given: Mapping[str, Any], types: Mapping[str, str], what: str) -> list[str]:
    """Values of another type than their field's, as Python's annotations write it; other fields are left out."""
    found = []
    for name, kind in types.items():
        if name in given and not _fits(given[name], kind):
            plain = kind.removesuffix(" | None")
            called = _CALLED[plain] + (" or null" if plain != kind else "")
            where = f"{what}, {name}" if what else name
            found.append(f"{where}: expected {called}, got {given[name]!r}{_remedy(given[name], plain)}")
    return found


def kind_of(value: Any) -> str:
    """What a person who writes YAML calls such a value."""
    if value is None:
        return "nothing (null)"
    return "a map" if isinstance(value, Mapping) else "a list" if isinstance(value, list) else repr(value)


def _remedy(value: Any, kind: str) -> str:
    """What a number that YAML took for text lacks."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str) and ("float" in kind or kind == "int"):
            try:
                float(one)
            except ValueError:
                continue
            exponent = "" if kind == "int" else ", and with a point before an exponent (1.0e-3)"
            return f"; write numbers without quotes{exponent}"
    return ""


def _fits(value: Any, kind: str) -> bool:
    if kind.endswith(" | None"):
        return value is None or _fits(value, kind.removesuffix(" | None"))
    if kind == "float | tuple[float, ...]":
        return _fits(value, "float") or (isinstance(value, list | tuple) and all(_fits(one, "float") for one in value))
    if kind == "tuple[str, ...]":
        return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
    if kind == "tuple[float, ...]":
        # An infinite bound is one that is not there.
        return isinstance(value, list | tuple) and all(_number(one) for one in value)
    if kind == "float":
        return _number(value) and abs(value) <= sys.float_info.max
    known: dict[str, type] = {"str": str, "bool": bool, "int": int}
    return isinstance(value, known[kind]) and (kind != "int" or not isinstance(value, bool))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
