"""Folders of published weights in OpenVLA's layout: loaded, decoding as where they were trained, or refused."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from openvla_layout import INSTRUCTION, PROMPT, published, words
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from policies.backbones.prismatic import Prismatic
from policies.backbones.prismatic_slots import LanguageConfig
from policies.backbones.prismatic_vision import TowerConfig
from policies.batch import Batch

TINY_TOWERS = {"small_dino": TowerConfig(16, 3, 2, 64), "small_siglip": TowerConfig(24, 3, 3, 40)}
TINY_TEXT = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 384, "pad_token_id": 320, "torch_dtype": "bfloat16",
}  # fmt: skip
TINY_LANGUAGE = LanguageConfig(32, 48, 2, 4, 4, 384)
PICTURES = {
    "means": [[0.484375, 0.455078125, 0.40625], [0.5, 0.5, 0.5]],
    "stds": [[0.228515625, 0.2236328125, 0.224609375], [0.5, 0.5, 0.5]],
}
EXTRA = 300


def config_json(**changes):
    return {
        "model_type": "openvla", "use_fused_vision_backbone": True, "timm_model_ids": list(TINY_TOWERS),
        "timm_override_act_layers": [None, None], "image_sizes": [28, 28], "pad_to_multiple_of": 64,
        "text_config": TINY_TEXT, "n_action_bins": 256, **changes,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Tiny weights in the published layout: two shards and their index, config, tokenizer, projector of states."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.5)
        for name, shape in published(*TINY_TOWERS.values(), TINY_LANGUAGE, 4).items()
    }
    names = sorted(weights)
    where = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: weights[name] for name in names if where[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (tmp_path / "config.json").write_text(json.dumps(config_json()))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PICTURES))
    words().save(str(tmp_path / "tokenizer.json"))
    state = {"fc1.weight": (32, 3), "fc1.bias": (32,), "fc2.weight": (32, 32), "fc2.bias": (32,)}
    projector = {f"module.{name}": torch.randn(shape, generator=generator) for name, shape in state.items()}
    torch.save(projector, tmp_path / "proprio_projector--150000_checkpoint.pt")
    weights |= {f"proprio.{name.removeprefix('module.')}": value for name, value in projector.items()}
    return SimpleNamespace(path=tmp_path, weights=weights)


def load(folder, **options):
    options = {"towers": TINY_TOWERS, "extra_token": EXTRA, "max_text_tokens": 20, **options}
    return Prismatic.from_pretrained(folder, ("front", "wrist"), options.pop("state_size", 3), **options)


def observations(count=2):
    generator = torch.Generator().manual_seed(4)
    images = {
        name: torch.randint(0, 256, (count, 28, 28, 3), generator=generator, dtype=torch.uint8)
        for name in ("front", "wrist")
    }
    return Batch(images, torch.randn(count, 3, generator=generator), (INSTRUCTION.upper(),) * count)


def timm(weights, prefix, config, pixels):
    """timm's vision transformer up to its last block but one: patches as `get_intermediate_layers` gives them."""

    def linear(name, values):
        return F.linear(values, weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"])

    def norm(name, values):
        return F.layer_norm(
            values, (config.width,), weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"], 1e-6
        )

    patches = F.conv2d(
        pixels, weights[f"{prefix}patch_embed.proj.weight"], weights[f"{prefix}patch_embed.proj.bias"], 14
    )
    tokens = patches.flatten(2).transpose(1, 2) + weights[f"{prefix}pos_embed"]
    marks = [weights[prefix + name] for name in ("cls_token", "reg_token") if prefix + name in weights]
    tokens = torch.cat([*(mark.expand(len(tokens), -1, -1) for mark in marks), tokens], dim=1)
    count, length, width = tokens.shape
    for block in range(config.depth - 1):
        name = f"blocks.{block}."
        scales = [weights.get(f"{prefix}{name}ls{branch}.scale_factor", torch.ones(width)) for branch in (1, 2)]
        mixed = linear(name + "attn.qkv", norm(name + "norm1", tokens))
        query, key, value = mixed.reshape(count, length, 3, config.heads, -1).permute(2, 0, 3, 1, 4)
        shares = (query @ key.transpose(-2, -1) / math.sqrt(width / config.heads)).softmax(-1)
        answer = linear(name + "attn.proj", (shares @ value).transpose(1, 2).reshape(count, length, width))
        tokens = tokens + answer * scales[0]
        inner = F.gelu(linear(name + "mlp.fc1", norm(name + "norm2", tokens)))
        tokens = tokens + linear(name + "mlp.fc2", inner) * scales[1]
    return tokens[:, sum(mark.shape[1] for mark in marks) :]


def one_shot(weights, batch, slots):
    """OpenVLA-OFT's parallel pass from the published tensors alone: logits [B, L, V], and what it makes of images."""
    pictures = []
    for name in ("front", "wrist"):
        pixels = batch.images[name].permute(0, 3, 1, 2).float() / 255
        mean, deviation = (torch.tensor(PICTURES[key])[:, :, None, None] for key in ("means", "stds"))
        pixels = (pixels[None] - mean[:, None]) / deviation[:, None]
        both = [
            timm(weights, "vision_backbone.featurizer.", TINY_TOWERS["small_dino"], pixels[0]),
            timm(weights, "vision_backbone.fused_featurizer.", TINY_TOWERS["small_siglip"], pixels[1]),
        ]
        values = torch.cat(both, dim=2)
        for layer in ("fc1", "fc2", "fc3"):
            values = F.linear(values, weights[f"projector.{layer}.weight"], weights[f"projector.{layer}.bias"])
            values = values if layer == "fc3" else F.gelu(values)
        pictures.append(values)
    state = F.gelu(F.linear(batch.state_BS, weights["proprio.fc1.weight"], weights["proprio.fc1.bias"]))
    state = F.linear(state, weights["proprio.fc2.weight"], weights["proprio.fc2.bias"])[:, None]
    language = LlamaForCausalLM(LlamaConfig(**TINY_TEXT)).eval()
    start = "language_model."
    language.load_state_dict(
        {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
    )
    ids = torch.tensor([1, *words().encode(PROMPT.format(INSTRUCTION)).ids, EXTRA]).expand(len(batch), -1)
    embed = language.get_input_embeddings()
    stop = torch.full((len(batch), 1), 2)
    sequence = torch.cat([embed(ids[:, :1]), *pictures, state, embed(ids[:, 1:]), slots, embed(stop)], dim=1)
    mask = torch.zeros(len(batch), 1, sequence.shape[1], sequence.shape[1])
    logits = language(inputs_embeds=sequence, attention_mask=mask, use_cache=False).logits
    first = (2 * 4 + 1) + (ids.shape[1] - 1)
    return logits[:, first : first + slots.shape[1]], torch.cat(pictures, dim=1)


@torch.no_grad()
def test_loaded_weights_decode_what_they_did_where_they_were_trained(folder):
    backbone, batch = load(folder.path, attention="oft"), observations()
    ids = backbone.action_ids
    assert (ids[0], ids[-1], backbone.config.mask_id) == (319, 64, 321)
    # Blank slots, as in one pass for all; words and masks, as in discrete diffusion.
    known = torch.where(torch.arange(7) % 2 == 0, ids[3:10], backbone.config.mask_id)
    for slots in (torch.zeros(2, 7, 32), backbone.embed(known.expand(2, -1))):
        expected, pictures = one_shot(folder.weights, batch, slots)
        assert (backbone.features(batch)[0][:, 1:9] - pictures).abs().max() < 1e-5
        logits = backbone.logits(backbone(batch, slots))
        assert (logits - expected).abs().max() < 1e-4
        tokens = logits[..., ids].argmax(-1)
        assert torch.equal(tokens, expected[..., ids].argmax(-1))
    assert len(tokens.unique()) > 3


@torch.no_grad()
def test_the_projector_of_states_is_read_where_there_is_one_and_new_where_there_is_none(folder):
    file = next(folder.path.glob("proprio_*.pt"))
    batch, slots = observations(), torch.zeros(2, 3, 32)
    with_it = load(folder.path)
    assert torch.equal(with_it.proprio.fc1.weight, folder.weights["proprio.fc1.weight"])
    with pytest.raises(ValueError, match="expected proprio=true"):
        load(folder.path, proprio=False)
    with pytest.raises(ValueError, match="state_size is the second size"):
        load(folder.path, state_size=8)
    (folder.path / "proprio_projector--90_checkpoint.pt").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="expected one proprioception projector"):
        load(folder.path)
    (folder.path / "proprio_projector--90_checkpoint.pt").unlink()
    torch.save({"fc1.weight": torch.zeros(32, 3)}, file)
    with pytest.raises(ValueError, match="fc2"):
        load(folder.path)
    file.unlink()
    assert load(folder.path)(batch, slots).isfinite().all()
    assert load(folder.path, proprio=False)(batch, slots).isfinite().all()


@torch.no_grad()
def test_options_of_a_config_file_name_the_weights_and_how_to_read_them(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(folder.path))
    options = {"config": None, "attention": "oft", "proprio": True, "max_text_tokens": 20, "extra_token": EXTRA}
    backbone = Prismatic.make({"pretrained": "someone/openvla", "towers": TINY_TOWERS, **options}, ("front",), 3)
    assert asked == ["someone/openvla"]
    assert (backbone.config.attention, backbone.config.cameras) == ("oft", ("front",))
    assert not any(value.is_meta for value in [*backbone.parameters(), *backbone.buffers()])
    assert {value.dtype for value in backbone.parameters()} == {torch.float32}
    sizes = {
        **backbone.state_of_config(),
        "tokenizer": str(folder.path),
        "language": {"width": 16, "heads": 2, "key_value_heads": 2, "depth": 1, "vocabulary": 384},
    }
    untrained = Prismatic.make({"pretrained": None, "config": sizes, "attention": "prefix_lm"}, ("wrist",), 5)
    assert (untrained.width, untrained.config.cameras, untrained.config.state_size) == (16, ("wrist",), 5)
    assert untrained.config.attention == "prefix_lm"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava"}, "model_type: expected 'openvla', got 'llava'"),
        ({"use_fused_vision_backbone": False}, "use_fused_vision_backbone: expected True"),
        ({"timm_override_act_layers": [None, "quick_gelu"]}, "timm_override_act_layers"),
        ({"timm_model_ids": ["small_dino", "vit_huge"]}, "timm_model_ids: expected .*small_siglip.*vit_huge"),
        ({"timm_model_ids": ["small_siglip", "small_dino"]}, "timm_model_ids: expected .*small_dino"),
        ({"image_sizes": [28, 42]}, "one size for both towers"),
        ({"timm_model_ids": None}, "got none of the name .*timm_model_ids"),
        ({"text_config": {**TINY_TEXT, "attention_bias": True}}, "attention_bias: expected False, got True"),
        ({"text_config": {**TINY_TEXT, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}}, "rope_parameters"),
    ],
)
def test_another_architecture_is_refused(folder, changes, message):
    values = {key: value for key, value in config_json(**changes).items() if value is not None}
    (folder.path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        load(folder.path)


def test_folders_that_are_not_whole_are_refused(folder, monkeypatch):
    (shard, _) = sorted(folder.path.glob("*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="expected whole safetensors"):
        load(folder.path)
    shard.unlink()
    with pytest.raises(ValueError, match=r"model-00001-of-00002\.safetensors: expected whole"):
        load(folder.path)
    (folder.path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json: expected a file of published weights, got none"):
        load(folder.path)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **_: (_ for _ in ()).throw(OSError("offline"))
    )
    with pytest.raises(ValueError, match="expected a folder or an id on the model hub, got 'no/where': offline"):
        load("no/where")
