"""Published Florence-2 weights (arXiv 2311.06242) as transformers' own model: names, sizes, and nothing else.

They are published twice: with code of their own (microsoft/Florence-2-base and -large), and converted to
transformers' names (florence-community). Both are read strictly: a weight that is missing, unknown or of
another shape is an error that names it. Not read, because heads bring their own, are the output table, which is
the table of words again, and the bias of its logits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Florence2Config, Florence2Model

from policies.backbones.published import read_json

# What decides the network; the rest of transformers' configuration is about generating text.
_VISION = (
    *("in_channels", "depths", "patch_size", "patch_stride", "patch_padding", "patch_prenorm", "embed_dim"),
    *("num_heads", "num_groups", "window_size", "drop_path_rate", "mlp_ratio", "qkv_bias", "activation_function"),
    *("projection_dim", "max_temporal_embeddings", "max_position_embeddings"),
)
_TEXT = (
    *("vocab_size", "max_position_embeddings", "d_model", "activation_function", "scale_embedding", "pad_token_id"),
    *("encoder_layers", "encoder_ffn_dim", "encoder_attention_heads"),
    *("decoder_layers", "decoder_ffn_dim", "decoder_attention_heads"),
    *("dropout", "attention_dropout", "activation_dropout"),
)
# Values of the original's own code that transformers' model has built in.
_BUILT_IN = {
    "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
    "normalize_before": False,
    "add_final_layer_norm": False,
    "add_bias_logits": False,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}
_BLOCK = r"vision_tower\.blocks\.(\d+\.\d+)\.(\w+)_block\."
# transformers' names, and the original's.
_NAMES = tuple(
    (re.compile(ours), theirs)
    for ours, theirs in (
        (r"language_model\.(.+)", r"language_model.model.\1"),
        (r"multi_modal_projector\.image_projection\.weight", "image_projection"),
        (r"multi_modal_projector\.image_position_embed\.(.+)", r"image_pos_embed.\1"),
        (r"multi_modal_projector\.((?:image_proj_norm|visual_temporal_embed)\..+)", r"\1"),
        (r"vision_tower\.convs\.(\d+)\.conv\.(\w+)", r"vision_tower.convs.\1.proj.\2"),
        (r"vision_tower\.convs\.\d+\.norm\.\w+", r"\g<0>"),
        (_BLOCK + r"(conv[12])\.(\w+)", r"vision_tower.blocks.\1.\2_block.\3.fn.dw.\4"),
        (_BLOCK + r"(\w+_attn)\.(.+)", r"vision_tower.blocks.\1.\2_block.\3.fn.\4"),
        (_BLOCK.replace(r"\w+", "spatial") + r"norm1\.(\w+)", r"vision_tower.blocks.\1.\2_block.window_attn.norm.\3"),
        (_BLOCK.replace(r"\w+", "channel") + r"norm1\.(\w+)", r"vision_tower.blocks.\1.\2_block.channel_attn.norm.\3"),
        (_BLOCK + r"norm2\.(\w+)", r"vision_tower.blocks.\1.\2_block.ffn.norm.\3"),
        (_BLOCK + r"ffn\.(fc[12]\.\w+)", r"vision_tower.blocks.\1.\2_block.ffn.fn.net.\3"),
    )
)
_WORDS = "language_model.shared.weight"
# One table under up to four names; which of them a file holds depends on what wrote it.
_WORDS_AGAIN = ("language_model.encoder.embed_tokens.weight", "language_model.decoder.embed_tokens.weight")
_HEAD = {"original": "language_model.lm_head.weight", "converted": "lm_head.weight"}
_UNREAD = ("language_model.final_logits_bias",)


def florence_config(vision: Mapping[str, Any], text: Mapping[str, Any]) -> Florence2Config:
    """transformers' configuration from sizes; what is left out is its default. ValueError for an unknown name."""
    for group, values, known in (("vision", vision, _VISION), ("text", text, _TEXT)):
        for name in values:
            if name not in known:
                raise ValueError(f"config.{group}: expected names among {sorted(known)}, got {name!r}")
    config: Any = Florence2Config(vision_config=dict(vision), text_config={"model_type": "bart", **text})
    width, projection = config.text_config.d_model, config.vision_config.projection_dim
    if width != projection:
        raise ValueError(
            f"config: expected vision.projection_dim to be text.d_model, got {projection} and {width}; "
            "image and text tokens stand in one sequence"
        )
    return config  # type: ignore[no-any-return]


