"""Small heads that denoise, over a small backbone, and what they are given."""

from __future__ import annotations

import torch

from policies.backbones.nano import Nano, NanoConfig
from policies.batch import Batch, Committed
from policies.heads.diffusion import Diffusion, Flow
from vla_runtime.decoding.bac import Schedule, blocks_of, uniform
from vla_runtime.decoding.denoise import Denoising

ROWS, SIZE, WIDTH, PREFIX, DEPTH, STEPS = 8, 3, 32, 4, 2, 20
HEADS = {
    "ddpm": lambda: Diffusion(ROWS, SIZE, WIDTH, PREFIX, Denoising("ddpm", STEPS, STEPS)),
    "ddim": lambda: Diffusion(ROWS, SIZE, WIDTH, PREFIX, Denoising("ddim", 5, STEPS)),
    "dpm": lambda: Diffusion(ROWS, SIZE, WIDTH, PREFIX, Denoising("dpm", 6, 100)),
    "flow": lambda: Flow(ROWS, SIZE, WIDTH, PREFIX, steps=7),
}


def parts(name):
    torch.manual_seed(0)
    sizes = {"state_size": 2, "image_size": 16, "width": WIDTH, "heads": 2, "trunk_depth": 1, "decoder_depth": DEPTH}
    config = NanoConfig(("front",), **sizes)
    backbone, head = Nano(config).eval().requires_grad_(False), HEADS[name]().eval().requires_grad_(False)
    # From chance, branches say next to nothing beside the stream; as of a trained network, they must count.
    with torch.no_grad():
        for parameter in backbone.decoder.parameters():
            parameter.mul_(2.0)
    return backbone, head


def observation(backbone, batch=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (batch, 20, 20, 3), generator=generator, dtype=torch.uint8)
    return backbone.encode(Batch({"front": image}, torch.randn(batch, 2, generator=generator), ("go",) * batch))


def noise(head, batch=1, seed=2):
    return head.draw(batch, torch.Generator().manual_seed(seed))


def given_rows(batch, counts):
    rows = torch.rand(batch, PREFIX, SIZE, generator=torch.Generator().manual_seed(3)) - 0.5
    return Committed(rows, torch.tensor(counts))


def schedule(steps, updates, **changes):
    values = {
        "blocks": dict.fromkeys(blocks_of(DEPTH), uniform(steps, updates)), "steps": steps, "sampler": "ddpm",
        "weights": None, "method": "uniform", "updates": updates, "bubble": 0, "metric": "cosine", "calibration": "",
    }  # fmt: skip
    return Schedule(**{**values, **changes})
