"""A recorded set of reach and a small policy for it, made once."""

from __future__ import annotations

import pytest
from decodes import TWELVE, graphs_without_a_gpu

from policies.calibration import record, schedule
from policies.checkpoint import load_policy, save_policy
from policies.recipe import Recipe
from policies.untrained import policy_for
from vla_runtime import collect as command
from vla_runtime.compose import load
from vla_runtime.data.reader import Dataset

SMALL = {"name": "nano", "image_size": 16, "width": 32, "heads": 2, "trunk_depth": 1, "decoder_depth": 2}
RECIPE = Recipe(steps=12, batch_size=4, warmup=2, validate_every=6, save_every=4, validate_samples=4, max_committed=2)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    out = tmp_path_factory.mktemp("recorded") / "reach"
    command.collect(load("collect", ["env=reach", "env.size=16", "episodes=4", "workers=1", f"out={out}"]))
    return out


@pytest.fixture
def dataset(recorded):
    return Dataset(recorded, horizon=8)


@pytest.fixture
def make_policy(dataset):
    def make(head="beast", tokenizer=None, max_committed=RECIPE.max_committed, **options):
        if tokenizer is None and head in ("beast", "discrete_diffusion", "autoregressive"):
            tokenizer = {"name": "bspline"}
        return policy_for(
            dataset, "small", SMALL, {"name": head, **options}, tokenizer, max_committed=max_committed, seed=0
        )

    return make


@pytest.fixture
def observations(dataset):
    return [dataset[index][0] for index in (0, 7)]


@pytest.fixture
def denoising(make_policy, tmp_path):
    """A checkpoint whose head denoises in twelve steps."""
    save_policy(tmp_path / "diffusion", make_policy("diffusion", denoising=TWELVE), {"denoising": TWELVE}, {})
    return tmp_path / "diffusion"


@pytest.fixture
def scheduled(denoising, observations):
    """The same checkpoint, with a schedule that reuses branches."""
    recording = record(load_policy(denoising), [[one] for one in observations])
    schedule(recording, "bac", 4, 2).save(denoising / "schedule.json")
    return denoising


@pytest.fixture
def graphs_made(monkeypatch):
    """Those that are made, without a GPU."""
    return graphs_without_a_gpu(monkeypatch)
