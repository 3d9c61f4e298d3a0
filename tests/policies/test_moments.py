"""Policies that see several moments: what they are shown in training is what they are shown in the loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from playing import runner

from envs.reach import Reach
from policies.checkpoint import load_policy, save_policy
from policies.samples import read_samples
from policies.untrained import policy_for
from vla_runtime import finetune
from vla_runtime.compose import load
from vla_runtime.control.clock import VirtualClock
from vla_runtime.control.loop import run
from vla_runtime.control.planner import Delayed
from vla_runtime.data import schema
from vla_runtime.data.reader import Dataset
from vla_runtime.evaluation.folder import Job
from vla_runtime.types import SpecMismatch

SMALL = {"name": "nano", "image_size": 16, "width": 32, "heads": 2, "decoder_depth": 1}
OFFSETS = (-2, -1, 0)


def made(dataset, head="regression", **options):
    return policy_for(
        dataset, "several", SMALL, {"name": head}, None, max_committed=2, seed=0, executed=4,
        observation_offsets=OFFSETS, **options,
    )  # fmt: skip


def test_a_sample_is_what_the_policy_is_shown(dataset):
    policy = made(dataset)
    samples = read_samples(dataset, 16, policy.state, policy.action, OFFSETS)
    for index in (0, 1, 5):
        seen = dataset.seen(index, OFFSETS)
        one, other = samples.batch([index])[0], policy.batch([seen])
        assert one.state_BS.shape == (1, 3 * policy.spec.state.size)
        assert torch.equal(one.state_BS, other.state_BS)
        for name, images in other.images.items():
            assert images.shape == (1, 16, 16, 9)
            assert torch.equal(one.images[name], images)
    with torch.no_grad():
        assert policy.begin(0).predict(dataset.seen(5, OFFSETS)).actions.shape == (8, policy.spec.action.size)


def test_before_the_beginning_stands_the_first_moment(dataset):
    begins = [one.start for one in dataset.episodes]
    first = next(index for index in range(1, len(dataset)) if dataset.row(index) in begins)
    times = [[one.time for one in dataset.seen(index, OFFSETS)] for index in (first, first + 1, first + 2)]
    period = dataset.period
    np.testing.assert_allclose(times, [[0, 0, 0], [0, 0, period], [0, period, 2 * period]], atol=1e-9)


def test_moments_without_images_are_refused(recorded):
    dataset = Dataset(recorded, horizon=8)
    dataset._columns[schema.FRESH] = fresh = dataset._columns[schema.FRESH].copy()
    fresh[dataset.row(3) - 1] = False
    with pytest.raises(ValueError, match="image_stride must divide"):
        dataset.seen(3, OFFSETS)


def test_too_few_moments_are_refused(dataset):
    policy = made(dataset)
    with pytest.raises(SpecMismatch, match=r"expected 3, one for each of the periods \[-2, -1, 0\]"):
        policy.begin(0).predict(dataset.seen(4, (0,)))


def test_a_checkpoint_sees_as_many(dataset, tmp_path):
    policy = made(dataset)
    save_policy(tmp_path / "several", policy, {}, {})
    again = load_policy(tmp_path / "several")
    assert again.spec.observation_offsets == OFFSETS
    assert again.backbone.config.frames == 3


def test_backbones_that_look_once_are_refused(dataset):
    with pytest.raises(ValueError, match=r"observation_offsets: expected \[0\], got \[-2, -1, 0\]; florence2"):
        policy_for(
            dataset, "several", {"name": "florence2"}, {"name": "regression"}, None, max_committed=2, seed=0,
            observation_offsets=OFFSETS,
        )  # fmt: skip


class Watching:
    """A session that notes the times of what it is shown."""

    def __init__(self, session):
        self._session, self.shown = session, []

    def predict(self, observations, committed=None, deadline=None):
        assert all(one.images for one in observations)
        self.shown.append([one.time for one in observations])
        return self._session.predict(observations, committed, deadline)


@pytest.mark.parametrize("late", [None, 0.15])
def test_the_loop_shows_the_moments_it_was_trained_on(dataset, late):
    policy, env, clock = made(dataset), Reach(size=16), VirtualClock()
    env.reset(0, 0, 0)
    session = Watching(policy.begin(0))
    beside = {} if late is None else {"planner": lambda one, wall: Delayed(one, wall, iter([late] * 99))}
    run(env, session, policy.spec, clock, replan=4, max_steps=24, **beside)
    period = policy.spec.period
    assert len(session.shown) > 3
    for number, times in enumerate(session.shown):
        wanted = [max(times[-1] + offset * period, session.shown[0][-1]) for offset in OFFSETS]
        np.testing.assert_allclose(times, wanted, atol=1e-6)
        assert number or len(set(times)) == 1


def test_a_world_that_is_seen_to_wait_is_not_drawn_for_nothing(dataset):
    """Only what a question shows, where it is known when the next can come."""
    drawn = []

    class Drawing(Reach):
        def observe(self, cameras=()):
            seen = super().observe(cameras)
            drawn.extend([seen.time] * bool(cameras))
            return seen

    policy, env = made(dataset), Drawing(size=16)
    env.reset(0, 0, 0)
    session, shown = Watching(policy.begin(0)), set()
    run(
        env, session, policy.spec, VirtualClock(), replan=4, max_steps=37, stands=True,
        planner=lambda one, wall: Delayed(one, wall, iter([0.3] * 99)),
    )  # fmt: skip
    assert len(session.shown) == 4
    for times in session.shown[1:]:
        np.testing.assert_allclose(np.diff(times), policy.spec.period, atol=1e-6)
        shown.update(times)
    # An answer's own tick is looked at, whatever the question after it is shown.
    answers = {round(20 * times[-1]) + 6 for times in session.shown}
    assert {round(20 * time) for time in drawn} - {round(20 * time) for time in shown} <= {0, *answers}


def test_the_command_learns_to_look_back(recorded, tmp_path):
    line, code = finetune.finetune(
        load("finetune", [
            f"data={recorded}", f"out={tmp_path / 'several'}", "head=beast", "observation_offsets=[-2,0]", "steps=2",
            "batch_size=4", "warmup=1", "validate_every=2", "validate_samples=4", "horizon=8", "executed=4",
            "max_committed=2", "overfit=4", "backbone.image_size=16", "backbone.width=32", "backbone.heads=2",
            "backbone.decoder_depth=1",
        ])
    )  # fmt: skip
    assert code == 0
    row = runner("env=reach", "env.size=16", f"policy={line['checkpoint']}", "seed=3")(Job(0, 0))
    assert row["error"] is None
