"""A checkpoint is one folder: weights, and everything else as data. One folder in, one policy out; strict.

    checkpoint.json       names of parts from a closed table, their sizes, contract, statistics, tokenizer
    weights.safetensors   fp16

Nothing in the folder is code, and nothing it names is imported: a name that is not in the table is refused,
as are weights that are missing, left over, or of another shape. A class of one's own comes from the caller,
by `heads=`.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from policies.decoding import AUTO, Decode
from policies.heads.autoregressive import Autoregressive
from policies.heads.beast import Beast
from policies.heads.diffusion import Diffusion, Flow
from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.heads.regression import Regression
from policies.lora import plain_state
from policies.precision import set_precision
from policies.shipped import folder_of, names
from policies.threads import one_thread
from policies.tokenizers.bins import Bins
from policies.tokenizers.bspline import BSpline
from policies.vla import VLAPolicy
from vla_runtime.contract import Contract
from vla_runtime.decoding.denoise import Denoising
from vla_runtime.decoding.masked import MaskedDecoding
from vla_runtime.disk import sync, write_json
from vla_runtime.transforms import Normalise
from vla_runtime.types import EnvSpec, PolicySpec

VERSION = 1
CONFIG, WEIGHTS = "checkpoint.json", "weights.safetensors"

# Imported when one is asked for: transformers takes seconds that nano need not pay.
BACKBONES = {
    "nano": "policies.backbones.nano.Nano",
    "florence2": "policies.backbones.florence2.Florence2",
    "prismatic": "policies.backbones.prismatic.Prismatic",
}
TOKENIZERS: dict[str, Any] = {"bins": Bins, "bspline": BSpline}
HEADS: dict[str, Any] = {
    "autoregressive": Autoregressive,
    "beast": Beast,
    "diffusion": Diffusion,
    "discrete_diffusion": DiscreteDiffusion,
    "flow": Flow,
    "regression": Regression,
}
_OPTIONS: dict[str, Any] = {"decoding": MaskedDecoding, "denoising": Denoising}
_KEYS = {
    *("version", "name", "backbone", "head", "tokenizer", "contract"),
    *("observation_offsets", "max_committed", "executed", "state", "action", "seen", "training"),
}


class CheckpointError(ValueError):
    """A folder that is no checkpoint of ours: what was expected where, and what was found."""


def backbone_class(name: str) -> Any:
    """A backbone's class by name. ValueError for a name that is not in the table."""
    if name not in BACKBONES:
        raise ValueError(f"backbone: expected one of {sorted(BACKBONES)}, got {name!r}")
    return own_class(BACKBONES[name])


