"""Graphs on a GPU: they answer as eager decodes do, whatever is asked of them, and wait for nobody.

The last test runs the same functions where there is no GPU, with eager calls where graphs would be replayed.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import numpy as np
import on_gpu
import pytest
import torch
from decodes import graphs_without_a_gpu

from policies.decoding import PLAIN, Decode
from policies.presets import preset_policy

EXACT = Decode("exact")


@pytest.fixture(scope="module")
def nano():
    return preset_policy(on_gpu.NANO, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("warm", [None, 0.5])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_captured_equals_eager(nano, tmp_path, caching, warm, rows, full):
    decode = on_gpu.with_schedule(nano, tmp_path, full) if caching else EXACT
    mode, schedule = decode.mode, decode.schedule
    assert on_gpu.apart(nano, Decode(mode, schedule=schedule, warm_start=warm), rows) < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("values", [on_gpu.FLORENCE, on_gpu.PRISMATIC, on_gpu.NANO_BEAST], ids=lambda one: one["name"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_pass_and_rounds_equal_eager_ones(values, precision):
    assert on_gpu.apart(preset_policy(values, "cuda", precision), PLAIN) < (1e-4 if precision == "fp32" else 1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("caching", [False, True])
def test_replays_repeat_themselves_and_see_what_they_are_given(nano, tmp_path, caching):
    first, again, other = on_gpu.replays(nano, on_gpu.with_schedule(nano, tmp_path) if caching else EXACT)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4


@pytest.mark.gpu
def test_nothing_of_one_chunk_is_left_in_the_next(nano):
    before, after = on_gpu.poisoned(nano, EXACT, "cuda")
    torch.testing.assert_close(before, after)


@pytest.mark.gpu
@pytest.mark.parametrize("values", [on_gpu.NANO, on_gpu.PRISMATIC], ids=lambda one: one["name"])
def test_two_threads_answer_as_one_after_the_other(values):
    policy = preset_policy(values, "cuda")
    assert on_gpu.threads(policy, EXACT if values is on_gpu.NANO else PLAIN)


@pytest.mark.gpu
def test_a_second_session_replays_nothing_before_it_is_asked(nano, monkeypatch):
    count = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: count.append(1) or replay(graph))
    assert on_gpu.begun_again(nano, Decode("exact", warm_start=0.5), lambda: len(count)) == 0
    assert count


@contextmanager
def no_waits():
    """Inside, whatever makes the host wait for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize(
    "values", [on_gpu.NANO, on_gpu.NANO_BEAST, on_gpu.FLORENCE], ids=lambda one: one["head"]["name"]
)
def test_a_replay_waits_for_nothing(values):
    policy = preset_policy(values, "cuda")
    free, watched = on_gpu.replayed(policy, EXACT if values is on_gpu.NANO else PLAIN, "cuda", no_waits())
    torch.testing.assert_close(free, watched)


def test_the_same_without_a_gpu(monkeypatch, tmp_path):
    """Not what a GPU shows, but every line that shows it there."""
    made = graphs_without_a_gpu(monkeypatch)
    nano = preset_policy(on_gpu.NANO)
    for decode, rows in ((EXACT, True), (on_gpu.with_schedule(nano, tmp_path, True), False)):
        assert on_gpu.apart(nano, decode, rows) < 1e-5
    assert on_gpu.apart(nano, Decode("exact", warm_start=0.5)) < 1e-5
    for values in (on_gpu.FLORENCE, on_gpu.PRISMATIC, on_gpu.NANO_BEAST):
        assert on_gpu.apart(preset_policy(values), PLAIN, count=1) < 1e-5
    first, again, other = on_gpu.replays(nano, EXACT)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4
    torch.testing.assert_close(*on_gpu.poisoned(nano, EXACT, "cpu"))
    assert on_gpu.threads(nano, EXACT)
    torch.testing.assert_close(*on_gpu.replayed(nano, EXACT, "cpu", nullcontext()))
    assert made
    assert on_gpu.begun_again(nano, EXACT, lambda: len(made)) == 0
