"""Published Florence-2 weights: the names they have, read strictly, in both layouts they are published in.

The list of names and shapes below was written from the public model code of microsoft/Florence-2-base and from
transformers' public conversion script, not read from the weights. What ties it to them is their size: names,
shapes and type decide how many bytes a safetensors file has, and public download lists state those of
microsoft/Florence-2-base and -large.
"""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Florence2Config, Florence2ForConditionalGeneration

from policies.backbones.florence2 import Florence2
from policies.backbones.florence2_keys import read_config, read_model
from policies.batch import Batch

# Bytes of model.safetensors, fp16.
PUBLISHED_BYTES = {"base": 463221266, "large": 1553563458}
SHARED = "language_model.model.shared.weight"
TIED = (
    "language_model.lm_head.weight",
    "language_model.model.encoder.embed_tokens.weight",
    "language_model.model.decoder.embed_tokens.weight",
)


def config_json(stages, heads, d_model, layers, attention_heads, places, words=51289):
    """The parts of a published config.json that decide the network, in the original's words."""
    return {
        "model_type": "florence2",
        "vision_config": {
            "model_type": "davit", "drop_path_rate": 0.1, "patch_size": [7, 3, 3, 3], "patch_stride": [4, 2, 2, 2],
            "patch_padding": [3, 1, 1, 1], "patch_prenorm": [False, True, True, True], "enable_checkpoint": False,
            "dim_embed": stages, "num_heads": heads, "num_groups": heads, "depths": [1, 1, 9, 1], "window_size": 12,
            "projection_dim": d_model,
            "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": 100},
            "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": 50},
            "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
        },
        "text_config": {
            "model_type": "florence2_language", "vocab_size": words, "d_model": d_model, "pad_token_id": 1,
            "encoder_layers": layers, "encoder_ffn_dim": 4 * d_model, "encoder_attention_heads": attention_heads,
            "decoder_layers": layers, "decoder_ffn_dim": 4 * d_model, "decoder_attention_heads": attention_heads,
            "max_position_embeddings": places, "activation_function": "gelu", "scale_embedding": False,
            "dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1, "normalize_before": False,
            "add_final_layer_norm": False, "encoder_layerdrop": 0.0, "num_beams": 3,
        },
    }  # fmt: skip


CONFIGS = {
    "base": config_json([128, 256, 512, 1024], [4, 8, 16, 32], 768, 6, 12, 1024),
    "large": config_json([256, 512, 1024, 2048], [8, 16, 32, 64], 1024, 12, 16, 4096),
}
TINY = config_json([8, 8, 16, 16], [2, 2, 2, 2], 16, 1, 2, 128, words=300)
TINY["vision_config"] |= {"depths": [1, 1, 2, 1], "window_size": 3}


