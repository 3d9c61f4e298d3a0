"""A recorded set of reach and a small policy for it, made once."""

from __future__ import annotations

import pytest

from policies.training import Recipe
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
    def make(head="beast", tokenizer=None, **options):
        if tokenizer is None and head in ("beast", "discrete_diffusion", "autoregressive"):
            tokenizer = {"name": "bspline"}
        return policy_for(
            dataset, "small", SMALL, {"name": head, **options}, tokenizer, max_committed=RECIPE.max_committed, seed=0
        )

    return make
