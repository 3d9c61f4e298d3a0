"""A policy that fits a data set, before it has learned anything from it.

Transforms come from the set's statistics, token bounds from a pass over its chunks, weights from chance, a
published checkpoint of the backbone, or an earlier checkpoint of ours. It knows nothing of the training loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from policies.checkpoint import TOKENIZERS, backbone_class, load_policy, make_head
from policies.tokenizers.bins import Bins
from policies.tokenizers.bspline import BSpline
from policies.validation import binary_dimensions
from policies.vla import VLAPolicy
from vla_runtime.contract import Contract, require_match
from vla_runtime.data.joined import Joined
from vla_runtime.data.reader import Dataset
from vla_runtime.transforms import Normalise
from vla_runtime.types import PolicySpec

PARTS = ("trunk", "backbone", "all")


@dataclass(frozen=True, slots=True)
class Initial:
    """Where weights come from: a checkpoint folder, or chance; parts: trunk, backbone or all (the head, too)."""

    folder: str | None = None
    parts: str = "trunk"

    def __post_init__(self) -> None:
        if self.parts not in PARTS:
            raise ValueError(f"init.parts: expected one of {', '.join(PARTS)}, got {self.parts!r}")


def policy_for(
    dataset: Dataset | Joined,
    name: str,
    backbone: Mapping[str, Any],
    head: Mapping[str, Any],
    tokenizer: Mapping[str, Any] | None,
    *,
    max_committed: int,
    seed: int,
    executed: int | None = None,
    observation_offsets: Sequence[int] = (0,),
    initial: Initial = Initial(),
    heads: Mapping[str, Any] | None = None,
) -> VLAPolicy:
    """An untrained policy for a data set. backbone, head, tokenizer: names and options, as in configs.

    heads: classes of one's own by name. observation_offsets: as a PolicySpec's. With `initial` the state's transform is
    that of the checkpoint, since its trunk has learned what those numbers mean, and with all parts the action's and
    the tokenizer's, too. ValueError for names that are not known and for parts that do not fit each other or the
    checkpoint.
    """
    if not 0 <= max_committed < dataset.horizon:
        raise ValueError(f"max_committed: expected 0 to {dataset.horizon - 1} (less than horizon), got {max_committed}")
    contract, statistics = dataset.contract, dataset.statistics()
    action = Normalise.of(dataset.action, statistics[dataset.feature])
    state = Normalise.of(contract.state, statistics["observation.state"])
    spec = PolicySpec(
        name=name,
        cameras=tuple(camera for camera in contract.cameras if camera.name in dataset.cameras),
        state=contract.state,
        action=dataset.action,
        period=dataset.period,
        observation_offsets=tuple(observation_offsets),
        horizon=dataset.horizon,
        max_committed=max_committed,
        statistics=dataset.statistics_id(),
        seen=dataset.initial_states,
        executed=executed,
    )
    torch.manual_seed(seed)
    options = {key: value for key, value in backbone.items() if key != "name"}
    kind = backbone_class(backbone["name"])
    if len(spec.observation_offsets) > 1:
        if not getattr(kind, "takes_frames", False):
            raise ValueError(
                f"observation_offsets: expected [0], got {list(observation_offsets)}; {backbone['name']} looks at one "
                "moment, backbone=nano can look at several"
            )
        options["frames"] = len(spec.observation_offsets)
    network = kind.make(options, tuple(dataset.cameras), contract.state.size)
    source = None if initial.folder is None else _source(initial.folder, spec, network)
    if source is not None:
        state = source.state
        spec = replace(spec, seen=spec.seen | source.spec.seen)
        _copy(source.backbone, network, trunk_only=initial.parts == "trunk")
    whole = source if initial.parts == "all" else None
    if whole is not None:
        action = whole.action
        spec = replace(spec, statistics=whole.spec.statistics)
        words = getattr(whole.head, "tokenizer", None)
    else:
        words = _tokenizer(tokenizer, dataset, action)
    decoder = make_head(
        head["name"],
        network.width,
        dataset.horizon,
        dataset.action.size,
        {**{key: value for key, value in head.items() if key != "name"}, "max_committed": max_committed},
        words,
        heads,
    )
    if whole is not None:
        if whole.head.name != head["name"]:
            raise ValueError(
                f"init.parts=all: expected head={whole.head.name} as in {initial.folder}, got {head['name']}; "
                "take init.parts=backbone for another head"
            )
        _load(decoder, whole.head.state_dict(), f"{initial.folder}: head")
    return VLAPolicy(spec, network, decoder, state, action)


def _source(folder: str, spec: PolicySpec, network: Any) -> VLAPolicy:
    source = load_policy(folder)
    found: Any = source.backbone
    mine, theirs = ({"name": one.name, **one.state_of_config()} for one in (network, found))
    if mine != theirs:
        other = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]
        raise ValueError(
            f"init.folder={folder}: expected a backbone of the same sizes, got another in "
            + ", ".join(f"{key} ({_short(theirs.get(key))} there, {_short(mine.get(key))} here)" for key in other)
        )
    # What statistics a part was trained with is kept with it; all else must be the same.
    data, trained = (replace(Contract.of(one), statistics=None) for one in (spec, source.spec))
    require_match(data, trained, "the data set", f"init.folder={folder}")
    return source


def _short(value: object) -> str:
    # A tokenizer's text is long.
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _copy(source: Any, target: Any, trunk_only: bool) -> None:
    if not trunk_only:
        target.load_state_dict(source.state_dict())
        return
    with torch.no_grad():
        for mine, theirs in zip(target.trunk_parameters(), source.trunk_parameters(), strict=True):
            mine.copy_(theirs)


def _load(module: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ValueError(f"{what}: expected the same sizes as asked for now, got {error}") from error


def _tokenizer(values: Mapping[str, Any] | None, dataset: Dataset | Joined, action: Normalise) -> Bins | BSpline | None:
    if values is None:
        return None
    if values["name"] not in TOKENIZERS:
        raise ValueError(f"tokenizer: expected one of {sorted(TOKENIZERS)} or none, got {values['name']!r}")
    options = {key: value for key, value in values.items() if key != "name"}
    if values["name"] == "bins":
        return Bins(dataset.horizon, dataset.action.size, **options)
    spline = BSpline(dataset.horizon, dataset.action.size, binary=binary_dimensions(dataset.action), **options)
    learned = filter(dataset.foreseeable, range(len(dataset)))
    return spline.with_bounds_of(np.asarray(action.forward(dataset.answer(index).actions)) for index in learned)