def published(config):
    """Every name in model.safetensors of the original layout, and its shape."""
    vision, text = config["vision_config"], config["text_config"]
    stages, width, feed = vision["dim_embed"], text["d_model"], text["encoder_ffn_dim"]
    found = {
        "image_projection": [stages[-1], width],
        "image_pos_embed.row_embeddings.weight": [50, stages[-1] // 2],
        "image_pos_embed.column_embeddings.weight": [50, stages[-1] // 2],
        "visual_temporal_embed.pos_idx_to_embed": [100, stages[-1]],
        "language_model.final_logits_bias": [1, text["vocab_size"]],
        SHARED: [text["vocab_size"], width],
    }

    def affine(name, *shape):
        """A linear layer or a convolution: out, in, kernel; or a norm: its width."""
        found[f"{name}.weight"], found[f"{name}.bias"] = list(shape), [shape[0]]

    affine("image_proj_norm", width)
    for stage, (size, kernel) in enumerate(zip(stages, vision["patch_size"], strict=True)):
        before = stages[stage - 1] if stage else 3
        affine(f"vision_tower.convs.{stage}.proj", size, before, kernel, kernel)
        affine(f"vision_tower.convs.{stage}.norm", before if stage else size)
        for block in range(vision["depths"][stage]):
            for kind, attention in (("spatial", "window_attn"), ("channel", "channel_attn")):
                place = f"vision_tower.blocks.{stage}.{block}.{kind}_block"
                affine(f"{place}.conv1.fn.dw", size, 1, 3, 3)
                affine(f"{place}.{attention}.norm", size)
                affine(f"{place}.{attention}.fn.qkv", 3 * size, size)
                affine(f"{place}.{attention}.fn.proj", size, size)
                affine(f"{place}.conv2.fn.dw", size, 1, 3, 3)
                affine(f"{place}.ffn.norm", size)
                affine(f"{place}.ffn.fn.net.fc1", 4 * size, size)
                affine(f"{place}.ffn.fn.net.fc2", size, 4 * size)
    for side, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        place = f"language_model.model.{side}"
        found[f"{place}.embed_positions.weight"] = [text["max_position_embeddings"] + 2, width]
        affine(f"{place}.layernorm_embedding", width)
        for layer in range(text[f"{side}_layers"]):
            for attention in attentions:
                for part in ("q", "k", "v", "out"):
                    affine(f"{place}.layers.{layer}.{attention}.{part}_proj", width, width)
                affine(f"{place}.layers.{layer}.{attention}_layer_norm", width)
            affine(f"{place}.layers.{layer}.fc1", feed, width)
            affine(f"{place}.layers.{layer}.fc2", width, feed)
            affine(f"{place}.layers.{layer}.final_layer_norm", width)
    return found


def file_bytes(shapes):
    """Bytes of a safetensors file of fp16: eight for a length, a JSON header filled up to eights, the numbers."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(shapes):
        begin, end = end, end + 2 * math.prod(shapes[name])
        header[name] = {"dtype": "F16", "shape": shapes[name], "data_offsets": [begin, end]}
    return 8 + math.ceil(len(json.dumps(header, separators=(",", ":"))) / 8) * 8 + end


@pytest.fixture
def folder(tmp_path):
    """A tiny model in the original layout, its weights drawn by the list."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: (0.2 * torch.randn(shape, generator=generator)).half().contiguous()
        for name, shape in published(TINY).items()
    }
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    alphabet = {word: number for number, word in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=5)}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def rewritten(folder, change):
    weights = weights_of(folder)
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder, **options):
    options = {"image_size": 40, "max_text_tokens": 12, "prompt": "{instruction}", **options}
    return Florence2.from_pretrained(folder, ("front",), 2, **options)


def answer(backbone):
    """What it says of one observation, with our own new parts put to something fixed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in (backbone.primitives, *backbone.state.parameters()):
            value.copy_(torch.randn(value.shape, generator=generator))
        image = torch.randint(0, 256, (1, 40, 40, 3), generator=generator, dtype=torch.uint8)
        return backbone(Batch({"front": image}, torch.ones(1, 2), ("lift",)), torch.ones(1, 3, backbone.width))


def transformers_name(name):
    """The converted layout's name of an original one, as transformers' conversion script has it."""
    if name.startswith("language_model.model."):
        return "model." + name.replace(".model.", ".")
    if name.startswith(("image_", "visual_")):
        name = name.replace("image_pos_embed", "image_position_embed")
        return "model.multi_modal_projector." + (f"{name}.weight" if name == "image_projection" else name)
    for before, after in (
        (r"(convs\.\d)\.proj", r"\1.conv"),
        (r"(?:window|channel)_attn\.norm", "norm1"),
        (r"ffn\.norm", "norm2"),
        (r"\.fn\.(?:dw|net)", ""),
        (r"\.fn\.", "."),
    ):
        name = re.sub(before, after, name)
    return f"model.{name}"


def converted(folder):
    """transformers' published class with the same weights."""
    weights = {
        transformers_name(name): value.float().T if name == "image_projection" else value.float()
        for name, value in weights_of(folder).items()
        if name != "language_model.final_logits_bias"
    }
    config = read_config(folder)
    theirs = Florence2ForConditionalGeneration(config)
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith(("embed_tokens.weight", "lm_head.weight")) for name in missing)
    theirs.tie_weights()
    return theirs.eval()


@pytest.mark.parametrize("size", ["base", "large"])
def test_the_list_makes_the_published_file_to_the_byte(size):
    assert file_bytes(published(CONFIGS[size])) == PUBLISHED_BYTES[size]


def test_a_file_has_as_many_bytes_as_its_names_say(folder):
    assert (folder / "model.safetensors").stat().st_size == file_bytes(published(TINY))


