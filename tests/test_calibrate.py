"""The command: from a checkpoint and demonstrations to a schedule, a table, a page, and a way to decode."""

from __future__ import annotations

import json
import shutil

import pytest
from decodes import graphs_without_a_gpu
from PIL import Image

from policies import calibrating, verdicts
from policies.backbones.nano import Nano
from policies.checkpoint import load_policy
from policies.decoding import Decode
from vla_runtime import calibrate, collect, finetune
from vla_runtime.compose import BadArguments, load
from vla_runtime.decoding.bac import Schedule

TINY = [
    *("steps=2", "batch_size=4", "warmup=1", "validate_every=2", "validate_samples=2"),
    *("horizon=8", "executed=4", "max_committed=2"),
    *("backbone.image_size=16", "backbone.width=32", "backbone.heads=2", "backbone.decoder_depth=2"),
]
FAST = [
    *("control=null", "recorded=1", "judged=6", "updates=[2,4]", "bubble=[2]", "fewer_steps=[3]"),
    *("warm_start=[0.5]", "tolerance=10", "noises=2", "timed=4"),
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    out = tmp_path_factory.mktemp("recorded") / "reach"
    collect.collect(load("collect", ["env=reach", "env.size=16", "episodes=4", "workers=1", f"out={out}"]))
    return out


@pytest.fixture(scope="module")
def diffusion(recorded, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "diffusion"
    head = ["head=diffusion", "head.denoising.steps=10", "head.denoising.train_steps=10", "tokenizer=none"]
    finetune.finetune(load("finetune", [f"data={recorded}", f"out={out}", *TINY, *head]))
    return out


def calibrated(policy, out, *options):
    asked = ["env=reach", "env.size=16", f"policy={policy}", f"out={out}", *FAST, *options]
    return calibrate.calibrate(load("calibrate", asked))


def of_other_data(folder):
    """As if the checkpoint had learned from other demonstrations."""
    path = folder / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seen": []}))


def test_a_schedule_a_table_and_a_page(diffusion, recorded, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(diffusion, own)
    # A way to decode is not chosen on what was learned from.
    with pytest.raises(
        ValueError, match=r"name=true: expected demonstrations that the policy has not learned from, got"
    ):
        calibrated(own, "null", f"data={recorded}", "name=true")
    assert not (own / "decode.json").exists()
    of_other_data(own)
    line, code = calibrated(own, "null", f"data={recorded}", "name=true")
    assert code == 0
    tmp_path = own
    assert {"schedule", "steps", "updates", "flops_ratio", "action_error", "recommendation"} <= set(line)
    schedule = Schedule.load(tmp_path / "schedule.json")
    assert schedule.weights == load_policy(diffusion).spec.weights
    document = json.loads((tmp_path / "calibration.json").read_text())
    rows = {row["variant"]: row for row in document["rows"]}
    assert set(rows) >= {
        "plain", "plain, other noise", "exact", "uniform 2", "unified 2", "blockwise 2", "bac 2, 2 bubbled",
        "uniform 4", "unified 4", "blockwise 4", "bac 4, 2 bubbled", "ddim 3", "dpm 3", "warm start 0.5",
        "bac 2, 2 bubbled, warm start 0.5", "bac 4, 2 bubbled, warm start 0.5",
    }  # fmt: skip
    assert rows["plain"]["deviation"] == 0
    assert rows["plain"]["worse_than_plain_interval"] == [0, 0]
    # Another noise gives another chunk, and is what the others are to be measured by.
    assert rows["plain, other noise"]["deviation"] > 10 * rows["exact"]["deviation"]
    assert rows["plain, other noise"]["p50_ms"] is None
    assert rows["warm start 0.5"]["flops_ratio"] == pytest.approx(0.5, abs=0.02)
    both = rows["bac 4, 2 bubbled, warm start 0.5"]["flops_ratio"]
    assert both < min(rows["bac 4, 2 bubbled"]["flops_ratio"], rows["warm start 0.5"]["flops_ratio"])
    for row in rows.values():
        low, high = row["expert_error_median_interval"]
        assert low <= row["expert_error_median"] <= high
    # The same work as bubbling spends, spent without it.
    bubbled = rows["bac 2, 2 bubbled"]["flops_ratio"]
    assert min(abs(rows[name]["flops_ratio"] - bubbled) for name in rows if name.startswith("uniform")) < 0.07
    assert document["homogeneity"]["demonstrations"] >= 1
    assert len(document["homogeneity"]["ratio_by_source"]) == 3
    # Cold and warm decodes are guarded each by their own bound, where they have updates to watch.
    assert {0} <= set(schedule.guard) <= {0, 5}
    assert schedule.guard == {int(first): bound for first, bound in document["guard"].items()}
    assert rows["ddim, in full"]["deviation"] == 0 < rows["ddim 3"]["deviation"]
    assert rows["exact"]["deviation"] < 1e-4
    assert rows["ddim 3"]["flops_ratio"] == pytest.approx(0.3, abs=0.02)
    assert rows["uniform 4"]["flops_ratio"] == pytest.approx(0.5, abs=0.03)  # four steps and the last
    assert rows["plain"]["flops"] > rows["exact"]["flops"] > 0
    fastest = min((row for row in rows.values() if row["p50_ms"]), key=lambda row: row["p50_ms"])
    assert fastest["front"]
    assert not rows["plain, other noise"]["front"]
    page = (tmp_path / "calibration.html").read_text()
    assert all(name in page for name in rows)
    assert "<svg" in page
    with Image.open(tmp_path / "calibration.png") as image:
        image.verify()
    # With so wide a tolerance the fastest wins; decode=auto then follows it.
    assert line["recommendation"] == min(
        (name for name in rows if rows[name]["p50_ms"] is not None), key=lambda name: rows[name]["p50_ms"]
    )
    named, best = Decode(**json.loads((own / "decode.json").read_text())), document["recommendation"]
    assert (named.mode == "bac") == best.startswith(("bac", "uniform", "unified", "blockwise"))
    assert (named.warm_start is not None) == ("warm start" in best)
    decodes = load_policy(own).spec.decode
    assert (decodes["mode"], decodes.get("warm_start")) == (named.mode, named.warm_start)
    # Where none is named it is written without asking; what is named would be another than was named.
    (own / "decode.json").write_text(json.dumps({"mode": "exact", "schedule": None}))
    calibrated(own, "null", f"data={recorded}", "updates=[2]", "fewer_steps=[]", "warm_start=[]")
    (own / "decode.json").write_text(json.dumps({"mode": "bac", "schedule": "schedule.json"}))
    with pytest.raises(ValueError, match=r"decode\.json: expected one that names no schedule"):
        calibrated(own, "null", f"data={recorded}")


def test_demonstrations_are_recorded_where_none_are_given(diffusion, tmp_path):
    few = ["episodes=3", "judged=3", "warm_start=[]", "updates=[3]", "fewer_steps=[]"]
    line, _ = calibrated(diffusion, tmp_path, *few)
    assert (tmp_path / "schedule.json").is_file()
    assert line["steps"] == 10
    assert not (tmp_path / "decode.json").exists()


def test_flow_is_calibrated_by_what_fits_it_and_refused_before_anything_is_recorded(recorded, tmp_path, monkeypatch):
    head = ["head=flow", "head.steps=8", "tokenizer=none"]
    finetune.finetune(load("finetune", [f"data={recorded}", f"out={tmp_path / 'flow'}", *TINY, *head]))
    few = [f"data={recorded}", "updates=null", "bubble=null", "fewer_steps=null", "judged=2", "warm_start=[]"]
    calibrated(tmp_path / "flow", tmp_path / "out", *few)
    rows = json.loads((tmp_path / "out" / "calibration.json").read_text())["rows"]
    names = {row["variant"] for row in rows}
    assert {"uniform 5", "5 steps"} <= names
    assert not {"uniform 10", "10 steps"} & names
    monkeypatch.setattr(calibrate, "collect_few", lambda *_: pytest.fail("recorded for nothing"))
    with pytest.raises(ValueError, match="expected numbers from 1 to 8, got 9"):
        calibrated(tmp_path / "flow", tmp_path / "out", "updates=[9]")


def test_masked_diffusion_is_judged_with_fewer_rounds(recorded, tmp_path):
    head = ["head=discrete_diffusion", "head.decoding.rounds=4", "tokenizer=bins"]
    finetune.finetune(load("finetune", [f"data={recorded}", f"out={tmp_path / 'masked'}", *TINY, *head]))
    null = ("updates=null", "bubble=null", "warm_start=null")
    of_other_data(tmp_path / "masked")
    line, code = calibrated(tmp_path / "masked", "null", f"data={recorded}", "fewer_steps=[1,2]", "name=true", *null)
    assert (code, line["schedule"], line["cached"]) == (0, None, None)
    assert not (tmp_path / "masked" / "schedule.json").exists()
    rows = {row["variant"]: row for row in json.loads((tmp_path / "masked" / "calibration.json").read_text())["rows"]}
    # It is greedy: asked again it says the same, and there is no noise to be another.
    assert set(rows) == {"plain", "1 rounds", "2 rounds", "until 0.9 sure"}
    assert [rows[name]["flops_ratio"] for name in ("1 rounds", "2 rounds")] == pytest.approx([0.25, 0.5], abs=0.01)
    assert "one decode each" in (tmp_path / "masked" / "calibration.html").read_text()
    assert rows["1 rounds"]["deviation"] > 0
    named = Decode(**json.loads((tmp_path / "masked" / "decode.json").read_text()))
    assert line["recommendation"] in (f"{named.steps} rounds", "until 0.9 sure")
    assert load_policy(tmp_path / "masked").spec.decode["rounds"] == (named.steps or 4)
    with pytest.raises(ValueError, match=r"expected a probability in \(0, 1\], got 1.5"):
        calibrated(tmp_path / "masked", "null", f"data={recorded}", "confident=[1.5]", "fewer_steps=[1]", *null)
    with pytest.raises(ValueError, match="expected numbers from 1 to 3, got 4; this policy takes 4 steps"):
        calibrated(tmp_path / "masked", tmp_path / "out", f"data={recorded}", "fewer_steps=[4]", *null)
    with pytest.raises(
        ValueError, match="updates: expected null for discrete_diffusion over nano, which reuses nothing, got"
    ):
        calibrated(tmp_path / "masked", tmp_path / "out", f"data={recorded}")


def test_a_backbone_whose_branches_cannot_be_reused_is_judged_with_fewer_steps(
    diffusion, recorded, tmp_path, monkeypatch
):
    monkeypatch.delattr(Nano, "prepared")
    own = tmp_path / "own"
    shutil.copytree(diffusion, own)
    of_other_data(own)
    null = ("updates=null", "bubble=null", "warm_start=null", "precision=bf16", "judged=3")
    line, _ = calibrated(own, "null", f"data={recorded}", "name=true", *null)
    assert (line["schedule"], line["cached"]) == (None, None)
    document = json.loads((own / "calibration.json").read_text())
    assert document["precision"] == "bf16"
    rows = {row["variant"]: row for row in document["rows"]}
    assert set(rows) == {"plain", "plain, other noise", "ddim 3", "dpm 3", "ddim, in full", "dpm, in full"}
    assert rows["ddim 3"]["flops_ratio"] == pytest.approx(0.3, abs=0.02)
    assert "10 steps, judged on 3 frames" in (own / "calibration.html").read_text()
    assert load_policy(own).precision == "bf16"
    with pytest.raises(ValueError, match=r"updates: expected null for diffusion over nano, which reuses nothing"):
        calibrated(own, "null", f"data={recorded}")


def captured_rows(folder):
    """Rows of captured decodings, and of those they were captured from."""
    rows = {row["variant"]: row for row in json.loads((folder / "calibration.json").read_text())["rows"]}
    captured = [name for name in rows if name.endswith(", captured")]
    return [(rows[name], rows[name.removesuffix(", captured")]) for name in captured], rows


def test_what_is_on_the_front_is_captured_too(diffusion, recorded, tmp_path, monkeypatch):
    made = graphs_without_a_gpu(monkeypatch)
    monkeypatch.setattr(calibrating, "captures", lambda policy: True)
    calibrated(diffusion, tmp_path, f"data={recorded}")
    pairs, rows = captured_rows(tmp_path)
    assert made
    assert 0 < len(pairs) < len(rows) - len(pairs)
    for captured, eager in pairs:
        assert captured["deviation"] == pytest.approx(eager["deviation"], abs=1e-6)
        assert captured["p50_ms"] > 0
    tried = [row for row in rows.values() if not row["variant"].endswith((", captured", ", in full"))]
    front = {row["variant"] for row in verdicts.with_front(tried) if row["front"]}
    assert {eager["variant"] for _, eager in pairs} == front


@pytest.mark.gpu
def test_on_a_gpu_captured_decodings_answer_as_eager_ones(diffusion, recorded, tmp_path):
    calibrated(diffusion, tmp_path, f"data={recorded}", "device=cuda")
    pairs, _ = captured_rows(tmp_path)
    assert pairs
    for captured, eager in pairs:
        assert captured["deviation"] == pytest.approx(eager["deviation"], abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["updates=[11]"], "expected numbers from 1 to 10, got 11"),
        (["bubble=7"], "bubble: expected a list of numbers, got 7"),
        (["bubble=[7]"], "expected numbers from 0 to 6, got 7"),
        (["fewer_steps=[10]"], "expected numbers from 1 to 9, got 10"),
        (["updates=[]"], "updates: expected at least one number"),
        (["bubble=[]"], "bubble: expected at least one number"),
        (["warm_start=[1.5]"], r"expected a share in \(0, 1\]"),
        (["tolerance=-1"], "tolerance: expected a share from 0 on"),
        (["metric=wasserstein"], "expected one of cosine"),
        (["name=true"], "expected out=null"),
        (["judged=100000"], "expected a data set with usable samples of 1 episodes to record and 100000 of others"),
        (["recorded=100"], "samples of 100 episodes to record and 6 of others, got"),
    ],
)
def test_settings_out_of_range_are_named(diffusion, recorded, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        calibrated(diffusion, tmp_path, f"data={recorded}", *options)
    assert not list(tmp_path.iterdir())


def test_a_policy_that_executes_whole_chunks_has_no_warm_start(recorded, tmp_path):
    head = ["head=flow", "head.steps=3", "tokenizer=none", "executed=8"]
    finetune.finetune(load("finetune", [f"data={recorded}", f"out={tmp_path / 'whole'}", *TINY, *head]))
    with pytest.raises(ValueError, match="expected a policy that executes less than its 8 rows, got 8"):
        calibrated(tmp_path / "whole", tmp_path / "out", f"data={recorded}", "updates=[2]", "fewer_steps=[2]")


def test_policies_without_steps_are_refused(recorded, tmp_path):
    with pytest.raises(BadArguments, match="expected a trained policy, got expert"):
        calibrated("expert", tmp_path)
    finetune.finetune(load("finetune", [f"data={recorded}", f"out={tmp_path / 'beast'}", *TINY, "head=beast"]))
    with pytest.raises(ValueError, match="expected a diffusion or flow head, got beast"):
        calibrated(tmp_path / "beast", tmp_path / "out", f"data={recorded}")
