"""Command line in, plain values and built objects out: the only file that imports hydra.

It composes `configs/<command>.yaml` with the user's overrides, names the nearest option for a wrong one,
builds what `_target_` names, and turns every ending of a command into an exit code and one last line of
JSON. No DictConfig leaves this file. Configs of other packages take part through the entry point group
`vla_runtime.configs`, whose values name packages with a `configs` folder.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import logging
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vla_runtime.interfaces import Env, Policy
from vla_runtime.types import ActionSpec, EnvSpec

Config = dict[str, Any]
Result = tuple[dict[str, Any], int]

ENTRY_POINTS = "vla_runtime.configs"
OK, FAILED, BAD_ARGUMENTS = 0, 1, 2

_log = logging.getLogger(__name__)


class BadArguments(ValueError):
    """What the user typed makes no sense; the message names the nearest right thing. Commands exit 2."""


def main(command: str, run: Callable[[Config], Result], positional: Sequence[str] = ()) -> NoReturn:
    """Run one command from sys.argv and exit: 0 did what was asked, 1 failed, 2 bad arguments.

    Whatever escapes `run`, stdout ends with one line of JSON; stderr has the traceback of what nobody foresaw.
    positional: names of the options that bare words on the command line fill, in order.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s: %(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(describe(command))
        sys.exit(OK)
    try:
        config = load(command, _name_bare_words(arguments, positional))
        result, code = run(config)
    except BadArguments as error:
        result, code = {"error": str(error)}, BAD_ARGUMENTS
    except KeyboardInterrupt:
        result, code = {"error": "interrupted; the same command with the same out= goes on from here"}, FAILED
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        _log.debug("", exc_info=True)
        result, code = {"error": f"{type(error).__name__}: {error}"}, FAILED
    except (Exception, SystemExit) as error:
        _log.error("unexpected; this traceback belongs into a bug report:", exc_info=True)
        result, code = {"error": f"{type(error).__name__}: {error}"}, FAILED
    if "error" in result:
        _log.error("%s", result["error"])
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    sys.exit(code)


def load(command: str, overrides: Sequence[str] = ()) -> Config:
    """The composed config of a command as plain values; `choices` in it names what each group was set to."""
    parsed = [_parse(text) for one in overrides for text in _as_folder(one)]
    with initialize_config_dir(str(configs_folder()), version_base="1.3"):
        _check_choices(command, parsed)
        texts = [_search_path(), *(override.input_line or "" for override in parsed)]
        try:
            composed = compose(command, overrides=texts, return_hydra_config=True)
        except (ConfigCompositionException, HydraException) as error:
            raise BadArguments(_explain(command, parsed, error)) from error
        choices = {key: value for key, value in composed.hydra.runtime.choices.items() if not key.startswith("hydra/")}
        OmegaConf.set_struct(composed, False)
        del composed["hydra"]
        try:
            config = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise BadArguments(f"an option without default needs a value: {error}") from error
    assert isinstance(config, dict)
    if "folder" in (config.get("policy") or {}):
        choices["policy"] = str(config["policy"]["folder"])
    return {**{str(key): value for key, value in config.items()}, "choices": choices}


def configs_folder() -> Path:
    """Where the YAML lies: inside the installed package, else beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def options(group: str) -> list[str]:
    """The names a config group can be set to, those of installed plug-ins included."""
    return sorted({path.stem for folder in _config_folders() for path in (folder / group).glob("*.yaml")})


def describe(command: str) -> str:
    """The text of --help: the command's options as its YAML states them, and what each group offers."""
    text = (configs_folder() / f"{command}.yaml").read_text()
    groups = re.findall(r"^ +- +(\w+):", text, re.M)
    lines = [f"python -m vla_runtime.{command} [option=value ...]", ""]
    lines += [line for line in text.splitlines() if not re.match(r"^(defaults:| +- )", line)]
    for group in groups:
        lines += ["", f"{group}=   one of: " + ", ".join(options(group))]
        for path in sorted(path for folder in _config_folders() for path in (folder / group).glob("*.yaml")):
            lines += [f"  {group}={path.stem}", *_described(path.read_text(), group)]
    return "\n".join(lines) + "\n"


def _described(text: str, group: str) -> list[str]:
    """The options that a group's YAML states, each with the comment above it."""
    lines, comment = [], ""
    if text.startswith("# @package _global_"):
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


def build(values: Config, *arguments: Any) -> Any:
    """The object that `values` describe: `_target_` called with `arguments` and the other keys by name."""
    try:
        return instantiate(values, *arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if type(cause) is ValueError:
            raise BadArguments(str(cause)) from error
        if isinstance(cause, ImportError) and isinstance(cause.__cause__, (ValueError, OSError, RuntimeError)):
            # What a module raised while hydra imported it says more than that it could not be imported.
            raise cause.__cause__ from error
        if isinstance(cause, (ValueError, OSError, ImportError, RuntimeError)):
            raise cause from error
        raise ValueError(f"{error}".strip()) from error


def build_env(values: Config) -> Env:
    """The environment of `config["env"]`; `tasks` there is the user's selection and not an argument."""
    return build({key: value for key, value in values.items() if key != "tasks"})  # type: ignore[no-any-return]


def control_for(values: Config, env: Env, action: ActionSpec) -> str | None:
    """The `control` with which an environment of these settings takes `action`, where it is another than it has and
    nobody asked for one; None otherwise.
    """
    if values.get("control", "") is not None or env.spec.action.groups == action.groups:
        return None
    specs: Mapping[str, ActionSpec] = getattr(env, "control_specs", {})
    return next((name for name, spec in specs.items() if spec.groups == action.groups), None)


def build_policy(config: Config, env: Env | EnvSpec) -> Policy:
    """The policy of `config["policy"]` for `env`: its own expert, or the target called with the EnvSpec.

    ValueError for an expert of an environment of which only the spec is there.
    """
    values = dict(config["policy"])
    seed = values.pop("seed")
    asked = {f"decode.{key}": value for key, value in config.get("decode", {}).items() if value is not None}
    if asked != {"decode.mode": "auto"} and asked and "decode" not in values:
        said = ", ".join(f"{key}={value}" for key, value in asked.items())
        raise BadArguments(f"{said}: expected a learned policy, got policy={config['choices']['policy']}")
    if isinstance(env, EnvSpec):
        if values["_target_"] == "expert":
            raise ValueError(f"policy=expert: expected the environment {env.name}, got its spec alone")
        return build(values, env)  # type: ignore[no-any-return]
    if values["_target_"] == "expert":
        return env.expert(config["seed"] if seed is None else seed, config["style"])
    return build(values, env.spec)  # type: ignore[no-any-return]


def select_tasks(name: str, tasks: Sequence[str], wanted: Sequence[int | str] | int | str | None) -> list[int]:
    """Indices of the `tasks` of environment `name` that `env.tasks=` asks for, by index or instruction.

    All of them for None; BadArguments naming the nearest instruction for one that is not there.
    """
    if wanted is None:
        return list(range(len(tasks)))
    chosen = []
    for task in [wanted] if isinstance(wanted, (int, str)) else wanted:
        if isinstance(task, int) and 0 <= task < len(tasks):
            chosen.append(task)
        elif isinstance(task, str) and task in tasks:
            chosen.append(list(tasks).index(task))
        else:
            near = difflib.get_close_matches(str(task), tasks, 3, 0.3)
            raise BadArguments(
                f"env.tasks: expected indices 0 to {len(tasks) - 1} or instructions of {name}, got {task!r}"
                + (f"; nearest: {near}" if near else "")
            )
    if len(set(chosen)) != len(chosen) or not chosen:
        raise BadArguments(f"env.tasks: expected different tasks, at least one, got {wanted}")
    return sorted(chosen)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _name_bare_words(arguments: Sequence[str], positional: Sequence[str]) -> list[str]:
    named, free = [], list(positional)
    for argument in arguments:
        if "=" in argument and re.match(r"^[\w./@+~-]+=", argument):
            named.append(argument)
        elif free:
            named.append(f"{free.pop(0)}={argument}")
        else:
            raise BadArguments(f"expected option=value, got {argument!r}; --help lists the options")
    return named


def _as_folder(text: str) -> list[str]:
    """`policy=<folder>` as the policy that is loaded from it; anything else as it is."""
    key, _, value = text.partition("=")
    if key == "policy" and value not in options("policy") and ("/" in value or Path(value).is_dir()):
        return ["policy=checkpoint", f"policy.folder={value}"]
    return [text]


def _parse(text: str) -> Override:
    parser = OverridesParser.create()
    try:
        return parser.parse_override(text)
    except HydraException:
        # Paths and free text need no quotes on our command lines.
        key, _, value = text.partition("=")
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        try:
            return parser.parse_override(f"{key}='{quoted}'")
        except HydraException as error:
            raise BadArguments(f"expected option=value, got {text!r}: {error}") from error


def _config_folders() -> list[Path]:
    return [configs_folder(), *_plugin_folders()]


def _plugin_folders() -> list[Path]:
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
    return folders


def _search_path() -> str:
    places = ",".join(f"'file://{folder}'" for folder in _plugin_folders())
    return f"hydra.searchpath=[{places}]"


def _check_choices(command: str, parsed: Sequence[Override]) -> None:
    for override in parsed:
        key = override.key_or_group
        known = options(key) if re.fullmatch(r"\w+", key) else []
        if not known or key == command:
            continue
        value = override.value()
        if not isinstance(value, str) or value not in known:
            near = difflib.get_close_matches(str(value), known, 3, 0.4)
            raise BadArguments(
                f"{key}: expected one of {', '.join(known)}, got {value!r}"
                + (f"; nearest: {', '.join(near)}" if near else "")
            )


def _explain(command: str, parsed: Sequence[Override], error: Exception) -> str:
    """Names the option at fault and the nearest one that exists, where that is what went wrong."""
    groups = [override for override in parsed if options(override.key_or_group)]
    base = compose(command, overrides=[_search_path(), *(override.input_line or "" for override in groups)])
    known = _keys(base)
    for override in parsed:
        key = override.key_or_group
        if override in groups or key in known:
            continue
        near = difflib.get_close_matches(key, known, 3, 0.4)
        return f"unknown option {key!r}" + (f"; nearest: {', '.join(near)}" if near else "; --help lists the options")
    return str(error)


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for key in map(str, config):
        name = f"{prefix}{key}"
        keys.append(name)
        value = OmegaConf.select(config, key)
        if isinstance(value, DictConfig):
            keys += _keys(value, f"{name}.")
    return keys