@pytest.mark.parametrize("size", ["base", "large"])
def test_the_model_takes_exactly_the_published_names_and_shapes(tmp_path, size):
    """Without memory: on torch's meta device. Nothing is missing, nothing is left but the bias of the logits."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[size]))
    config = read_config(tmp_path)
    shapes = published(CONFIGS[size])
    model = read_model(config, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    taken = sum(value.numel() for value in model.state_dict().values())
    assert taken == sum(math.prod(shape) for shape in shapes.values()) - 51289
    text, vision = config.text_config, config.vision_config
    assert (text.dropout, text.attention_dropout, text.activation_dropout, text.pad_token_id) == (0.1, 0.1, 0.1, 1)
    assert (vision.window_size, vision.mlp_ratio, vision.qkv_bias, vision.drop_path_rate) == (12, 4.0, True, 0.1)


def test_both_layouts_and_files_in_pieces_give_the_same_model(folder, tmp_path):
    first = load(folder)
    wanted = answer(first)
    theirs = converted(folder)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, theirs.model.state_dict()[name]), name
    for name, size in (("whole", "1GB"), ("pieces", "40KB")):
        theirs.save_pretrained(tmp_path / name, max_shard_size=size)
        (tmp_path / name / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
        assert torch.equal(answer(load(tmp_path / name)), wanted)
    assert len(list((tmp_path / "pieces").glob("*.safetensors"))) > 1
    assert not (tmp_path / "whole" / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("names", [TIED[:1], TIED[1:], TIED])
def test_the_table_of_words_may_lie_under_any_of_its_names(folder, names):
    wanted = answer(load(folder))
    rewritten(folder, lambda weights: weights.update({name: weights[SHARED].clone() for name in names}))
    assert torch.equal(answer(load(folder)), wanted)
    rewritten(folder, lambda weights: weights.pop(SHARED))
    assert torch.equal(answer(load(folder)), wanted)


def test_published_weights_come_back_in_fp32_ready_to_use_and_to_learn(folder):
    backbone = load(folder, slot_attention="uniform")
    assert not backbone.training
    assert {value.dtype for value in backbone.parameters()} == {torch.float32}
    assert {value.device.type for value in backbone.state_dict().values()} == {"cpu"}
    assert all(value.requires_grad for value in backbone.parameters())
    assert backbone.config.slot_attention == "uniform"
    made = Florence2.make({"pretrained": str(folder), "image_size": 64}, ("front", "wrist"), 7)
    assert (made.image_size, made.config.cameras, made.config.state_size) == (64, ("front", "wrist"), 7)


NORM = "vision_tower.blocks.2.1.channel_block.channel_attn.norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(NORM), rf"missing \['{NORM}'\] \(1\), unknown \[\]"),
        (lambda weights: weights.pop(SHARED), rf"missing \['{SHARED}'\]"),
        (lambda weights: weights.update(extra=torch.zeros(1)), r"missing \[\] \(0\), unknown \['extra'\] \(1\)"),
        (lambda weights: weights.update({NORM: torch.zeros(5)}), rf"{NORM}: expected \[16\], got \[5\]"),
        (lambda weights: weights.update(image_projection=torch.zeros(16, 8)), r"expected \[16, 16\], got \[16, 8\]"),
        (lambda weights: weights.update({TIED[0]: torch.zeros(300, 16)}), f"{TIED[0]}: expected the same table"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder, change, message):
    rewritten(folder, change)
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        (None, "model_type", "openvla", "model_type: expected 'florence2', got 'openvla'"),
        (None, "text_config", None, "expected vision_config and text_config"),
        ("vision_config", "image_feature_source", ["last_frame"], "image_feature_source: .*no other"),
        ("text_config", "normalize_before", True, "normalize_before: expected False, got True"),
        ("text_config", "d_model", 32, "projection_dim to be text.d_model, got 16 and 32"),
    ],
)
def test_another_model_is_refused_by_its_config(folder, part, name, value, message):
    changed = {**TINY, name: value} if part is None else {**TINY, part: {**TINY[part], name: value}}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_files_that_are_missing_or_broken_are_named(folder):
    (folder / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"model.safetensors: expected whole safetensors"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model.safetensors: expected whole safetensors"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: expected JSON"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json: expected a file"):
        load(folder)
    with pytest.raises(ValueError, match="a folder or an id on the model hub, got 'no/such/folder'"):
        load("no/such/folder")


def test_transformers_reads_the_same_sizes(folder, tmp_path):
    """What is written of a converted model is read back whole."""
    config = read_config(folder)
    config.save_pretrained(tmp_path / "again")
    again = read_config(tmp_path / "again")
    assert isinstance(again, Florence2Config)
    assert again.to_dict() == config.to_dict()
