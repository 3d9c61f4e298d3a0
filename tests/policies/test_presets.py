"""Every preset in configs/preset is built on the meta device: shapes without memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from policies.presets import Pi0Subject, preset_policy

PRESETS = {path.stem: path for path in sorted(Path("configs/preset").glob("*.yaml")) if path.stem != "none"}
# Parameters of the backbone or the whole model, in millions, as published.
SIZES = {"beast_f": (770, 785), "dd_vla_7b": (7400, 7600), "dp_t": (9, 12), "nano": (4, 7), "pi0": (3300, 3600)}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_builds_in_its_published_size(name):
    values = yaml.safe_load(PRESETS[name].read_text())
    assert values["name"] == name
    # Which device it runs on does not matter to its shape.
    values.pop("needs", None)
    policy = (Pi0Subject if name == "pi0" else preset_policy)(values, "meta")
    module = policy.backbone.model if name == "pi0" else policy.backbone
    assert {value.device.type for value in module.parameters()} == {"meta"}
    low, high = SIZES[name]
    assert low <= sum(value.numel() for value in module.parameters()) / 1e6 <= high
    assert policy.spec.horizon == values["horizon"]
