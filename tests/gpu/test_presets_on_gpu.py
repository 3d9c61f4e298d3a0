"""Presets, precisions and training on a GPU; the last test runs the same functions where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import on_gpu
import pytest
import yaml

from policies.decoding import Decode
from policies.presets import preset_policy

PRESETS = {path.stem: path for path in sorted(Path("configs/preset").glob("*.yaml")) if path.stem != "none"}
LARGE = {"dd_vla_7b", "pi0"}
# The 7B's widths, four layers of it.
WIDE = {
    **on_gpu.PRISMATIC, "name": "wide",
    "backbone": {**on_gpu.PRISMATIC["backbone"], "language": {"depth": 4, "vocabulary": 32064}},
}  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=pytest.mark.slow) if one in LARGE else one for one in PRESETS]
)
def test_a_preset_acts_on_a_gpu(name):
    values = yaml.safe_load(PRESETS[name].read_text())
    rows = on_gpu.acted(values, "cuda", "bf16")
    assert rows.shape == (values["horizon"], values["action"])
    assert np.isfinite(rows).all()


@pytest.mark.gpu
@pytest.mark.slow
def test_fp8_is_no_slower_than_bf16():
    assert on_gpu.seconds(WIDE, "cuda", "fp8") < 1.1 * on_gpu.seconds(WIDE, "cuda", "bf16")


@pytest.mark.gpu
@pytest.mark.slow
def test_compiled_passes_answer_as_plain_ones_on_a_gpu():
    policy = preset_policy(on_gpu.NANO_BEAST, "cuda")
    compiled = policy.decoding(Decode("plain", compile=True)).begin(0)
    observation = on_gpu.shown(policy)[0]
    np.testing.assert_allclose(
        compiled.predict([observation]).actions, policy.begin(0).predict([observation]).actions, atol=1e-3
    )


@pytest.mark.gpu
@pytest.mark.parametrize("values", [on_gpu.NANO, on_gpu.NANO_BEAST], ids=lambda one: one["head"]["name"])
def test_three_updates_lower_the_loss(values):
    found = on_gpu.losses(values, "cuda")
    assert found[2] < found[0]


def test_the_same_without_a_gpu():
    """Not what a GPU shows, but every line that shows it there."""
    assert np.isfinite(on_gpu.acted(on_gpu.PRISMATIC, "cpu", "bf16")).all()
    assert on_gpu.seconds(on_gpu.NANO_BEAST, "cpu", "fp32", count=1) > 0
    found = on_gpu.losses(on_gpu.NANO, "cpu")
    assert found[2] < found[0]