def make_head(
    name: str,
    width: int,
    rows: int,
    size: int,
    options: Mapping[str, Any],
    tokenizer: Any,
    heads: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A head by name.

    heads: classes of one's own by name. ValueError for a name that is not in the table, a tokenizer where none
    fits, and options that the head does not have. Classes that say `uses_tokens` are called with (tokenizer,
    width, **options), others with (rows, size, width, **options); max_committed is always among the options.
    """
    table = {**HEADS, **(heads or {})}
    if name not in table:
        raise ValueError(f"head: expected one of {sorted(table)}, got {name!r}")
    values = {key: _OPTIONS[key](**value) if key in _OPTIONS else value for key, value in options.items()}
    if getattr(table[name], "uses_tokens", False):
        if tokenizer is None:
            raise ValueError(f"head {name}: expected a tokenizer ({', '.join(TOKENIZERS)}), got none")
        return _called(name, table[name], tokenizer, width, **values)
    if tokenizer is not None:
        raise ValueError(f"head {name}: expected tokenizer=none, got {tokenizer.name}; it answers rows, not tokens")
    return _called(name, table[name], rows, size, width, **values)


def _called(name: str, head: Any, *arguments: Any, **options: Any) -> nn.Module:
    known = list(inspect.signature(head).parameters)[len(arguments) :]
    for option in options:
        if option not in known:
            raise ValueError(f"head {name}: expected options among {known}, got {option!r}")
    return head(*arguments, **options)  # type: ignore[no-any-return]


def save_policy(
    folder: str | Path, policy: VLAPolicy, head_options: Mapping[str, Any], training: Mapping[str, Any]
) -> None:
    """Write a checkpoint: into a folder beside it, then renamed, so that what was there stays whole until then."""
    folder = Path(folder)
    spec, head, backbone = policy.trained_spec, policy.head, policy.backbone
    tokenizer = getattr(head, "tokenizer", None)
    document = {
        "version": VERSION,
        "name": spec.name,
        "backbone": {"name": backbone.name, "config": backbone.state_of_config()},  # type: ignore[operator]
        "head": {"name": head.name, "options": dict(head_options)},
        "tokenizer": None if tokenizer is None else {"name": tokenizer.name, "state": tokenizer.state()},
        "contract": Contract.of(spec).document(),
        "observation_offsets": list(spec.observation_offsets),
        "max_committed": spec.max_committed,
        "executed": spec.executed,
        "state": {"low": policy.state.low.tolist(), "high": policy.state.high.tolist()},
        "action": {"low": policy.action.low.tolist(), "high": policy.action.high.tolist()},
        "seen": sorted(spec.seen),
        "training": dict(training),
    }
    part, old = (folder.with_name(f".{folder.name}.{what}") for what in ("part", "old"))
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    if old.is_dir() and not folder.exists():
        # Killed between the two renames below: the previous checkpoint is whole, under its other name.
        old.rename(folder)
    try:
        weights = {key: value.detach().to(torch.float16).cpu().contiguous() for key, value in _weights(policy).items()}
        beyond = [key for key, value in weights.items() if not value.isfinite().all()]
        if beyond:
            raise CheckpointError(f"{folder}: expected weights that fp16 can say, got others in {beyond[:3]}")
        _write_weights(weights, part / WEIGHTS)
        write_json(part / CONFIG, document)
        # Before the old one goes.
        sync(part / WEIGHTS)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _write_weights(weights: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(weights, str(path))
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise


@one_thread()
def load_policy(
    folder: str | Path,
    heads: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    decode: Decode = AUTO,
) -> VLAPolicy:
    """The policy of a folder, or of a shipped policy's name, on `device`, in fp32 or `decode.precision`.

    heads: classes of one's own by name. decode: how it decodes, by default as the checkpoint names. CheckpointError
    as above, ValueError for a device that is not there and a decode that this policy cannot do.
    """
    folder, device = folder_of(folder), _device(device)
    document = _document(folder)
    try:
        contract = Contract.read(document["contract"])
        _named(document["backbone"], BACKBONES, "backbone")
        backbone = backbone_class(document["backbone"]["name"]).from_config(document["backbone"]["config"])
        tokenizer = document["tokenizer"]
        if tokenizer is not None:
            tokenizer = _named(tokenizer, TOKENIZERS, "tokenizer")(**tokenizer["state"])
        _named(document["head"], {**HEADS, **(heads or {})}, "head")
        if contract.horizon is None:
            raise CheckpointError("contract: expected a horizon, got none")
        head = make_head(
            document["head"]["name"], backbone.width, contract.horizon, contract.action.size,
            {**document["head"]["options"], "max_committed": document["max_committed"]}, tokenizer, heads,
        )  # fmt: skip
        spec = PolicySpec(
            name=document["name"],
            cameras=contract.cameras,
            state=contract.state,
            action=contract.action,
            period=1.0 / contract.rate_hz,
            horizon=contract.horizon,
            observation_offsets=tuple(document["observation_offsets"]),
            max_committed=document["max_committed"],
            statistics=contract.statistics,
            seen=frozenset(document["seen"]),
            executed=document["executed"],
        )
        state, action = Normalise(**document["state"]), Normalise(**document["action"])
        path = folder / WEIGHTS
        if not path.is_file():
            raise CheckpointError(f"{path}: expected the weights, got no such file")
        with path.open("rb") as file:
            spec = replace(spec, weights=hashlib.file_digest(file, "sha256").hexdigest()[:16])
        policy = VLAPolicy(spec, backbone, head, state, action)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / CONFIG}: expected a checkpoint of version {VERSION}, got {type(error).__name__}: {error}"
        ) from error
    _fill(policy, path)
    decode = decode.named(folder, policy.head)
    set_precision(policy.backbone, [policy.head], device, decode.precision or "fp32")
    return policy.decoding(decode)


def _device(name: torch.device | str) -> torch.device:
    try:
        # A device is there when something can be put on it.
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: expected one that this machine has, such as cpu, got {name!r}: {error}") from error


def pretrained(
    env: EnvSpec,
    folder: str,
    heads: Mapping[str, str] | None = None,
    device: str = "cpu",
    decode: Mapping[str, Any] | None = None,
) -> VLAPolicy:
    """The policy of a folder, as `rollout` builds it; the runner compares its contract with the environment's.

    heads: classes of one's own as {name: "package.module.Class"}; the caller names them, never the folder.
    decode: as configs/decode.
    """
    own = {name: own_class(target) for name, target in (heads or {}).items()}
    return load_policy(folder, own, device, Decode(**(decode or {})))


def own_class(target: str) -> Any:
    """The class that `package.module.Class` names; ValueError when there is none."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"expected package.module.Class of an installed package, got {target!r}: {error}") from error


def _document(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: expected a checkpoint folder with {CONFIG}, got none; train one with vla_runtime.finetune, "
            f"or take a shipped one ({', '.join(names())})"
        )
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        got = document.get("version") if isinstance(document, dict) else type(document).__name__
        raise CheckpointError(f"{path}: expected a checkpoint of version {VERSION}, got {got!r}")
    if set(document) != _KEYS:
        raise CheckpointError(
            f"{path}: missing {sorted(_KEYS - set(document))}, unknown {sorted(set(document) - _KEYS)}"
        )
    return document


def _named(entry: Mapping[str, Any], table: Mapping[str, Any], what: str) -> Any:
    if entry["name"] not in table:
        raise CheckpointError(
            f"{what}: expected one of {sorted(table)}, got {entry['name']!r}; nothing was imported or run"
        )
    return table[entry["name"]]


def _weights(policy: VLAPolicy) -> dict[str, torch.Tensor]:
    return {
        **{f"backbone.{key}": value for key, value in plain_state(policy.backbone).items()},
        **{f"head.{key}": value for key, value in policy.head.state_dict().items()},
    }


def _fill(policy: VLAPolicy, path: Path) -> None:
    try:
        weights = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: expected whole safetensors, got {error}") from error
    wanted = _weights(policy)
    missing, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or extra:
        raise CheckpointError(f"{path}: missing {missing[:5]} ({len(missing)}), not wanted {extra[:5]} ({len(extra)})")
    for key, value in weights.items():
        if value.shape != wanted[key].shape:
            raise CheckpointError(f"{path}: {key}: expected {list(wanted[key].shape)}, got {list(value.shape)}")
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: {key}: expected finite weights, got NaN or infinity")
    for module, prefix in ((policy.backbone, "backbone."), (policy.head, "head.")):
        module.load_state_dict(
            {key.removeprefix(prefix): value.float() for key, value in weights.items() if key.startswith(prefix)}
        )
