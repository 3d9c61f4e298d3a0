"""What a chunk asks of a GPU, counted by emulation: launches may fall, and nothing may wait."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from policies.checkpoint import load_policy
from policies.decoding import PLAIN, Decode
from policies.launches import count_chunk, example_schedule, without_memory
from vla_runtime.decoding.emulated_cuda import emulated_cuda

PRESETS = Path(__file__).resolve().parents[2] / "configs" / "preset"


def preset(name, **backbone):
    values = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    return {**values, "backbone": {**values["backbone"], **backbone}}


def counted(policy, **decode):
    """The launches of a chunk that is one graph, beside which nothing is launched, and in which nobody waits."""
    found = count_chunk(policy, Decode(**{"mode": "plain", **decode}, graphs=True))
    assert (found.waits, found.copies, found.outside) == (0, 0, 0)
    return found.graph


def test_dp_t_with_caching(tmp_path):
    values = preset("dp_t")
    made = example_schedule(without_memory(values))
    assert 290 <= made.evaluations() <= 330
    made.save(tmp_path / "schedule.json")
    assert counted(without_memory(values), mode="bac", schedule=str(tmp_path / "schedule.json")) <= 1300


def test_a_step_in_full_is_four_launches_a_branch_and_one_between_steps():
    policies = [without_memory(preset("nano")) for _ in range(2)]
    for policy in policies:
        policy.own_head.denoising = policy.own_head.denoising.__class__("ddim", 10, 100)
    ten, five = (counted(one, mode="exact", steps=steps) for one, steps in zip(policies, (10, 5), strict=True))
    assert ten - five == 5 * 18 * 4


@pytest.mark.parametrize(("name", "most"), [("nano_lift_beast", 160), ("nano_lift_moving_beast", 160)])
def test_shipped_policies_of_one_pass(name, most):
    assert counted(load_policy(name, decode=PLAIN)) <= most


def test_rounds_over_a_small_backbone():
    """All twelve in the one graph."""
    assert counted(load_policy("nano_lift_discrete_diffusion", decode=PLAIN)) <= 1600


def test_a_round_of_the_large_language_model():
    """Layers are alike: what one more costs is counted, and 32 of them are a round."""

    def launches(layers, rounds):
        shapes = {"dino": {"width": 32, "depth": 2, "heads": 2, "feed": 64}}
        shapes |= {"siglip": {"width": 36, "depth": 2, "heads": 2, "feed": 64}}
        shapes |= {"language": {"depth": layers}}
        return counted(without_memory(preset("dd_vla_7b", **shapes)), steps=rounds)

    one, two = (launches(layers, 3) - launches(layers, 2) for layers in (1, 2))
    assert one + 31 * (two - one) <= 500


def test_the_florence_shape():
    sizes = {"encoder_layers": 1, "decoder_layers": 2}
    values = preset("beast_f")
    text = {**values["backbone"]["text"], **sizes}
    assert counted(without_memory(preset("beast_f", text=text))) <= 700


def test_what_would_wait_is_counted_with_its_place():
    with emulated_cuda() as launches:
        on_device = torch.ones(3, device="cuda:0")
        with launches.during("asked"):
            float(on_device.sum())
            on_device.cpu()
            on_device + torch.ones(3).to("cuda:0")
            on_device[torch.tensor([0, 1])]
    assert sum(launches.waits.values()) == 2
    assert sum(launches.copies.values()) == 2
    assert launches.count("asked") == 3
    assert all(place.startswith("tests/policies/test_launches.py:") for _, _, place in launches.waits)
