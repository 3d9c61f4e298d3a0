"""Command line in, plain values and built objects out: the only file that imports hydra.

It composes `configs/<command>.yaml` with the user's overrides, names the nearest option for a wrong one,
builds what `_target_` names, and turns every ending of a command into an exit code and one last line of
JSON. No DictConfig leaves this file. What is typed is made ready by `arguments`, and where the YAML lies is
`config_files`' to know.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from vla_runtime.arguments import MAPS, BadArguments, at_home, check, named, quoted, unknown, written
from vla_runtime.config_files import configs_folder, defaults, describe, options, plugin_folders
from vla_runtime.interfaces import Env, Policy
from vla_runtime.types import ActionSpec, EnvSpec

__all__ = [
    "BAD_ARGUMENTS",
    "FAILED",
    "OK",
    "BadArguments",
    "Config",
    "Result",
    "build",
    "build_env",
    "build_policy",
    "configs_folder",
    "control_for",
    "describe",
    "load",
    "main",
    "options",
    "select_tasks",
]

Config = dict[str, Any]
Result = tuple[dict[str, Any], int]

OK, FAILED, BAD_ARGUMENTS = 0, 1, 2

_log = logging.getLogger(__name__)


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
        config = load(command, named(arguments, positional))
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
    parsed = _parsed(command, [text for one in overrides for text in _as_folder(one)])
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
        except MissingMandatoryValue as error:
            raise BadArguments(f"an option without default needs a value: {error.full_key}=") from error
        except OmegaConfBaseException as error:
            raise BadArguments(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(config, dict)
    if "folder" in (config.get("policy") or {}):
        choices["policy"] = str(config["policy"]["folder"])
    return {**{str(key): value for key, value in config.items()}, "choices": choices}


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
                f"env.tasks: expected indices 0 to {len(tasks) - 1} or instructions of {name}, several as [a, b], "
                f"got {task!r}" + (f"; nearest: {near}" if near else "")
            )
    if len(set(chosen)) != len(chosen) or not chosen:
        raise BadArguments(f"env.tasks: expected different tasks, at least one, got {wanted}")
    return sorted(chosen)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _as_folder(text: str) -> list[str]:
    """`policy=<folder>` as the policy that is loaded from it; anything else as it is."""
    key, _, value = text.partition("=")
    if key == "policy" and value not in options("policy") and ("/" in value or Path(at_home(value)).is_dir()):
        return ["policy=checkpoint", f"policy.folder={value}"]
    return [text]


def _parsed(command: str, texts: Sequence[str]) -> list[Override]:
    """The overrides that `texts` stand for. BadArguments for one that is none, or of the wrong kind."""
    chosen = dict(text.partition("=")[::2] for text in texts if text.partition("=")[0].isidentifier())
    known = defaults(command, {key: name for key, name in chosen.items() if options(key) and key != command})
    return [override for text in texts for override in _overrides(text, known)]


def _overrides(text: str, known: Mapping[str, Any]) -> list[Override]:
    name, equals, value = text.partition("=")
    key = name.lstrip("+~")
    default = _stated(known, key)
    outer = key.rpartition(".")[0]
    if name.startswith("~"):
        if not equals and outer in MAPS:
            return [_parse(text)]
        raise BadArguments(f"{text}: expected a map's entry to take away, as ~{MAPS[0]}.<its name>, got another option")
    if key.partition(".")[0] == "hydra":
        raise BadArguments(unknown(key, ()))
    if options(key):
        return [_parse(text)]
    if key in MAPS and isinstance(default, dict):
        override = _parse(f"++{key}={value}")
        if not isinstance(override.value(), dict):
            raise BadArguments(f"{key}: expected a map {{<name>: <value>, ...}}, got {value!r}")
        # hydra would add to what is there; a map that is given is meant as it is.
        return [_parse(f"~{key}"), override]
    if outer in MAPS and isinstance(_stated(known, outer), dict):
        # What is not there yet is added.
        name = f"++{key}"
    elif name.startswith("+") and not name.startswith("++") and default is not None:
        raise BadArguments(f"{text}: expected an option that is not there yet, got {key!r}; leave out the +")
    override = _parse(f"{name}={written(key, value, default)}")
    check(key, override.value(), default)
    return [override]


def _stated(known: Mapping[str, Any], key: str) -> Any:
    """The value that the YAML states for an option; None where it states null or nothing."""
    value: Any = known
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _parse(text: str) -> Override:
    parser = OverridesParser.create()
    try:
        override = parser.parse_override(text)
        if not override.is_sweep_override():
            return override
    except HydraException:
        pass
    # What hydra cannot read, and what it would take for several values, is text.
    key, _, value = text.partition("=")
    try:
        return parser.parse_override(f"{key}={quoted(value)}")
    except HydraException as error:
        raise BadArguments(f"expected option=value, got {text!r}; --help lists the options") from error


def _search_path() -> str:
    places = ",".join(f"'file://{folder}'" for folder in plugin_folders())
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
        return unknown(key, known)
    # The lines that follow advise what hydra's own commands take.
    return f"expected options as --help lists them: {str(error).splitlines()[0]}"


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for key in map(str, config):
        name = f"{prefix}{key}"
        keys.append(name)
        value = OmegaConf.select(config, key)
        if isinstance(value, DictConfig):
            keys += _keys(value, f"{name}.")
    return keys
