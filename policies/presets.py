"""Published shapes with random weights: what decoding costs there, and nothing about what it is worth.

`preset_policy` makes a policy from a preset's plain values (configs/preset), `random_observations` what it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from policies.checkpoint import TOKENIZERS, backbone_class, make_head
from policies.tokenizers.bspline import BSpline
from policies.vla import VLAPolicy
from vla_runtime.transforms import Normalise
from vla_runtime.types import ActionSpec, CameraSpec, Group, Observation, PolicySpec, StateSpec

INSTRUCTION = "pick up the alphabet soup and place it in the basket"
_PERIOD = 0.05


def preset_policy(values: Mapping[str, Any], device: torch.device | str = "cpu", seed: int = 0) -> VLAPolicy:
    """An untrained policy of a preset's shape. ValueError where the preset needs a device that is not asked for."""
    needs = values.get("needs")
    if needs is not None and torch.device(device).type != needs:
        raise ValueError(f"preset={values['name']}: expected device={needs}, got {device}; it is too large for another")
    size, rows = values["action"], values["horizon"]
    spec = PolicySpec(
        name=values["name"],
        cameras=tuple(CameraSpec(name, values["camera_pixels"], values["camera_pixels"]) for name in values["cameras"]),
        state=StateSpec((_group("measured", values["state"]),)),
        action=ActionSpec((_group("absolute", size),)),
        period=_PERIOD,
        horizon=rows,
        max_committed=values["max_committed"],
        executed=values["executed"],
    )
    torch.manual_seed(seed)
    with torch.device(device):
        backbone = _backbone(values["backbone"], values["cameras"], values["state"])
    words = None
    if values["tokenizer"] is not None:
        options = {key: value for key, value in values["tokenizer"].items() if key != "name"}
        words = TOKENIZERS[values["tokenizer"]["name"]](rows, size, **options)
        if isinstance(words, BSpline):
            drawn = np.random.default_rng(seed).uniform(-1, 1, (64, rows, size)).astype(np.float32)
            words = words.with_bounds_of(drawn)
    options = {key: value for key, value in values["head"].items() if key != "name"}
    options["max_committed"] = values["max_committed"]
    head = make_head(values["head"]["name"], backbone.width, rows, size, options, words).to(device)
    backbone, head = backbone.requires_grad_(False), head.requires_grad_(False)
    state, action = (Normalise([-1.0] * count, [1.0] * count) for count in (values["state"], size))
    return VLAPolicy(spec, backbone, head, state, action)


def random_observations(policy: VLAPolicy, count: int, seed: int = 0) -> list[Observation]:
    """What no camera has seen: noise of the right shape."""
    rng = np.random.default_rng(seed)
    return [
        Observation(
            state=rng.uniform(-1, 1, policy.spec.state.size).astype(np.float32),
            images={
                camera.name: rng.integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
                for camera in policy.spec.cameras
            },
            instruction=INSTRUCTION,
            time=index * _PERIOD,
        )
        for index in range(count)
    ]


def _backbone(values: Mapping[str, Any], cameras: Sequence[str], state: int) -> Any:
    options = {key: value for key, value in values.items() if key != "name"}
    made = backbone_class(values["name"])
    if values["name"] == "nano":
        return made.make(options, cameras, state)
    return made.from_config({**options, "cameras": cameras, "state_size": state, "tokenizer": _words()})


def _words() -> str:
    """A tokenizer to whom all words are alike: prompts are about as long as with a published one."""
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return str(tokenizer.to_str())


def _group(kind: str, size: int) -> Group:
    dims = tuple(f"{kind}_{index}" for index in range(size))
    return Group("all", dims, kind, "1", (-1.0,) * size, (1.0,) * size)
