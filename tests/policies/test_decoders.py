"""What sessions decode with: captured graphs that they share, and the chunk before as a guess of the next."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from decodes import TWELVE, Eager
from torch.fx.experimental.proxy_tensor import make_fx

from policies.captured import ChunkGraphs
from policies.checkpoint import load_policy, save_policy
from policies.chunks import TextCache
from policies.decoding import Decode
from policies.heads.fused import FusedDecoder
from policies.heads.prepared import PreparedDecoder
from policies.warm_start import Before
from vla_runtime.decoding.bac import Schedule


@pytest.mark.parametrize("caching", [False, True])
def test_what_is_captured_decodes_cold_warm_given_and_in_full_as_eager_does(scheduled, observations, caching):
    # A guard that is always crossed: every other chunk is decoded in full.
    made = replace(Schedule.load(scheduled / "schedule.json"), guard={0: -10.0, 6: -10.0}) if caching else None
    policy = load_policy(scheduled)
    fused = policy.backbone.prepared_inference()
    eager = PreparedDecoder(policy.head, policy.backbone, made)
    graphs = ChunkGraphs(fused, TextCache(fused), lambda: FusedDecoder(policy.head, fused, made), Eager)
    captured = graphs.session()
    given = policy.committed(np.zeros((1, policy.spec.action.size), np.float32))
    for index, (committed, first) in enumerate([(None, 0), (given, 0), (None, 6), (given, 6), (None, 0), (given, 0)]):
        batch = policy.batch([[observations[index % 2]]])
        noise = policy.head.draw(1, torch.Generator().manual_seed(index))
        warm = torch.zeros(1, policy.spec.horizon, policy.spec.action.size) if first else None
        found = captured(batch, committed, noise, warm, first)
        wanted = eager(policy.backbone.encode(batch), committed, noise, 1, warm, first)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        assert captured.facts == pytest.approx(eager.facts, abs=1e-5)
    # Other sizes of a batch have graphs of their own.
    batch = policy.batch([[one] for one in observations])
    noise = policy.head.draw(2, torch.Generator().manual_seed(9))
    wanted = eager(policy.backbone.encode(batch), None, noise, 2)
    torch.testing.assert_close(captured(batch, None, noise), wanted, rtol=0, atol=1e-5)


def test_capturing_beforehand_captures_all_and_leaves_no_trace(scheduled, observations, graphs_made):
    policy = load_policy(scheduled, decode=Decode("bac", warm_start=0.5, graphs=True))
    session = policy.begin(0)
    # By plan and in full, cold and warm, with rows given and without.
    assert len(graphs_made) == 8
    replayed = [0]
    for graph in graphs_made:
        graph.run = counted(graph.run, replayed)
    for seed in (1, 2):
        policy.begin(seed)
    assert replayed == [0]
    session.predict([observations[0]])
    assert (len(graphs_made), replayed) == (8, [1])


def counted(run, count):
    def counting(*values):
        count[0] += 1
        return run(*values)

    return counting


def test_a_deadline_is_met_by_fewer_rounds_though_all_rounds_are_one_graph(
    make_policy, observations, graphs_made, tmp_path
):
    save_policy(tmp_path / "other", make_policy("discrete_diffusion"), {}, {})
    session = load_policy(tmp_path / "other", decode=Decode("plain", graphs=True)).begin(0)
    assert session.predict([observations[0]]).facts["cut"] == 0
    assert session.predict([observations[0]], deadline=0.0).facts["cut"] == 1
    assert session.predict([observations[0]]).facts["cut"] == 0


def test_an_instruction_is_encoded_once(make_policy, observations):
    policy = make_policy("beast")
    asked, encode = [], policy.backbone.encode_text
    policy.backbone.encode_text = lambda instructions: (asked.append(instructions), encode(instructions))[1]
    session = policy.begin(0)
    first = session.predict([observations[0]])
    again = session.predict([observations[0]])
    session.predict([replace(observations[0], instruction="something else")])
    assert np.array_equal(first.actions, again.actions)
    assert asked == [(observations[0].instruction,), ("something else",)]


@pytest.mark.parametrize(
    ("head", "options", "mode", "each"),
    [
        # By plan and in full, with rows given and without; of rounds also what encodes and a round, for deadlines.
        *(("diffusion", {"denoising": TWELVE}, "bac", 4), ("diffusion", {"denoising": TWELVE}, "exact", 2)),
        *(("discrete_diffusion", {}, "plain", 2 + 2), ("beast", {}, "plain", 2)),
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
            chunks = [session.predict([observation]).actions for session in (one, other)]
            np.testing.assert_allclose(*chunks, atol=1e-5)
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
    # By plan and in full, without given rows and with them.
    for graph in graphs_made[:: max(1, len(graphs_made) - 1)]:
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
