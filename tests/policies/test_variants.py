"""Variants that `bench` times: captured and compiled ones answer as those they stand for, and how all are timed.

Without a GPU the same functions run eagerly where a graph would be replayed.
"""

from __future__ import annotations

import gc
from functools import partial

import pytest
import torch
from decodes import TWELVE, Eager
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import PI0Config, PI0ForConditionalGeneration

from policies import decoding, measuring, variants
from policies.frames import Frame
from policies.pi0 import Pi0
from policies.pi0_variants import Pi0Captured
from policies.timing import collector_paused
from vla_runtime.control.clock import SystemClock
from vla_runtime.decoding.compiled import CompiledBackbone

CONFIG = {
    "seed": 0, "updates": 3, "bubble": [1, 2], "warm_start": None, "fewer_steps": [], "first_block": [],
    "taylorseer": 6, "rounds": [2], "confident": 0.9, "compile": None,
}  # fmt: skip


@pytest.fixture
def on_a_gpu(graphs_made, monkeypatch):
    """As where graphs can be captured; compiling only traces."""
    monkeypatch.setattr(variants, "captures", lambda policy: True)
    traced = partial(CompiledBackbone, compile=lambda run: run)
    monkeypatch.setattr(decoding, "CompiledBackbone", traced)
    return graphs_made


def measured(policy, observations, **options):
    frames = [Frame((one,), None, episode=index) for index, one in enumerate(observations)]
    found = variants.variants_of(policy, frames[0], CONFIG | options, None)
    measuring.measure(policy, found, frames, 2, 1, SystemClock(), 0)
    return {one.name: one for one in found}


@pytest.mark.parametrize(
    ("head", "options", "pairs"),
    [
        ("beast", {}, {"captured": "plain", "compiled": "plain", "compiled, captured": "plain"}),
        (
            "discrete_diffusion", {},
            {"2 rounds, captured": "2 rounds", "compiled": "plain", "compiled, captured": "plain"},
        ),
        (
            "diffusion", {"denoising": TWELVE},
            {
                "exact savings, captured": "exact savings", "compiled": "plain",
                "bac 3, 2 bubbled + exact, captured": "bac 3, 2 bubbled + exact",
            },
        ),
    ],
)  # fmt: skip
def test_captured_and_compiled_variants_answer_as_what_they_stand_for(
    make_policy, observations, on_a_gpu, head, options, pairs
):
    found = measured(make_policy(head, **options), observations)
    assert on_a_gpu
    for name, other in pairs.items():
        assert found[name].deviation.keys() == found[other].deviation.keys()
        for episode, values in found[name].deviation.items():
            assert values == pytest.approx(found[other].deviation[episode], abs=1e-6)
        assert len(found[name].seconds) == 2
        assert not found[name].stages
        assert found[name].decoder is None
    assert "compiled, captured" not in found or head != "diffusion"


def test_nothing_is_captured_or_compiled_where_it_is_not_asked_for(make_policy, observations):
    assert set(measured(make_policy("beast"), observations)) == {"plain"}


def test_fast_variants_are_timed_more_often_and_stages_apart(make_policy, observations, monkeypatch):
    for name, value in (("ROUNDS", 3), ("MANY", 5), ("FAST", 1e9)):
        monkeypatch.setattr(measuring, name, value)
    policy = make_policy("beast")
    frames = [Frame((one,), None) for one in observations]
    (plain,) = variants.variants_of(policy, frames[0], CONFIG, None)
    assert measuring.measure(policy, [plain], frames, None, 1, SystemClock(), 0) == 3
    assert len(plain.seconds) == 5
    assert [len(one) for one in plain.stages] == [len(measuring.STAGES)]
    assert plain.deviation == {0: [0.0] * 5}
    monkeypatch.setattr(measuring, "FAST", 0.0)
    (plain,) = variants.variants_of(policy, frames[0], CONFIG, None)
    measuring.measure(policy, [plain], frames, None, 1, SystemClock(), 0)
    assert len(plain.seconds) == 3


def test_noise_is_drawn_before_the_clock_and_the_collector_rests(make_policy, observations, monkeypatch):
    policy = make_policy("diffusion", denoising=TWELVE)
    events = []

    class Clock(SystemClock):
        def now(self):
            assert not gc.isenabled()
            events.append("clock")
            return super().now()

    draw = policy.head.draw
    monkeypatch.setattr(policy.head, "draw", lambda *given: events.append("draw") or draw(*given))
    frames = [Frame((one,), None) for one in observations]
    plain = variants.Variant("plain", policy.backbone, policy.head, policy.decoder())
    measuring.measure(policy, [plain], frames, 2, 1, Clock(), 0)
    assert events[:9] == ["draw", "clock", "clock"] * 3
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def tiny_pi0():
    text = {
        "model_type": "gemma", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 40,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "patch_size": 14, "image_size": 28, "vision_use_head": False,
    }  # fmt: skip
    vlm = {
        "model_type": "paligemma", "text_config": text, "vision_config": vision, "projection_dim": 32,
        "image_token_id": 39,
    }  # fmt: skip
    torch.manual_seed(0)
    return Pi0(PI0ForConditionalGeneration(PI0Config(chunk_size=6, vlm_config=vlm, dit_config=text)))


def test_pi0_is_captured_as_one_function_that_reads_no_values():
    model, made = tiny_pi0(), []

    def make(run, example):
        made.append(Eager(run, example))
        return made[-1]

    config = model.model.config
    ids = torch.cat([torch.full((8,), 39), torch.arange(1, 6)])[None]
    captured = Pi0Captured(model, 3, make)
    with torch.no_grad():
        for seed in range(2):
            torch.manual_seed(seed)
            batch = {
                "state_BS": torch.randn(1, config.max_state_dim), "ids_BN": ids, "keep_BN": torch.ones_like(ids),
                "pixels_BC3HW": torch.randn(1, 2, 3, 28, 28), "cameras_BC": torch.ones(1, 2, dtype=torch.bool),
            }  # fmt: skip
            start = torch.randn(1, 6, config.max_action_dim)
            wanted = model.decode(model.encode(batch), start, 3)
            torch.testing.assert_close(captured(batch, None, {"start": start}), wanted)
        assert len(made) == 1
        make_fx(made[0].run, tracing_mode="fake", _allow_non_fake_inputs=True)(*made[0].inputs)
