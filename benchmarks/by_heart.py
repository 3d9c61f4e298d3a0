"""Whether every head can learn at all: eight chunks by heart, by the command, on three backbones.

    python benchmarks/by_heart.py --out runs/by_heart

Collects a few demonstrations of lift, then, for each of the six heads on `nano` and for two on a tiny `florence2` and a
tiny `prismatic`, runs `finetune overfit=8` and a rollout with the checkpoint. Decoded chunks must be within 0.02 of the
eight (mean of normalised L1); a head that gets there has its objective, its decoding, its tokenizer and its gradients
right, and nothing is said of what it is good for. What was finished is not done again. Writes
benchmarks/by_heart.json, prints a table, and exits 1 if one does not get there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from commands import command
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from vla_runtime.disk import write_json, write_text
from vla_runtime.machine import hardware

HERE = Path(__file__).parent
LIMIT = 0.02
# Those that learn one noise at a time see each chunk with several at once.
TOKENS = ["tokenizer=bspline", "steps=600", "batch_size=8"]
ROWS = ["tokenizer=none", "steps=1000", "batch_size=8"]
NOISE = ["tokenizer=none", "steps=1000", "batch_size=32", "precision=bf16"]
HEADS = {
    "beast": TOKENS, "discrete_diffusion": TOKENS, "autoregressive": TOKENS,
    "diffusion": [*NOISE, "head.denoising.predicts=velocity"], "flow": NOISE, "regression": ROWS,
}  # fmt: skip
VISION = {
    "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1],
    "patch_prenorm": [False, True], "embed_dim": [16, 32], "num_heads": [2, 2], "num_groups": [2, 2],
    "window_size": 3, "projection_dim": 64, "max_temporal_embeddings": 4, "max_position_embeddings": 6,
}  # fmt: skip
TEXT = {
    "vocab_size": 264, "d_model": 64, "max_position_embeddings": 256, "encoder_layers": 1, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
}  # fmt: skip
TOWER = {"width": 32, "depth": 2, "heads": 2, "feed": 64}


def words(folder):
    """A tokenizer of bytes, as pretrained weights would bring theirs."""
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tokenizer.json", tokenizer.to_str())
    return str(folder)


def written(value):
    """As hydra reads it on a command line."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return str(value)


def backbones(folder):
    """Options of each backbone; the big ones at a size that trains in a minute."""
    florence = {"vision": VISION, "text": TEXT, "tokenizer": folder}
    language = {"width": 64, "feed": 128, "depth": 2, "heads": 4, "key_value_heads": 2, "vocabulary": 600}
    prismatic = {
        "tokenizer": folder, "dino": TOWER, "siglip": TOWER, "language": language, "image_size": 56,
        "action_end": 560, "mask_id": 561,
    }  # fmt: skip
    return {
        "nano": ["backbone=nano"],
        "florence2": [
            "backbone=florence2", "backbone.pretrained=null", "backbone.image_size=32",
            f"backbone.config={written(florence)}", "backbone.prompt='{instruction}'",
        ],
        "prismatic": [
            "backbone=prismatic", "backbone.pretrained=null", "backbone.max_text_tokens=96", "backbone.extra_token=570",
            f"backbone.config={written(prismatic)}",
        ],
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where the data set, checkpoints and runs go")
    out = parser.parse_args().out
    data = out / "lift"
    if not data.exists():
        command(
            "collect", "env=lift", "env.control=absolute", "episodes=4", "seed=90000", "image_stride=2", f"out={data}"
        )
    options = backbones(words(out / "words"))
    rows = []
    # Tiny ones take small steps to much the same place.
    longer = ["learning_rate=0.003", "steps=1200"]
    for backbone, heads in (("nano", HEADS), *((name, list(HEADS)[:2]) for name in ("florence2", "prismatic"))):
        for head in heads:
            folder = out / f"{backbone}_{head}"
            known = folder.with_name(f"{folder.name}.json")
            if not known.is_file():
                place = "resume" if folder.with_name(f"{folder.name}.training.pt").is_file() else "out"
                line = command(
                    "finetune", f"data={data}", "control=absolute", "overfit=8", *options[backbone], f"head={head}",
                    "learning_rate=0.001", "warmup=20", "ema=0.95", "validate_every=100", *HEADS[head],
                    *([] if backbone == "nano" else longer),
                    f"{place}={folder}",
                )  # fmt: skip
                run = command(
                    "rollout", "env=lift", "env.control=absolute", f"policy={folder}", "episodes=1", "video=none",
                    f"out={folder}_run",
                )  # fmt: skip
                known.write_text(json.dumps({**line, "errors": run["errors"], "ran": run["episodes"]}))
            line = json.loads(known.read_text())
            kept = ("steps", "l1", "l1_given", "token_accuracy", "switch_recall", "parameters", "ran", "errors")
            rows.append({"backbone": backbone, "head": head, **{key: line[key] for key in kept if key in line}})
    write_json(HERE / "by_heart.json", {"hardware": hardware(), "limit": LIMIT, "rows": rows})
    print("| backbone | head | updates | decoded L1 | rollout |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['backbone']} | {row['head']} | {row['steps']} | {row['l1']:.4f} "
            f"| {row['ran'] - row['errors']} of {row['ran']} ran |"
        )
    wrong = [row for row in rows if row["l1"] >= LIMIT or row["errors"]]
    sys.exit(f"expected an L1 below {LIMIT} and a rollout without errors, got {wrong}" if wrong else 0)


if __name__ == "__main__":
    main()
