"""The command: every variant of a trained policy and of presets, in one table that adds up."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback

import pytest

from vla_runtime import bench, collect, finetune
from vla_runtime.compose import BadArguments, load

TINY = [
    *("steps=2", "batch_size=4", "warmup=1", "validate_every=2", "validate_samples=2"),
    *("horizon=8", "executed=4", "max_committed=2"),
    *("backbone.image_size=16", "backbone.width=32", "backbone.heads=2", "backbone.decoder_depth=2"),
]
FAST = ["observations=3", "warmup=1", "repeats=4", "updates=3", "bubble=[1,2]", "fewer_steps=[5]", "rounds=[1,2]"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    out = tmp_path_factory.mktemp("recorded") / "reach"
    collect.collect(load("collect", ["env=reach", "env.size=16", "episodes=2", "workers=1", f"out={out}"]))
    return out


@pytest.fixture(scope="module")
def trained(recorded, tmp_path_factory):
    def make(name, *head):
        out = tmp_path_factory.mktemp("trained") / name
        finetune.finetune(load("finetune", [f"data={recorded}", f"out={out}", *TINY, f"head={name}", *head]))
        return out

    return make


def benched(*options):
    return bench.bench(load("bench", ["control=null", *FAST, *options]))


def test_every_way_to_denoise_is_timed_on_the_same_chunks(recorded, trained, tmp_path):
    folder = trained("diffusion", "head.denoising.steps=10", "head.denoising.train_steps=10", "tokenizer=none")
    # Other steps than the plain way's, and calibrated in another precision than is timed.
    (folder / "decode.json").write_text(
        json.dumps({"mode": "exact", "sampler": "dpm", "steps": 5, "precision": "bf16"})
    )
    found, code = benched(f"policy={folder}", f"data={recorded}", f"out={tmp_path}")
    assert code == 0
    (file,) = tmp_path.iterdir()
    assert file.name.startswith(f"bench_{folder.name}_fp32_")
    assert json.loads(file.read_text()) == json.loads(json.dumps(found))
    rows = {row["variant"]: row for row in found["rows"]}
    assert next(iter(rows)) == "plain"
    blocks = 2 * 3
    assert rows["plain"]["evaluations"] == rows["exact savings"]["evaluations"] == 10 * blocks
    assert rows["plain"]["flops_ratio"] == 1
    for exact in ("torch nn.TransformerDecoder", "exact savings"):
        assert rows[exact]["deviation"] < 1e-4
    # torch's layers compute the context's keys and values again in every step.
    assert rows["exact savings"]["flops_ratio"] <= 1 < rows["torch nn.TransformerDecoder"]["flops_ratio"]
    uniform = rows["uniform 3 + exact"]
    assert uniform["evaluations"] == 4 * blocks  # three steps and the last
    assert uniform["flops_ratio"] < 0.5
    last = "bac 3, 2 bubbled"
    one, two = rows["bac 3, 1 bubbled + exact"]["evaluations"], rows[f"{last} + exact"]["evaluations"]
    assert uniform["evaluations"] <= one <= two == rows[last]["evaluations"]
    assert rows[last]["deviation"] == pytest.approx(rows[f"{last} + exact"]["deviation"], abs=1e-4)
    assert rows["warm start 0.2 + exact"]["evaluations"] == 2 * blocks
    assert rows[f"{last}, warm start 0.2 + exact"]["evaluations"] <= 2 * blocks
    fifth = 0.2 * rows["exact savings"]["flops_ratio"]
    assert rows["warm start 0.2 + exact"]["flops_ratio"] == pytest.approx(fifth, rel=0.1)
    # Another sampler's chunks are other chunks: how far they are from plain's says nothing.
    assert rows["ddim 5 + exact"]["deviation"] is None
    assert rows["as the checkpoint names"]["deviation"] is None
    others = {"ddim 5 + exact", "dpm 5 + exact", "diffusers first-block, 0.1", "diffusers TaylorSeer, every 10"}
    assert others <= set(rows)
    for row in rows.values():
        assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["expert_error"] > 0
        assert row["speedup_interval"][0] <= row["speedup"] <= row["speedup_interval"][1]
        assert row["repeats"] == 4
        assert row["speedup_over_exact"] > 0
        assert row["actions_per_s"] == pytest.approx(4e3 / row["p50_ms"], rel=0.02)
    assert rows["exact savings"]["speedup_over_exact"] == 1
    # Stages are timed in chunks of their own.
    assert 0 < rows["plain"]["decode_p50_ms"] == found["stages_ms"]["decode"]
    assert set(found["stages_ms"]) == {"observe", "vision", "prefix", "decode", "post"}


def test_rounds_with_the_prefix_kept_and_computed_anew_say_the_same(recorded, trained):
    folder = trained("discrete_diffusion", "head.decoding.rounds=2")
    found, _ = benched(f"policy={folder}", f"data={recorded}")
    rows = {row["variant"]: row for row in found["rows"]}
    anew = "keys and values of the context recomputed"
    assert set(rows) == {
        "plain", "1 rounds", f"1 rounds, {anew}", "2 rounds", f"2 rounds, {anew}", "2 rounds, random order",
        "rounds until all are 90% sure",
    }  # fmt: skip
    assert rows["2 rounds"]["deviation"] == rows[f"2 rounds, {anew}"]["deviation"] == 0
    assert rows[f"2 rounds, {anew}"]["flops"] > rows["2 rounds"]["flops"] == rows["plain"]["flops"]


def test_one_pass_heads_have_one_row(recorded, trained):
    found, _ = benched(f"policy={trained('beast')}", f"data={recorded}")
    assert [row["variant"] for row in found["rows"]] == ["plain"]
    assert found["rows"][0]["speedup_over_exact"] is None


def test_presets_need_no_data_and_claim_no_expert():
    small = ["preset.backbone.width=32", "preset.backbone.decoder_depth=2", "preset.head.denoising.train_steps=10"]
    found, _ = benched("preset=dp_t", *small, "preset.head.denoising.steps=10")
    assert not found["trained"]
    assert found["precision"] == "fp32"
    # As the preset names, where nothing else is asked for.
    named = ["+preset.precision=bf16", "preset.head.denoising.steps=10"]
    half, _ = benched("preset=dp_t", *small, *named)
    assert half["precision"] == "bf16"
    assert found["weights"] is None
    assert all(row["expert_error"] is None for row in found["rows"])


def test_pi0_is_sampled_as_transformers_does_and_with_its_branches_reused():
    text = "{model_type: gemma, hidden_size: 32, num_hidden_layers: 2, intermediate_size: 64, vocab_size: 40, "
    text += "num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16}"
    vision = "{model_type: siglip_vision_model, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, "
    vision += "num_attention_heads: 2, patch_size: 14, image_size: 28, vision_use_head: false}"
    vlm = f"{{model_type: paligemma, text_config: {text}, vision_config: {vision}, projection_dim: 32, "
    vlm += "image_token_id: 39}"
    sizes = f"+preset.model={{vlm_config: {vlm}, dit_config: {text}}}"
    found, _ = benched("preset=pi0", sizes, "preset.camera_pixels=32", "preset.horizon=6", "preset.executed=6")
    rows = {row["variant"]: row for row in found["rows"]}
    assert rows["transformers' sample_actions"]["deviation"] < 1e-5
    assert rows["plain"]["evaluations"] == 40
    assert rows["5 steps"]["evaluations"] == 20
    assert rows["uniform 5"]["evaluations"] == 24  # five steps and the last
    assert 20 <= rows["bac 5"]["evaluations"] < 40
    assert rows["bac 5"]["deviation"] > 0


def test_a_sweep_changes_one_thing_at_a_time_and_is_drawn(tmp_path):
    small = ["preset.backbone.width=32", "preset.backbone.heads=2", "preset.head.denoising.train_steps=10"]
    steps = ["preset.head.denoising.steps=10", "preset.max_committed=2", "fewer_steps=[]"]
    found, _ = benched("preset=nano", *small, *steps, "sweep=true", "repeats=1", f"out={tmp_path}")
    values = {(row["against"], row["value"]) for row in found["sweep"]}
    assert {("views", 1), ("views", 2), ("words", 4), ("words", 24), ("rows", 8), ("rows", 64)} <= values
    assert ("views", 3) not in values  # nano has two cameras at most
    assert all(row["encode_ms"] > 0 < row["decode_ms"] for row in found["sweep"])
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["policy=expert"], BadArguments, "expected a trained policy or preset=, got expert"),
        (["preset=dp_t", "repeats=0"], BadArguments, "repeats: expected at least 1"),
        (["preset=dp_t", "warmup=0"], BadArguments, "warmup: expected at least 1 round"),
        (["sweep=true", "preset=pi0"], ValueError, "expected a preset with a backbone of this package, got pi0"),
        (["sweep=true", "policy=nano_lift_diffusion"], ValueError, "sweep=true: expected a preset"),
        (["preset=dp_t", "updates=101"], ValueError, "updates: expected 1 to 100"),
        (["preset=dd_vla_7b"], ValueError, "expected device=cuda, got cpu"),
        (["preset=dp"], BadArguments, "preset: expected one of .*nearest: dp_t"),
    ],
)
def test_what_cannot_be_measured_is_named(options, error, message):
    with pytest.raises(error, match=message):
        benched(*options)


def test_it_needs_no_pyav():
    """In a process of its own, which has all that is slow to import from this one."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for name in list(sys.modules):
                if name.partition(".")[0] in ("vla_runtime", "policies", "av"):
                    del sys.modules[name]
            sys.modules["av"] = None
            for name in ("vla_runtime.bench", "policies.benchmarking"):
                importlib.import_module(name)
            code = 0
        finally:
            traceback.print_exc()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
