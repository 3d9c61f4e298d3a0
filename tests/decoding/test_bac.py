"""The caching scheduler against brute force, its invariants, and the schedule as a file."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_runtime.decoding.bac import (
    METRICS,
    Block,
    Schedule,
    adaptive,
    adjacent,
    blocks_of,
    bubbled,
    reuse_error,
    similarity,
    uniform,
    with_last_step,
)


def served(matrix, steps):
    """What a schedule is worth: the similarity of what is served with the truth, over all steps."""
    ends = [*steps[1:], len(matrix)]
    return sum(matrix[start, t] for start, end in zip(steps, ends, strict=True) for t in range(start, end))


def random_similarity(rng, steps):
    return similarity(rng.normal(size=(steps, 6)).cumsum(0))


def test_the_scheduler_finds_the_optimum():
    rng = np.random.default_rng(0)
    for _ in range(200):
        steps = int(rng.integers(2, 12))
        updates = int(rng.integers(1, min(5, steps) + 1))
        matrix = random_similarity(rng, steps)
        found = adaptive(matrix, updates)
        every = ((0, *rest) for rest in itertools.combinations(range(1, steps), updates - 1))
        assert found[0] == 0
        assert len(found) == updates
        assert served(matrix, found) == pytest.approx(max(served(matrix, steps) for steps in every), abs=1e-12)


def test_the_adjacent_form_is_the_best_of_its_own_objective_and_no_better_than_the_full_one():
    rng = np.random.default_rng(1)
    for _ in range(50):
        matrix = random_similarity(rng, 9)
        found = adjacent(matrix, 4)
        worth = {
            rest: sum(matrix[k, k - 1] for k in range(1, 9) if k not in rest)
            for rest in itertools.combinations(range(1, 9), 3)
        }
        assert worth[found[1:]] == pytest.approx(max(worth.values()))
        assert served(matrix, found) <= served(matrix, adaptive(matrix, 4)) + 1e-12


@pytest.mark.parametrize("scheduler", [adaptive, adjacent])
def test_all_steps_and_one_step(scheduler):
    matrix = random_similarity(np.random.default_rng(2), 7)
    assert scheduler(matrix, 7) == tuple(range(7))
    assert scheduler(matrix, 1) == (0,)
    for wrong in (0, 8):
        with pytest.raises(ValueError, match="expected 1 to 7"):
            scheduler(matrix, wrong)


@given(st.integers(1, 100), st.data())
def test_uniform_steps_are_as_many_as_asked_for_and_even(steps, data):
    updates = data.draw(st.integers(1, steps))
    found = uniform(steps, updates)
    gaps = np.diff([*found, steps])
    assert found[0] == 0
    assert len(found) == updates
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_largest_for_equal_outputs_and_falls_with_distance(metric):
    turned = np.array([[np.cos(a), np.sin(a)] for a in (0.0, 0.1, 0.5, 1.0)])
    matrix = similarity(turned, metric)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    assert (np.diff(matrix[0]) < 0).all()
    assert (matrix.argmax(1) == np.arange(4)).all()


def test_features_that_are_not_finite_or_a_metric_that_is_not_known_are_refused():
    with pytest.raises(ValueError, match="finite"):
        similarity(np.array([[1.0, np.nan], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"calibrate\.metric"):
        similarity(np.eye(2), "wasserstein")


def test_the_reuse_error_is_the_mean_over_all_pairs():
    features = np.random.default_rng(3).normal(size=(9, 5))
    pairs = [np.abs(features[t] - features[u]).mean() for t, u in itertools.combinations(range(9), 2)]
    assert reuse_error(features) == pytest.approx(np.mean(pairs))
    assert reuse_error(features[:1]) == 0.0


@given(st.integers(0, 2**31), st.integers(0, 12))
def test_bubbling_lets_the_worst_blocks_follow_the_feed_forward_blocks_downstream(seed, count):
    rng = np.random.default_rng(seed)
    blocks = blocks_of(4)
    given_ = {block: tuple(sorted({0, *rng.integers(1, 20, 3).tolist()})) for block in blocks}
    errors = dict(zip(blocks, rng.permutation(len(blocks)).astype(float), strict=True))
    found = bubbled(given_, errors, count)
    worst = sorted(blocks, key=lambda block: -errors[block])[:count]
    for block in blocks:
        wanted = set(given_[block])
        if block in worst:
            down = [other for other in blocks if other.kind == "feed" and other.layer >= block.layer]
            wanted |= {step for other in down for step in given_[other]}
        assert found[block] == tuple(sorted(wanted))


def test_bubbling_more_blocks_than_there_are_is_refused():
    with pytest.raises(ValueError, match="expected 0 to 3"):
        bubbled(dict.fromkeys(blocks_of(1), (0,)), dict.fromkeys(blocks_of(1), 0.0), 4)


def test_the_last_step_is_added_once():
    assert with_last_step((0, 5), 10) == (0, 5, 9)
    assert with_last_step((0, 9), 10) == (0, 9)


def schedule(**changes):
    values = {
        "blocks": dict.fromkeys(blocks_of(2), (0, 3, 7)), "steps": 10, "sampler": "ddpm", "weights": "abc",
        "method": "adaptive", "updates": 3, "bubble": 0, "metric": "cosine", "calibration": "def",
    }  # fmt: skip
    return Schedule(**{**values, **changes})


def test_a_schedule_is_read_back_as_it_was_written(tmp_path):
    one = schedule(expected=dict.fromkeys(blocks_of(2), (0.5, 0.25)))
    one.save(tmp_path / "schedule.json")
    assert Schedule.load(tmp_path / "schedule.json") == one
    assert one.evaluations() == 18
    assert one.updated(3) == frozenset(blocks_of(2))
    assert one.updated(4) == frozenset()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 100}, "steps: expected 100, got 10"),
        ({"sampler": "ddim"}, "sampler: expected 'ddim', got 'ddpm'"),
        ({"weights": "xyz"}, "weights: expected 'xyz', got 'abc'"),
        ({"blocks": blocks_of(3)}, "blocks: expected 9"),
    ],
)
def test_a_schedule_of_another_policy_is_refused(changes, message):
    wanted = {"blocks": blocks_of(2), "steps": 10, "sampler": "ddpm", "weights": "abc"}
    schedule().require(**wanted)
    with pytest.raises(ValueError, match=message):
        schedule().require(**{**wanted, **changes})


def test_similarities_that_do_not_fit_the_updates_are_refused():
    with pytest.raises(ValueError, match="expected 2 similarities of block"):
        schedule(expected=dict.fromkeys(blocks_of(2), (0.5,)))


@pytest.mark.parametrize("steps", [(), (1, 2), (0, 3, 3), (0, 10)])
def test_steps_that_cannot_be_are_refused(steps):
    with pytest.raises(ValueError, match="expected rising steps"):
        schedule(blocks={Block(0, "self"): steps})


@pytest.mark.parametrize("change", [{"version": 2}, {"blocks": {"0.attention": [0]}}, {"extra": 1}])
def test_a_file_that_is_no_schedule_is_refused(tmp_path, change):
    path = tmp_path / "schedule.json"
    schedule().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match="expected a caching schedule"):
        Schedule.load(path)
    with pytest.raises(ValueError, match="expected a caching schedule"):
        Schedule.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"updates": 0}, "updates from 1"), ({"updates": 9}, "updates from 1"), ({"bubble": 7}, "bubble from 0"),
     ({"metric": "cosines"}, "metric of cosine")],
)  # fmt: skip
def test_a_schedule_that_cannot_be_is_refused(change, message):
    blocks = dict.fromkeys(blocks_of(1), (0, 3))
    known = {"updates": 2, "bubble": 1, "metric": "cosine"}
    with pytest.raises(ValueError, match=message):
        Schedule(
            blocks=blocks, steps=8, sampler="ddpm", weights=None, method="bac", calibration="", **{**known, **change}
        )
