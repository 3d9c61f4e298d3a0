"""What a chunk costs against the number of views, the length of the prompt and the length of the chunk.

Presets only: weights are random, since no trained policy changes its shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from policies.decoding import PLAIN, Decode
from policies.heads.diffusion import Diffusion, Flow
from policies.plots import Plot, lines
from policies.presets import preset_policy, random_observations
from policies.timing import finish
from vla_runtime.control.clock import Clock

VIEWS, WORDS, ROWS = (1, 2, 3, 4), (4, 8, 16, 24), (8, 16, 32, 64)
# What a prompt has besides its words, in tokens, generously.
_AROUND = 24


def sweep(preset: Mapping[str, Any], device: str, precision: str, repeats: int, clock: Clock) -> list[dict[str, Any]]:
    """Rows {against, value, encode_ms, decode_ms}: medians over `repeats`, one thing changed at a time.

    Denoising heads decode with the exact savings, others plainly. preset: one with a backbone of this package.
    """
    most = 2 if preset["backbone"]["name"] == "nano" else max(VIEWS)
    cases: list[tuple[str, int, Mapping[str, Any], int]] = []
    usual = WORDS[1]
    for views in VIEWS:
        if views <= most:
            cases.append(("views", views, {**preset, "cameras": [f"view{index}" for index in range(views)]}, usual))
    for words in WORDS:
        longer = {"max_text_tokens": words + _AROUND} if preset["backbone"]["name"] != "nano" else {}
        cases.append(("words", words, {**preset, "backbone": {**preset["backbone"], **longer}}, words))
    for rows in ROWS:
        if rows > preset["max_committed"]:
            cases.append(("rows", rows, {**preset, "horizon": rows, "executed": rows}, usual))
    return [
        {"against": against, "value": value, **_cost(values, words, device, precision, repeats, clock)}
        for against, value, values, words in cases
    ]


def sweep_plot(name: str, rows: list[dict[str, Any]]) -> Plot:
    """One panel for each thing that was changed."""
    titles = {"views": "views", "words": "words of the instruction", "rows": "rows of a chunk"}
    panels = {
        title: {
            stage: [(row["value"], row[f"{stage}_ms"]) for row in rows if row["against"] == against]
            for stage in ("encode", "decode")
        }
        for against, title in titles.items()
    }
    return lines(panels, f"{name}: milliseconds")


@torch.no_grad()
def _cost(
    values: Mapping[str, Any], words: int, device: str, precision: str, repeats: int, clock: Clock
) -> dict[str, float]:
    policy = preset_policy(values, device, precision)
    backbone: Any = policy.backbone
    denoises = isinstance(policy.head, Diffusion | Flow) and hasattr(backbone, "blocks")
    policy = policy.decoding(Decode("exact") if denoises else PLAIN)
    decoder, head = policy.decoder(), policy.head
    seen = replace(random_observations(policy.spec, 1)[0], instruction=" ".join(["move"] * words))
    drawn: Any = head.draw(1, torch.Generator().manual_seed(0))
    noise = {name: value.to(policy.device) for name, value in drawn.items()}
    taken = []
    for _ in range(repeats + 1):
        finish(policy.device)
        began = clock.now()
        context = backbone.encode(policy.batch([[seen]]))
        finish(policy.device)
        encoded = clock.now()
        decoder(context, None, noise, 1)
        finish(policy.device)
        taken.append((encoded - began, clock.now() - encoded))
    # The first makes buffers.
    encode, decode = 1e3 * np.median(taken[1:], axis=0)
    return {"encode_ms": round(float(encode), 3), "decode_ms": round(float(decode), 3)}
