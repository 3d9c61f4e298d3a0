"""Names and shapes of weights in OpenVLA's layout, of any size."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers

PROMPT = "In: What action should the robot take to {}? Out:"
INSTRUCTION = "lift the red cube"


def words():
    """A tokenizer of the words of one prompt."""
    text = PROMPT.format(INSTRUCTION)
    ids = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", *dict.fromkeys(text.split())])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def tower(prefix, config, patches):
    width, feed = config.width, config.feed
    linear = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (feed, width),
        "mlp.fc2": (width, feed),
    }
    shapes = {"patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,)}
    shapes |= {"pos_embed": (1, patches, width), "norm.weight": (width,), "norm.bias": (width,)}
    for block in range(config.depth):
        for name, shape in linear.items():
            shapes |= {f"blocks.{block}.{name}.weight": shape, f"blocks.{block}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{name}.weight": (width,), f"blocks.{block}.{name}.bias": (width,)}
    return {prefix + name: shape for name, shape in shapes.items()}


def published(dino, siglip, language, patches):
    """Name and shape of every tensor of an OpenVLA with these sizes."""
    front, back = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."
    shapes = tower(front, dino, patches) | tower(back, siglip, patches)
    shapes |= {front + "cls_token": (1, 1, dino.width), front + "reg_token": (1, 4, dino.width)}
    for block in range(dino.depth):
        shapes |= {f"{front}blocks.{block}.ls{branch}.scale_factor": (dino.width,) for branch in (1, 2)}
    width, feed = siglip.width, siglip.feed
    pool = {
        "q": (width, width),
        "kv": (2 * width, width),
        "proj": (width, width),
        "mlp.fc1": (feed, width),
        "mlp.fc2": (width, feed),
    }
    for name, shape in pool.items():
        shapes |= {f"{back}attn_pool.{name}.weight": shape, f"{back}attn_pool.{name}.bias": shape[:1]}
    shapes |= {f"{back}attn_pool.latent": (1, 1, width)}
    shapes |= {f"{back}attn_pool.norm.{kind}": (width,) for kind in ("weight", "bias")}
    both, width = dino.width + siglip.width, language.width
    for name, shape in {"fc1": (4 * both, both), "fc2": (width, 4 * both), "fc3": (width, width)}.items():
        shapes |= {f"projector.{name}.weight": shape, f"projector.{name}.bias": shape[:1]}
    shapes |= {"language_model.model.embed_tokens.weight": (language.vocabulary, width)}
    shapes |= {
        "language_model.lm_head.weight": (language.vocabulary, width),
        "language_model.model.norm.weight": (width,),
    }
    for layer in range(language.depth):
        start = f"language_model.model.layers.{layer}."
        shapes |= {f"{start}self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{start}mlp.{name}_proj.weight": (language.feed, width) for name in ("gate", "up")}
        shapes |= {f"{start}mlp.down_proj.weight": (width, language.feed)}
        shapes |= {f"{start}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return shapes
