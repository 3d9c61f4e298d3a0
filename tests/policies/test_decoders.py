"""What sessions decode with: captured graphs that they share, and the chunk before as a guess of the next."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from decodes import TWELVE, Eager
from torch.fx.experimental.proxy_tensor import make_fx

from policies.checkpoint import load_policy, save_policy
from policies.decoders import Before, CapturedDecoder, Graphs
from policies.decoding import Decode
from policies.heads.prepared import PreparedDecoder
from vla_runtime.decoding.bac import Schedule


@pytest.mark.parametrize("caching", [False, True])
def test_what_is_captured_decodes_cold_warm_given_and_in_full_as_eager_does(scheduled, observations, caching):
    # A guard that is always crossed: every other chunk is decoded in full.
    made = replace(Schedule.load(scheduled / "schedule.json"), guard={0: -10.0, 6: -10.0}) if caching else None
    policy = load_policy(scheduled)
    eager = PreparedDecoder(policy.head, policy.backbone, made)
    captured = CapturedDecoder(Graphs(lambda: PreparedDecoder(policy.head, policy.backbone, made), Eager))
    given = policy.committed(np.zeros((1, policy.spec.action.size), np.float32))
    for index, (committed, first) in enumerate([(None, 0), (given, 0), (None, 6), (given, 6), (None, 0), (given, 0)]):
        context = policy.backbone.encode(policy.batch([[observations[index % 2]]]))
        noise = policy.head.draw(1, torch.Generator().manual_seed(index))
        warm = (torch.zeros(1, policy.spec.horizon, policy.spec.action.size),) if first else ()
        arguments = (context, committed, noise, 1, *warm, *((first,) if first else ()))
        assert torch.equal(captured(*arguments), eager(*arguments))
        assert captured.facts == eager.facts
    # Other sizes of a batch have graphs of their own.
    context = policy.backbone.encode(policy.batch([[one] for one in observations]))
    noise = policy.head.draw(2, torch.Generator().manual_seed(9))
    assert torch.equal(captured(context, None, noise, 2), eager(context, None, noise, 2))


def test_capturing_beforehand_captures_all_and_leaves_no_trace(scheduled, observations):
    made = replace(Schedule.load(scheduled / "schedule.json"), guard={0: -10.0})
    policy = load_policy(scheduled)
    decoders = [PreparedDecoder(policy.head, policy.backbone, made) for _ in range(2)]
    count = []

    def make(run, example):
        count.append(1)
        return Eager(run, example)

    captured = CapturedDecoder(Graphs(lambda: decoders[0], make))
    context = policy.backbone.encode(policy.batch([observations[:1]]))
    noise = policy.head.draw(1, torch.Generator().manual_seed(0))
    captured.capture(context, None, noise)
    assert len(count) == 2  # by plan and in full
    for _ in range(3):
        assert torch.equal(captured(context, None, noise), decoders[1](context, None, noise))
        assert captured.facts == decoders[1].facts
    assert len(count) == 2


@pytest.mark.parametrize(
    ("head", "options", "mode", "each"),
    [
        # The prefix, and what is asked with it: by plan and in full, with rows given and without; or every pass.
        *(("diffusion", {"denoising": TWELVE}, "bac", 1 + 4), ("diffusion", {"denoising": TWELVE}, "exact", 1 + 2)),
        *(("discrete_diffusion", {}, "plain", 1 + 1), ("beast", {}, "plain", 1 + 1)),
    ],
)
def test_sessions_share_graphs_and_keep_what_is_theirs(
    make_policy, scheduled, observations, graphs_made, tmp_path, head, options, mode, each
):
    if head != "diffusion":
        save_policy(tmp_path / "other", make_policy(head, **options), options, {})
    folder = scheduled if head == "diffusion" else tmp_path / "other"
    eager, captured = (load_policy(folder, decode=Decode(mode, graphs=graphs)) for graphs in (False, True))
    wanted = [eager.begin(seed) for seed in (1, 2)]
    found = [captured.begin(seed) for seed in (1, 2)]
    assert len(graphs_made) == each
    for observation in observations * 2:
        for one, other in zip(wanted, found, strict=True):
            assert np.array_equal(one.predict([observation]).actions, other.predict([observation]).actions)
    assert len(graphs_made) == each


@pytest.mark.parametrize(
    ("head", "options", "mode"),
    [
        *(("diffusion", {"denoising": TWELVE}, "bac"), ("flow", {}, "exact"), ("beast", {}, "plain")),
        *(("discrete_diffusion", {}, "plain"), ("regression", {}, "plain")),
    ],
)
def test_what_is_captured_reads_no_values(
    make_policy, scheduled, observations, graphs_made, tmp_path, head, options, mode
):
    """A graph is recorded without its inputs' values; what asks for one fails here as it would there."""
    if mode != "bac":
        save_policy(tmp_path / "other", make_policy(head, **options), options, {})
    folder = scheduled if mode == "bac" else tmp_path / "other"
    load_policy(folder, decode=Decode(mode, graphs=True)).begin(0)
    assert graphs_made
    for graph in graphs_made:
        with torch.no_grad():
            make_fx(graph.run, tracing_mode="fake", _allow_non_fake_inputs=True)(*graph.inputs)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("head", "options", "mode"),
    [("diffusion", {"denoising": TWELVE}, "exact"), ("discrete_diffusion", {}, "plain"), ("beast", {}, "plain")],
)
def test_sessions_with_graphs_answer_as_eager_ones(make_policy, tmp_path, observations, head, options, mode):
    save_policy(tmp_path / "saved", make_policy(head, **options), options, {})
    eager, captured = (
        load_policy(tmp_path / "saved", device="cuda", decode=Decode(mode, graphs=graphs)).begin(0)
        for graphs in (False, True)
    )
    for observation in observations:
        one, other = (session.predict([observation]).actions for session in (eager, captured))
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_chunk_that_stands_still_is_passed_as_time_says():
    """Where given rows are found at several places of the chunk before, the first is not the place."""
    before = Before(0.05, torch.full((1,), torch.nan), torch.tensor([True]))
    rows = torch.cat([torch.zeros(12), torch.arange(1, 5)]).float()[None, :, None]
    before.keep(rows, 0.0, "lift")
    assert before.passed(0.4, "lift", rows[:, 8:12]) == 8
    assert before.guess(0.4, "lift", rows[:, 8:12])[0, 4, 0] == 1
    # A robot that has held meanwhile is told by the rows, not by time.
    assert before.passed(0.4, "lift", rows[:, 11:14]) == 11


def test_rows_of_no_place_are_passed_as_time_says():
    """Rows that limits changed, or that are of an earlier chunk, look most like places where they are not."""
    rows = torch.stack([torch.arange(16) / 10, torch.arange(16) / 20 - 0.4], dim=1)[None]
    before = Before(0.05, torch.full((2,), torch.nan), torch.tensor([True, False]))
    before.keep(rows, 0.0, "lift")
    assert before.passed(0.2, "lift", rows[:, 8:12] + 0.03) == 4
    # A gripper that is snapped to open or closed does not hide where the others are.
    snapped = torch.stack([rows[..., 0], rows[..., 1].sign()], dim=2)
    assert before.passed(0.2, "lift", snapped[:, 8:12]) == 8
