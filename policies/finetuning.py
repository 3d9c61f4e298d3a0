"""What the fine-tuning command asks for: read a data set, make a policy that fits it, report, train.

It joins the parts and says beforehand what can be said: how well the tokenizer fits the data, and how large
the whole is. The loop itself is `policies.training`'s.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from policies.checkpoint import own_class
from policies.fit_report import fit_report, range_report, range_text, report_text
from policies.lora import Lora, add_adapters
from policies.recipe import Recipe
from policies.samples import Samples, read_samples
from policies.training import Learner, train
from policies.training_state import require_state, state_path
from policies.untrained import Initial, policy_for
from policies.vla import VLAPolicy
from vla_runtime.data.joined import Joined
from vla_runtime.disk import write_json

_log = logging.getLogger(__name__)


def finetune(config: Mapping[str, Any], on_step: Callable[[int, float], None]) -> dict[str, Any]:
    """Train what `config` (configs/finetune.yaml) says; returns the last line of the command.

    RuntimeError when interrupted and OSError for a full disk say how to go on.
    """
    try:
        return _finetune(config, on_step)
    except KeyboardInterrupt as error:
        raise RuntimeError(f"interrupted; {_going_on(config)}") from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(error.errno, f"{error.strerror}; free some, then {_going_on(config)}", error.filename) from error


def _going_on(config: Mapping[str, Any]) -> str:
    out = config["resume"] or config["out"]
    if not state_path(Path(out)).is_file():
        if Path(out).is_dir():
            return f"begin with another out=; what was learned so far is in {out} (init.folder={out} init.parts=all)"
        return "the same command starts over: nothing was saved yet (save_every=)"
    how = "the same command" if config["resume"] else f"with resume={out} instead of out={out} the same command"
    return f"{how} goes on from what was saved last (save_every=)"


def _finetune(config: Mapping[str, Any], on_step: Callable[[int, float], None]) -> dict[str, Any]:
    recipe = Recipe(**{field.name: config[field.name] for field in fields(Recipe)})
    initial, lora = Initial(**config["init"]), Lora(**config["lora"])
    _check(config, recipe, initial, lora)
    out = Path(config["resume"] or config["out"])
    if config["resume"] is not None:
        require_state(out)
    dataset = Joined.of(config["data"], config["horizon"], config["control"], config["cameras"])
    head, heads = _head(config["head"])
    policy = policy_for(
        dataset,
        out.name,
        config["backbone"],
        head,
        None if config["tokenizer"]["name"] == "none" else config["tokenizer"],
        max_committed=recipe.max_committed,
        executed=config["executed"],
        observation_offsets=config["observation_offsets"],
        seed=recipe.seed,
        initial=initial,
        heads=heads,
    )
    backbone: Any = policy.backbone
    offsets = policy.spec.observation_offsets
    samples = read_samples(dataset, backbone.image_size, policy.state, policy.action, offsets)
    ranges = {
        "state": range_report(dataset.column("observation.state"), policy.spec.state, policy.state),
        "action": range_report(dataset.column(dataset.feature), policy.spec.action, policy.action),
    }
    # Everything is in memory; what it was read from need not be, too.
    dataset.close()
    _check_instructions(backbone, samples)
    parameters = sum(value.numel() for value in Learner(policy.backbone, policy.head).parameters())
    _log.info("%d samples of %d episodes, %.2f M parameters", len(samples), len(dataset.episodes), parameters / 1e6)
    _report(out.with_name(f"{out.name}.fit.json"), policy, samples, ranges)
    add_adapters(policy.backbone, lora)
    settings = {
        key: config[key] for key in ("backbone", "head", "tokenizer", "horizon", "executed", "observation_offsets")
    }
    settings |= {key: config[key] for key in ("control", "cameras", "init", "lora")}
    settings["data"] = dataset.contents_id()
    options = {key: value for key, value in head.items() if key != "name"}
    features = None if config["features"] is None else Path(config["features"])
    progress = train(policy, samples, recipe, out, options, config["resume"] is not None, on_step, settings, features)
    last = {key: value for key, value in progress.validations[-1].items() if key != "step"}
    return {
        "steps": len(progress.losses),
        "loss_first": progress.losses[0],
        "loss_last": progress.losses[-1],
        **last,
        "parameters": parameters,
        "checkpoint": str(out),
    }


def _report(path: Path, policy: VLAPolicy, samples: Samples, ranges: Mapping[str, Any]) -> None:
    """Write and log what is known of the data before any training."""
    report = {"ranges": ranges}
    for what, found in ranges.items():
        warnings, notes = range_text(what, found)
        for line in warnings:
            _log.warning("%s", line)
        for line in notes:
            _log.info("%s", line)
    tokenizer = getattr(policy.head, "tokenizer", None)
    if tokenizer is not None:
        report |= fit_report(tokenizer, samples.chunks_FTA, policy.spec.action, policy.action)
        _log.info("%s", report_text(report))
    write_json(path, report)
    _log.info("all of it is in %s", path)


def _check(config: Mapping[str, Any], recipe: Recipe, initial: Initial, lora: Lora) -> None:
    learned = initial.folder is not None or config["backbone"].get("pretrained") is not None
    for name, asked in (("freeze_trunk", recipe.freeze_trunk), ("lora.rank", lora.rank > 0)):
        if asked and not learned:
            raise ValueError(
                f"{name}: expected a backbone that has learned something, got one from scratch; "
                "name a checkpoint with init.folder= or published weights with backbone.pretrained="
            )
    if config["executed"] is not None and (type(config["executed"]) is not int or config["executed"] < 1):
        raise ValueError(f"executed: expected a whole number of at least 1, or null, got {config['executed']!r}")
    if not all(type(offset) is int for offset in config["observation_offsets"]):
        raise ValueError(f"observation_offsets: expected whole numbers, got {config['observation_offsets']}")
    if recipe.freeze_trunk and lora.rank:
        raise ValueError("freeze_trunk, lora.rank: expected one of them, got both; adapters train the trunk, too")


def _check_instructions(backbone: Any, samples: Samples) -> None:
    """What a backbone cannot read is said before hours of training, not in the batch that draws it."""
    first = {instruction: index for index, instruction in reversed(list(enumerate(samples.instructions)))}
    for index in first.values():
        with torch.no_grad():
            backbone.features(samples.batch([index])[0])


def _head(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Name and options of a head, and its class by name where its config names one with `_target_`."""
    options = {key: value for key, value in values.items() if key != "_target_"}
    if "_target_" not in values:
        return options, None
    return options, {options["name"]: own_class(str(values["_target_"]))}
