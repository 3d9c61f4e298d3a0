"""Pretrained families end to end, tiny: from data to a checkpoint that a rollout runs, with and without adapters."""

from __future__ import annotations

import json

import pytest
from playing import runner
from tokenizers import Tokenizer, models, pre_tokenizers

from vla_runtime.compose import load
from vla_runtime.evaluation.folder import Job
from vla_runtime.finetune import finetune

FLORENCE2 = {
    "vision": {
        "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1],
        "patch_prenorm": [False, True], "embed_dim": [16, 32], "num_heads": [2, 2], "num_groups": [2, 2],
        "window_size": 3, "projection_dim": 32, "max_temporal_embeddings": 4, "max_position_embeddings": 6,
    },
    "text": {
        "vocab_size": 264, "d_model": 32, "max_position_embeddings": 160, "encoder_layers": 1, "decoder_layers": 2,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    },
}  # fmt: skip
PRISMATIC = {
    "dino": {"width": 16, "depth": 2, "heads": 2, "feed": 32},
    "siglip": {"width": 24, "depth": 2, "heads": 2, "feed": 40},
    "language": {"width": 32, "feed": 48, "depth": 2, "heads": 4, "key_value_heads": 2, "vocabulary": 320},
    "image_size": 28, "action_end": 300, "mask_id": 301,
}  # fmt: skip


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Overrides that make a tiny one of each family, with bytes for words."""
    folder = tmp_path_factory.mktemp("words")
    words = ["<s>", "<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))

    def made(name, config, **options):
        sizes = json.dumps({**config, "tokenizer": str(folder)}).replace('"', "")
        extra = [f"backbone.{key}={value}" for key, value in options.items()]
        return [f"backbone={name}", "backbone.pretrained=null", f"backbone.config={sizes}", *extra]

    return {
        "florence2": made("florence2", FLORENCE2, image_size=32, max_text_tokens=120),
        "prismatic": made("prismatic", PRISMATIC, extra_token=319, max_text_tokens=120),
    }


@pytest.mark.parametrize("head", ["beast", "discrete_diffusion"])
@pytest.mark.parametrize("name", ["florence2", "prismatic"])
def test_from_data_to_a_rollout(recorded, backbones, tmp_path, name, head):
    line, _ = finetune(
        load(
            "finetune",
            [
                *(f"data={recorded}", f"out={tmp_path / 'tiny'}", f"head={head}", *backbones[name]),
                *("steps=2", "batch_size=2", "warmup=1", "validate_every=2", "validate_samples=2", "horizon=8"),
                *("executed=8", "max_committed=2", "gradient_checkpointing=true"),
            ],
        )
    )
    options = ("env=reach", "env.size=16", "env.tasks=[0]", f"policy={line['checkpoint']}")
    row = runner(*options)(Job(0, 0))
    assert row["error"] is None
    assert row["plans"] > 0
    row = runner(*options, "decode.precision=int8")(Job(0, 0))
    assert (row["error"], row["decode"]["precision"]) == (None, "int8")


def test_adapters_on_what_another_run_has_learned(recorded, backbones, tmp_path):
    common = [
        *(f"data={recorded}", "head=regression", "tokenizer=none", *backbones["prismatic"], "steps=2", "batch_size=2"),
        *("warmup=1", "validate_every=2", "validate_samples=2", "horizon=8", "executed=8", "max_committed=2"),
    ]
    finetune(load("finetune", [*common, f"out={tmp_path / 'whole'}"]))
    start = [f"init.folder={tmp_path / 'whole'}", "init.parts=all", "lora.rank=2"]
    line, _ = finetune(load("finetune", [*common, *start, f"out={tmp_path / 'adapted'}"]))
    options = ("env=reach", "env.size=16", "env.tasks=[0]", f"policy={line['checkpoint']}")
    assert runner(*options)(Job(0, 0))["error"] is None
