"""Names and shapes of OpenVLA's weights, and that they are taken whole."""

from __future__ import annotations

import math

import pytest
import torch
from openvla_layout import published, words

from policies.backbones.openvla_keys import TOWERS, fill
from policies.backbones.prismatic import Prismatic, PrismaticConfig
from policies.backbones.prismatic_slots import LanguageConfig

DINO, SIGLIP = TOWERS.values()
FULL = published(DINO, SIGLIP, LanguageConfig(), 256)


def test_the_list_adds_up_to_what_is_known_of_openvla_7b():
    """Tensors of each part, parameters of all, and those of adapters of rank 32 as its fine-tuning prints them."""
    parts = [
        sum(name.startswith(part) for name in FULL) for part in ("vision_backbone.", "projector.", "language_model.")
    ]
    assert parts == [685, 6, 291]
    assert sum(map(math.prod, FULL.values())) == 7_541_237_184
    matrices = [(shape[0], math.prod(shape[1:])) for name, shape in FULL.items()
                if name.endswith("weight") and len(shape) > 1 and "embed_tokens" not in name]  # fmt: skip
    assert sum(32 * (rows + columns) for rows, columns in matrices) == 110_828_288


@pytest.fixture(scope="module")
def openvla_7b():
    """Its sizes without numbers."""
    config = PrismaticConfig(("front", "wrist"), 8, words().to_str(), DINO, SIGLIP, LanguageConfig())
    with torch.device("meta"):
        return Prismatic(config)


def tensors(shapes):
    return {name: torch.empty(shape, device="meta", dtype=torch.bfloat16) for name, shape in shapes.items()}


def test_openvla_7b_is_taken_whole(openvla_7b):
    fill(openvla_7b, tensors(FULL), torch.bfloat16)
    taken = {name: value for name, value in openvla_7b.state_dict().items() if not name.startswith("proprio.")}
    assert {value.dtype for value in taken.values()} == {torch.bfloat16}
    unread = [name for name in FULL if ".blocks.23." in name and "fused" not in name]
    unread += [
        name
        for name in FULL
        if "fused_featurizer.blocks.26." in name or "attn_pool" in name or "featurizer.norm." in name
    ]
    fill(openvla_7b, tensors({name: FULL[name] for name in FULL if name not in unread}), torch.bfloat16)
    # A tower's queries, keys and values are one tensor there and three here; DINOv2 gains the class token's place.
    read = sum(math.prod(FULL[name]) for name in FULL if name not in unread)
    assert sum(value.numel() for value in taken.values()) == read + DINO.width


@pytest.mark.parametrize(
    "name",
    [
        "vision_backbone.featurizer.blocks.22.attn.qkv.bias",
        "vision_backbone.featurizer.blocks.0.ls1.scale_factor",
        "vision_backbone.featurizer.reg_token",
        "vision_backbone.fused_featurizer.pos_embed",
        "vision_backbone.fused_featurizer.blocks.25.mlp.fc2.weight",
        "projector.fc3.bias",
        "language_model.model.layers.31.self_attn.o_proj.weight",
        "language_model.lm_head.weight",
    ],
)
def test_a_weight_that_is_missing_unknown_or_of_another_shape_is_named(openvla_7b, name):
    shapes = {key: shape for key, shape in FULL.items() if key != name}
    with pytest.raises(ValueError, match=rf"missing \['{name}'\] \(1\), unknown \[\] \(0\)"):
        fill(openvla_7b, tensors(shapes), torch.bfloat16)
    with pytest.raises(ValueError, match=rf"missing \[\] \(0\), unknown \['{name}.new'\] \(1\)"):
        fill(openvla_7b, tensors({**FULL, f"{name}.new": (3,)}), torch.bfloat16)
    larger = (*FULL[name][:-1], FULL[name][-1] + 3)
    with pytest.raises(ValueError, match=f"{name}: expected "):
        fill(openvla_7b, tensors({**FULL, name: larger}), torch.bfloat16)
