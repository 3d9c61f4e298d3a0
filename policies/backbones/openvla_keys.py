"""Published OpenVLA weights (arXiv 2406.09246) under the names of our modules: what lies where, and nothing else.

Their vision towers are timm's (queries, keys and values in one matrix, no position for class and register
tokens), their language model is transformers' own. Reading is strict: a weight that is missing, unknown or of
another shape is an error that names it. It knows neither how the model computes nor what it is used for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from policies.backbones.prismatic_slots import LanguageConfig
from policies.backbones.prismatic_vision import TowerConfig
from policies.backbones.published import read_json

# timm's towers in OpenVLA, by their names there, in its order. How pictures are normalised is read beside the weights.
TOWERS = {
    "vit_large_patch14_reg4_dinov2.lvd142m": TowerConfig(width=1024, depth=24, heads=16, feed=4096),
    "vit_so400m_patch14_siglip_224": TowerConfig(width=1152, depth=27, heads=16, feed=4304),
}
_NEEDED = ("timm_model_ids", "image_sizes", "text_config", "pad_to_multiple_of")
_PICTURES = ("means", "stds")
# Patterns of the files that are read, the tokenizer among them.
FILES = ("*.json", "*.safetensors", "proprio_projector--*.pt")
_DINO, _SIGLIP = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."
# Our names, and where their weights lie in the published ones.
_NAMES = tuple(
    (re.compile(ours), theirs)
    for ours, theirs in (
        (r"vision\.dino\.embeddings\.patch_embeddings\.projection\.(\w+)", _DINO + r"patch_embed.proj.\1"),
        (r"vision\.dino\.embeddings\.cls_token", _DINO + "cls_token"),
        (r"vision\.dino\.embeddings\.register_tokens", _DINO + "reg_token"),
        (r"vision\.dino\.embeddings\.position_embeddings", _DINO + "pos_embed"),
        (r"vision\.dino\.encoder\.layer\.(\d+)\.norm([12])\.(\w+)", _DINO + r"blocks.\1.norm\2.\3"),
        # transformers 5.17 has the second name of each, 5.23 the first.
        (
            r"vision\.dino\.encoder\.layer\.(\d+)\.attention\.(?:[qkv]_proj|attention\.(?:query|key|value))\.(\w+)",
            _DINO + r"blocks.\1.attn.qkv.\2",
        ),
        (
            r"vision\.dino\.encoder\.layer\.(\d+)\.attention\.(?:o_proj|output\.dense)\.(\w+)",
            _DINO + r"blocks.\1.attn.proj.\2",
        ),
        (r"vision\.dino\.encoder\.layer\.(\d+)\.mlp\.fc([12])\.(\w+)", _DINO + r"blocks.\1.mlp.fc\2.\3"),
        (r"vision\.dino\.encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", _DINO + r"blocks.\1.ls\2.scale_factor"),
        (r"vision\.siglip\.embeddings\.patch_embedding\.(\w+)", _SIGLIP + r"patch_embed.proj.\1"),
        (r"vision\.siglip\.embeddings\.position_embedding\.weight", _SIGLIP + "pos_embed"),
        (r"vision\.siglip\.encoder\.layers\.(\d+)\.layer_norm([12])\.(\w+)", _SIGLIP + r"blocks.\1.norm\2.\3"),
        (r"vision\.siglip\.encoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.(\w+)", _SIGLIP + r"blocks.\1.attn.qkv.\2"),
        (r"vision\.siglip\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.(\w+)", _SIGLIP + r"blocks.\1.attn.proj.\2"),
        (r"vision\.siglip\.encoder\.layers\.(\d+)\.mlp\.fc([12])\.(\w+)", _SIGLIP + r"blocks.\1.mlp.fc\2.\3"),
        (r"(?:projector|language_model)\..+", r"\g<0>"),
    )
)


def read_sizes(folder: Path, towers: Mapping[str, TowerConfig] = TOWERS) -> dict[str, Any]:
    """Fields of a `PrismaticConfig` that the folder's config files decide.

    ValueError for files that are missing, and for what is no OpenVLA as it is built here.
    """
    path = folder / "config.json"
    document, pictures = read_json(path), read_json(folder / "preprocessor_config.json")
    wanted = {"model_type": "openvla", "use_fused_vision_backbone": True, "timm_override_act_layers": [None, None]}
    for key, value in wanted.items():
        if document.get(key) != value:
            raise ValueError(f"{path}: {key}: expected {value!r}, got {document.get(key)!r}")
    absent = [key for key in _NEEDED if key not in document] + [key for key in _PICTURES if key not in pictures]
    if absent:
        raise ValueError(
            f"{folder}: expected {list(_NEEDED)} in config.json and {list(_PICTURES)} in "
            f"preprocessor_config.json, got none of the name {absent}"
        )
    names, sizes = document["timm_model_ids"], document["image_sizes"]
    if names != list(towers):
        raise ValueError(f"{path}: timm_model_ids: expected {list(towers)}, got {names}")
    if len(set(sizes)) != 1:
        raise ValueError(f"{path}: image_sizes: expected one size for both towers, got {sizes}")
    language = _language(document["text_config"], path)
    end = language.vocabulary - document["pad_to_multiple_of"]
    dino, siglip = (
        # openvla-7b states them rounded to bfloat16, and its weights are used with pictures made that way.
        replace(towers[name], mean=tuple(mean), deviation=tuple(deviation))
        for name, mean, deviation in zip(names, pictures["means"], pictures["stds"], strict=True)
    )
    return {
        "dino": dino,
        "siglip": siglip,
        "language": language,
        "image_size": sizes[0],
        "action_end": end,
        # The first row behind the vocabulary pads, the second one is Discrete Diffusion VLA's mask.
        "mask_id": end + 1,
    }


def fill(module: nn.Module, published: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Give a `Prismatic` its weights, all but the proprioception's. ValueError that names what does not fit.

    Left unread are each tower's last block, final norm and pooling, which the read-out never reaches.
    """
    own = module.state_dict()
    wanted = {ours: _published_name(ours) for ours in own if not ours.startswith("proprio.")}
    unread = _unread(module.config)
    missing = sorted(set(wanted.values()) - published.keys())
    unknown = sorted(name for name in published.keys() - set(wanted.values()) if not unread.match(name))
    if missing or unknown:
        raise ValueError(
            f"OpenVLA weights: missing {missing[:5]} ({len(missing)}), unknown {unknown[:5]} ({len(unknown)}); "
            "expected whole, merged weights in the layout of openvla-7b"
        )
    values = {}
    for ours, name in wanted.items():
        value = _converted(ours, published[name])
        if value.shape != own[ours].shape:
            raise ValueError(
                f"OpenVLA weights: {name}: expected {list(own[ours].shape)} for {ours}, got {list(value.shape)}"
            )
        values[ours] = value.to(dtype, copy=True)
    module.load_state_dict(values, strict=False, assign=True)


