"""Published shapes with random weights: what decoding costs there, and nothing about what it is worth.

`preset_policy` makes a policy from a preset's plain values (configs/preset), `random_observations` what it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PI0Config, PI0ForConditionalGeneration

from policies.checkpoint import TOKENIZERS, backbone_class, make_head
from policies.decoding import Decode
from policies.images import resize
from policies.pi0 import Pi0
from policies.precision import precision_of, set_precision
from policies.tokenizers.bspline import BSpline
from policies.vla import VLAPolicy
from vla_runtime.transforms import Normalise
from vla_runtime.types import ActionSpec, CameraSpec, Float, Group, Observation, PolicySpec, StateSpec

INSTRUCTION = "pick up the alphabet soup and place it in the basket"
_PERIOD = 0.05


def preset_policy(
    values: Mapping[str, Any], device: torch.device | str = "cpu", precision: str = "fp32", seed: int = 0
) -> VLAPolicy:
    """An untrained policy of a preset's shape. ValueError where the preset needs a device that is not asked for."""
    needs = values.get("needs")
    if needs is not None and torch.device(device).type != needs:
        raise ValueError(f"preset={values['name']}: expected device={needs}, got {device}; it is too large for another")
    size, rows = values["action"], values["horizon"]
    spec = _spec(values)
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
    for part in (backbone, head):
        part.requires_grad_(False)
    set_precision(backbone, [head], device, Decode(precision=precision).precision or "fp32")
    state, action = (Normalise([-1.0] * count, [1.0] * count) for count in (values["state"], size))
    return VLAPolicy(spec, backbone, head, state, action)


class Pi0Subject:
    """transformers' pi0 with random weights, as far as a benchmark asks a policy: batches in, rows out."""

    def __init__(
        self, values: Mapping[str, Any], device: torch.device | str = "cpu", precision: str = "fp32", seed: int = 0
    ):
        self.device = torch.device(device)
        torch.manual_seed(seed)
        config = PI0Config(chunk_size=values["horizon"], **values.get("model", {}))
        with self.device:
            model = PI0ForConditionalGeneration(config)
        weights: Any = model.requires_grad_(False)
        set_precision(weights, [], device, Decode(precision=precision).precision or "fp32")
        self.backbone = Pi0(weights)
        self.spec = _spec({**values, "max_committed": 0})
        self.chunk_shape = (config.chunk_size, config.max_action_dim)
        self.action = Normalise([-1.0] * values["action"], [1.0] * values["action"])
        self._sizes: Any = config

    @property
    def dtype(self) -> torch.dtype:
        """Of what is computed."""
        return next(self.backbone.model.parameters()).dtype  # type: ignore[no-any-return]

    @property
    def precision(self) -> str:
        """Of the weights."""
        return precision_of(self.backbone.model)

    def batch(self, seen: Sequence[Sequence[Observation]]) -> dict[str, Tensor]:
        """What `Pi0.features` takes; images are resized to the tower's size, from -1 to 1."""
        vision = self._sizes.vlm_config.vision_config
        observations = [one[-1] for one in seen]
        views = torch.stack([
            torch.stack([torch.from_numpy(one.images[name]) for name in sorted(one.images)]) for one in observations
        ])  # fmt: skip
        pixels = resize(views.flatten(0, 1), vision.image_size).permute(0, 3, 1, 2).float() / 127.5 - 1
        image_tokens = views.shape[1] * (vision.image_size // vision.patch_size) ** 2
        # Words are numbers below the image token's; that they mean nothing does not matter to the time they take.
        words = torch.arange(1, 1 + len(INSTRUCTION.split()))
        ids = torch.cat([torch.full((image_tokens,), self._sizes.vlm_config.image_token_id), words])
        states = torch.zeros(len(observations), self._sizes.max_state_dim)
        for row, one in zip(states, observations, strict=True):
            row[: len(one.state)] = torch.from_numpy(one.state)
        ids = ids.expand(len(observations), -1)
        found = {
            "state_BS": states.to(self.dtype), "ids_BN": ids, "keep_BN": torch.ones_like(ids),
            "pixels_BC3HW": pixels.reshape(*views.shape[:2], *pixels.shape[1:]).to(self.dtype),
            "cameras_BC": torch.ones(views.shape[:2], dtype=torch.bool),
        }  # fmt: skip
        return {name: value.to(self.device) for name, value in found.items()}

    def actions(self, unit_BTA: Tensor) -> Float:
        """The first of the padded dimensions, those that the robot has."""
        return self.action.backward(unit_BTA[..., : self.spec.action.size].float().cpu().numpy())


def random_observations(spec: PolicySpec, count: int, seed: int = 0) -> list[Observation]:
    """What no camera has seen: noise of the right shape."""
    rng = np.random.default_rng(seed)
    return [
        Observation(
            state=rng.uniform(-1, 1, spec.state.size).astype(np.float32),
            images={
                camera.name: rng.integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
                for camera in spec.cameras
            },
            instruction=INSTRUCTION,
            time=index * _PERIOD,
        )
        for index in range(count)
    ]


def _spec(values: Mapping[str, Any]) -> PolicySpec:
    pixels = values["camera_pixels"]
    return PolicySpec(
        name=values["name"],
        cameras=tuple(CameraSpec(name, pixels, pixels) for name in values["cameras"]),
        state=StateSpec((_group("measured", values["state"]),)),
        action=ActionSpec((_group("absolute", values["action"]),)),
        period=_PERIOD,
        horizon=values["horizon"],
        max_committed=values["max_committed"],
        executed=values["executed"],
    )


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