def sizes(config: Florence2Config) -> dict[str, dict[str, Any]]:
    """All that `florence_config` takes, as plain values: {vision, text}."""
    found = {}
    for group, part, names in (("vision", config.vision_config, _VISION), ("text", config.text_config, _TEXT)):
        values = {name: getattr(part, name) for name in names}
        found[group] = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return found


def build(config: Florence2Config) -> Florence2Model:
    """The untrained model. Its table of words has one name instead of three: words come in as embeddings."""
    model = Florence2Model(config)
    model.language_model.encoder.embed_tokens = None
    model.language_model.decoder.embed_tokens = None
    return model


def read_config(folder: Path) -> Florence2Config:
    """The configuration of published weights, in either layout. ValueError for what is no Florence-2."""
    path = folder / "config.json"
    document = read_json(path)
    if document.get("model_type") != "florence2":
        raise ValueError(f"{path}: model_type: expected 'florence2', got {document.get('model_type')!r}")
    if not document.get("vision_config") or not document.get("text_config"):
        raise ValueError(f"{path}: expected vision_config and text_config, got {sorted(document)}")
    vision, text = dict(document["vision_config"]), document["text_config"]
    if "dim_embed" in vision:
        vision["embed_dim"] = vision["dim_embed"]
        vision["max_temporal_embeddings"] = vision["visual_temporal_embedding"]["max_temporal_embeddings"]
        vision["max_position_embeddings"] = vision["image_pos_embed"]["max_pos_embeddings"]
    for name, value in _BUILT_IN.items():
        got = {**vision, **text}.get(name, value)
        if got != value:
            raise ValueError(f"{path}: {name}: expected {value!r}, got {got!r}; this network has no other")
    return florence_config(
        {name: vision[name] for name in _VISION if name in vision}, {name: text[name] for name in _TEXT if name in text}
    )


def read_model(config: Florence2Config, published: Mapping[str, Tensor]) -> Florence2Model:
    """The model with its weights, fp32. ValueError that names the weights that do not fit."""
    # Random numbers would be drawn only to be replaced.
    with torch.device("meta"):
        model = build(config)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    layout = "converted" if any(name.startswith("model.") for name in published) else "original"
    names = {ours: published_name(ours, layout) for ours in wanted}
    tables = [names[_WORDS], *(published_name(again, layout) for again in _WORDS_AGAIN), _HEAD[layout]]
    held = [name for name in tables if name in published]
    names[_WORDS] = held[0] if held else names[_WORDS]
    missing = sorted(set(names.values()) - published.keys())
    unknown = sorted(published.keys() - set(names.values()) - set(held) - set(_UNREAD))
    if missing or unknown:
        raise ValueError(
            f"Florence-2 weights, {layout} layout: missing {missing[:5]} ({len(missing)}), unknown {unknown[:5]} "
            f"({len(unknown)}); expected whole weights as published, with the config.json beside them"
        )
    values = {}
    for ours, name in names.items():
        value = published[name].T if name == "image_projection" else published[name]
        if value.shape != wanted[ours]:
            raise ValueError(
                f"Florence-2 weights: {name}: expected {list(published_shape(ours, wanted[ours], layout))}, "
                f"got {list(published[name].shape)}; config.json and weights are of different models"
            )
        values[ours] = value.to(torch.float32, copy=True).contiguous()
    for name in held[1:]:
        if not torch.equal(published[name].to(torch.float32), values[_WORDS]):
            raise ValueError(f"Florence-2 weights: {name}: expected the same table as {held[0]}, got another one")
    model.load_state_dict(values, assign=True)
    return model


def published_name(ours: str, layout: str) -> str:
    """The published name of a weight of ours. layout: original or converted."""
    if layout == "converted":
        return f"model.{ours}"
    for pattern, theirs in _NAMES:
        if found := pattern.fullmatch(ours):
            return found.expand(theirs)
    raise AssertionError(f"no published name is known for {ours}")


def published_shape(ours: str, shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """The published shape of a weight of ours: the original's projection stands the other way round."""
    return shape[::-1] if published_name(ours, layout) == "image_projection" else shape