def find_proprio(folder: Path) -> Path | None:
    """The file of OpenVLA-OFT's proprioception projector, None where there is none. ValueError for several."""
    files = sorted(folder.glob("proprio_projector--*_checkpoint.pt"))
    if len(files) > 1:
        raise ValueError(
            f"{folder}: expected one proprioception projector, got {[file.name for file in files]}; keep the one "
            "of the weights' own training step"
        )
    return files[0] if files else None


def fill_proprio(module: nn.Module, file: Path) -> None:
    """Give a proprioception projector its weights. ValueError for other names or shapes."""
    # Saved from the bare module, or from a data-parallel wrapper that held it.
    found = {
        key.removeprefix("module."): value
        for key, value in torch.load(file, map_location="cpu", weights_only=True).items()
    }
    shapes = {key: list(value.shape) for key, value in found.items()}
    wanted = {key: list(value.shape) for key, value in module.state_dict().items()}
    if shapes != wanted:
        raise ValueError(f"{file}: expected {wanted}, got {shapes}; state_size is the second size of fc1.weight")
    module.load_state_dict(found)


def _published_name(ours: str) -> str:
    for pattern, theirs in _NAMES:
        if found := pattern.fullmatch(ours):
            return found.expand(theirs)
    raise AssertionError(f"no published name is known for {ours}")


def _converted(ours: str, value: Tensor) -> Tensor:
    if found := re.fullmatch(r"vision\..*\.(?:([qkv])_proj|([qkv])(?:uery|ey|alue))\.\w+", ours):
        return value.chunk(3)["qkv".index(found[1] or found[2])]
    if ours.endswith(".position_embeddings"):
        # timm has added the class token's place to the class token.
        return torch.cat([torch.zeros_like(value[:, :1]), value], dim=1)
    if ours.endswith(".position_embedding.weight"):
        return value[0]
    return value


def _unread(config: Any) -> re.Pattern[str]:
    dino = rf"{re.escape(_DINO)}(norm|blocks\.{config.dino.depth - 1})\."
    siglip = rf"{re.escape(_SIGLIP)}(norm|attn_pool|blocks\.{config.siglip.depth - 1})\."
    return re.compile(f"{dino}|{siglip}")


def _language(text: Mapping[str, Any], path: Path) -> LanguageConfig:
    """What is not written there is LlamaConfig's default, as the published model's own code reads it."""
    theirs: Any = LlamaConfig(**text)
    sizes = LanguageConfig(
        width=theirs.hidden_size,
        feed=theirs.intermediate_size,
        depth=theirs.num_hidden_layers,
        heads=theirs.num_attention_heads,
        key_value_heads=theirs.num_key_value_heads,
        vocabulary=theirs.vocab_size,
        norm_eps=theirs.rms_norm_eps,
        rope_theta=theirs.rope_parameters["rope_theta"],
    )
    ours = sizes.llama()
    for name in ("attention_bias", "mlp_bias", "hidden_act", "head_dim", "rope_parameters", "tie_word_embeddings"):
        if getattr(theirs, name) != getattr(ours, name):
            raise ValueError(
                f"{path}: text_config: {name}: expected {getattr(ours, name)!r}, got {getattr(theirs, name)!r}"
            )
    return sizes
