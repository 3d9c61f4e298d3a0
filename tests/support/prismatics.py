"""Prismatic backbones of a few thousand weights, and what they are shown."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from policies.backbones.prismatic import Prismatic, PrismaticConfig
from policies.backbones.prismatic_slots import LanguageConfig
from policies.backbones.prismatic_vision import TowerConfig
from policies.batch import Batch

WIDTH, ROWS, SIZE = 32, 8, 2
INSTRUCTIONS = ("Lift", "put it down", *(f"do {number}" for number in range(8)))
ATTENTION = ("prefix_lm", "oft")


def words():
    """A tokenizer of whole words."""
    text = "In: What action should the robot take to " + "? ".join(INSTRUCTIONS).lower() + "? put it do Out:"
    ids = {word: index for index, word in enumerate(dict.fromkeys(["<unk>", "<s>", "</s>", *text.split()]))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def tiny(attention="prefix_lm", cameras=("a", "b"), **options):
    torch.manual_seed(0)
    config = PrismaticConfig(
        cameras,
        state_size=3,
        tokenizer=words().to_str(),
        dino=TowerConfig(16, 2, 2, 32),
        siglip=TowerConfig(24, 2, 2, 40),
        language=LanguageConfig(WIDTH, 48, 2, 4, 2, 320),
        image_size=28,
        **{"max_text_tokens": 16, "extra_token": 310, "action_end": 300, "mask_id": 301, "attention": attention}
        | options,
    )
    return Prismatic(config).eval()


def loud(attention="prefix_lm", **options):
    """Weights so large that whatever reaches a hidden state moves it by much more than rounding does."""
    backbone = tiny(attention, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in backbone.parameters():
            value.copy_(
                torch.randn(value.shape, generator=generator) * (value.shape[-1] ** -0.5 if value.ndim > 1 else 1)
            )
    return backbone


def batch(*instructions, cameras="ab"):
    generator = torch.Generator().manual_seed(len(instructions))
    count = len(instructions)
    images = {
        name: torch.randint(0, 256, (count, 40, 40, 3), generator=generator, dtype=torch.uint8) for name in cameras
    }
    return Batch(images, torch.randn(count, 3, generator=generator), instructions)


def slots_of(count, length, seed=5):
    return torch.randn(count, length, WIDTH, generator=torch.Generator().manual_seed(seed))
