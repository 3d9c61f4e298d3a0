"""What tests/gpu checks, as functions of a device: the same lines run on a CPU, where graphs are stood in for.

Random weights and random observations: it needs no simulator, no data set and no file but a schedule.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import torch

from policies.calibration import record, schedule
from policies.decoding import Decode
from policies.presets import Pi0Subject, preset_policy, random_observations

TWELVE = {"sampler": "ddpm", "steps": 12, "train_steps": 12}
_SHAPE = {
    "cameras": ["agentview", "wrist"], "camera_pixels": 40, "state": 9, "action": 7, "horizon": 8, "max_committed": 2,
    "executed": 4,
}  # fmt: skip
NANO = {
    **_SHAPE, "name": "tiny", "tokenizer": None, "head": {"name": "diffusion", "denoising": TWELVE},
    "backbone": {"name": "nano", "image_size": 16, "width": 32, "heads": 2, "trunk_depth": 1, "decoder_depth": 2},
}  # fmt: skip
NANO_BEAST = {**NANO, "head": {"name": "beast"}, "tokenizer": {"name": "bspline", "num_basis": 6}}
FLORENCE = {
    **_SHAPE, "name": "florence", "max_committed": 0, "executed": 8, "head": {"name": "beast"},
    "tokenizer": {"name": "bspline", "num_basis": 6},
    "backbone": {
        "name": "florence2", "image_size": 32,
        "vision": {
            "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1],
            "patch_prenorm": [False, True], "embed_dim": [16, 32], "num_heads": [2, 2], "num_groups": [2, 2],
            "window_size": 3, "projection_dim": 32,
        },
        "text": {
            "vocab_size": 264, "d_model": 32, "max_position_embeddings": 256, "encoder_layers": 1, "decoder_layers": 2,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        },
    },
}  # fmt: skip
PRISMATIC = {
    **_SHAPE, "name": "prismatic", "max_committed": 0, "executed": 8, "tokenizer": {"name": "bins"},
    "head": {"name": "discrete_diffusion", "decoding": {"rounds": 3}},
    "backbone": {
        "name": "prismatic", "image_size": 28, "dino": {"width": 16, "depth": 2, "heads": 2, "feed": 32},
        "siglip": {"width": 24, "depth": 2, "heads": 2, "feed": 40},
        "language": {"width": 32, "feed": 48, "depth": 2, "heads": 4, "key_value_heads": 2, "vocabulary": 32064},
    },
}  # fmt: skip


def shown(policy, count=3):
    """Observations as far apart as chunks are asked for."""
    spec = policy.spec
    every = spec.executed or spec.horizon
    return random_observations(spec, every * count)[::every]


def with_schedule(policy, folder, guarded=False):
    """A decode that reuses branches. guarded: by a guard that is always crossed: every other chunk is in full."""
    made = schedule(record(policy, [shown(policy)[:1]]), "bac", 4, 2)
    if guarded:
        made = replace(made, guard={0: -10.0, 6: -10.0})
    path = folder / "schedule.json"
    made.save(path)
    return Decode("bac", schedule=str(path))


def apart(policy, decode, rows=False, count=3):
    """The largest difference of a captured session's chunks from an eager one's; AssertionError where facts differ."""
    sessions = [policy.decoding(replace(decode, graphs=graphs)).begin(3) for graphs in (False, True)]
    found = 0.0
    for observation in shown(policy, count):
        given = np.full((1, policy.spec.action.size), 0.1, np.float32) if rows else None
        eager, captured = (session.predict([observation], given) for session in sessions)
        found = max(found, float(np.abs(eager.actions - captured.actions).max()))
        for name in ("decoded_in_full", "warm", "rounds"):
            assert eager.facts.get(name) == captured.facts.get(name), name
    return found


def replays(policy, decode):
    """Chunks of a captured policy: twice of one observation and seed, and of another observation."""
    captured = policy.decoding(replace(decode, graphs=True))
    first, _, other = shown(policy)
    return [captured.begin(5).predict([one]).actions for one in (first, first, other)]


def poisoned(policy, decode, device):
    """Rows of one batch before and after everything that a call was given or gave has been overwritten with NaN."""
    chunk = policy.decoding(replace(decode, graphs=True)).chunk_decoder()
    batch = policy.batch([[shown(policy)[0]]])

    def noise():
        drawn = policy.head.draw(1, torch.Generator().manual_seed(0))
        return {name: value.to(device) for name, value in drawn.items()}

    with torch.no_grad():
        given = noise()
        rows = chunk(batch, None, given)
        before = rows.float().cpu().clone()
        for value in (rows, batch.state_BS, *given.values()):
            value.fill_(torch.nan)
        return before, chunk(policy.batch([[shown(policy)[0]]]), None, noise()).float().cpu()


def threads(policy, decode):
    """Whether two sessions in two threads answer as one after the other does."""
    captured = policy.decoding(replace(decode, graphs=True))
    observations = shown(policy, 6)

    def answer(seed, into):
        session = captured.begin(seed)
        into[seed] = [session.predict([one]).actions for one in observations]

    alone, beside = {}, {}
    for seed in (1, 2):
        answer(seed, alone)
    running = [threading.Thread(target=answer, args=(seed, beside)) for seed in (1, 2)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return all(
        np.array_equal(one, other) for seed in alone for one, other in zip(alone[seed], beside[seed], strict=True)
    )


def begun_again(policy, decode, launched):
    """How many graphs a second `begin` replays. launched: how many have been so far."""
    captured = policy.decoding(replace(decode, graphs=True))
    captured.begin(0).predict([shown(policy)[0]])
    before = launched()
    captured.begin(1)
    return launched() - before


def replayed(policy, decode, device, watched):
    """Rows of a captured chunk that is decoded inside the context `watched`, and of one that is not."""
    chunk = policy.decoding(replace(decode, graphs=True)).chunk_decoder()
    batch = policy.batch([[shown(policy)[0]]])
    noise = {name: value.to(device) for name, value in policy.head.draw(1, torch.Generator().manual_seed(0)).items()}
    with torch.no_grad():
        free = chunk(batch, None, noise).clone()
        with watched:
            rows = chunk(batch, None, noise)
    return free.cpu(), rows.cpu()


def acted(values, device, precision):
    """Rows float [T, A] of a preset's policy."""
    policy = (Pi0Subject if values["name"] == "pi0" else preset_policy)(values, device, precision)
    observation = random_observations(policy.spec, 1)
    if values["name"] != "pi0":
        return policy.begin(0).predict(observation).actions
    with torch.no_grad():
        start = torch.randn(1, *policy.chunk_shape, device=device)
        return policy.actions(policy.backbone.decode(policy.backbone.encode(policy.batch([observation])), start, 2))[0]


def seconds(values, device, precision, count=10):
    """The median of a chunk's time."""
    policy = preset_policy(values, device, precision)
    session, (observation,) = policy.begin(0), random_observations(policy.spec, 1)
    taken = []
    for _ in range(count + 1):
        began = time.perf_counter()  # noqa: TID251
        session.predict([observation])
        taken.append(time.perf_counter() - began)  # noqa: TID251
    return float(np.median(taken[1:]))


def losses(values, device, steps=3):
    """Of `steps` updates on one batch."""
    policy = preset_policy(values, device)
    parts = torch.nn.ModuleList([policy.backbone, policy.head]).train().requires_grad_(True)
    optimiser = torch.optim.AdamW(parts.parameters(), lr=1e-3)
    batch = policy.batch([[one] for one in shown(policy, 4)])
    wanted = torch.zeros(4, policy.spec.horizon, policy.spec.action.size, device=device)
    found = []
    for _ in range(steps):
        torch.manual_seed(0)
        loss = policy.head.loss(policy.backbone, batch, wanted, None)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(float(loss))
    return found
