"""Florence-2 backbones of a few thousand weights, and what they are shown."""

from __future__ import annotations

from dataclasses import replace

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from policies.backbones.florence2 import Florence2, FlorenceConfig
from policies.batch import Batch

VISION = {
    "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1],
    "patch_prenorm": [False, True], "embed_dim": [16, 32], "num_heads": [2, 2], "num_groups": [2, 2],
    "window_size": 3, "projection_dim": 32, "max_temporal_embeddings": 4, "max_position_embeddings": 6,
}  # fmt: skip
TEXT = {
    "vocab_size": 264, "d_model": 32, "max_position_embeddings": 96, "encoder_layers": 1, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
}  # fmt: skip


def tokenizer_json():
    """Bytes for words, BART's marks around them."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer.to_str()


PROMPT = "do: {instruction}"
TINY = FlorenceConfig(
    ("static", "wrist"), 3, tokenizer_json(), VISION, TEXT, image_size=32, max_text_tokens=24, prompt=PROMPT
)


def made(seed=0, **changes):
    """A tiny one whose weights are large enough for attention to be far from uniform."""
    torch.manual_seed(seed)
    backbone = Florence2(replace(TINY, **changes)).eval()
    with torch.no_grad():
        for name, value in backbone.named_parameters():
            if value.ndim > 1:
                value.normal_(std=0.15)
            elif name.endswith("bias"):
                value.normal_(std=0.1)
    return backbone


def batch(*instructions, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = len(instructions)
    images = {
        name: torch.randint(0, 256, (count, 40, 40, 3), generator=generator, dtype=torch.uint8)
        for name in ("wrist", "static")
    }
    return Batch(images, torch.randn(count, 3, generator=generator), instructions)


def slots(count, length, seed=1):
    return torch.randn(count, length, 32, generator=torch.Generator().manual_seed(seed))
