"""A bad line around an environment: what is seen of it, and when."""

from __future__ import annotations

import numpy as np
import pytest
from numbered import PERIOD, Recording

from envs.delayed import DelayedEnv, Faults
from envs.reach import Reach
from vla_runtime.control.standing import standing
from vla_runtime.testing import check_env
from vla_runtime.types import Command


def wrapped(**faults):
    env = DelayedEnv(Recording(), Faults(**faults))
    env.reset(0, 0, 0)
    return env


def ages(env, steps=60):
    """Of each camera's frame, in periods, as seen at every step."""
    found = []
    for index in range(steps):
        observation = env.observe(env.spec.cameras and [camera.name for camera in env.spec.cameras])
        assert observation.time == pytest.approx(index * PERIOD)
        found.append([round((observation.time - time) / PERIOD) for time in observation.image_times.values()])
        env.apply(Command(np.full(2, 0.3, np.float32), observation.time))
    return np.array(found)


def test_without_faults_it_is_the_environment():
    assert Faults().none
    assert not Faults(late=0.1).none
    check_env(DelayedEnv(Reach(size=16), Faults()))
    check_env(DelayedEnv(Reach(size=16), Faults(late=0.1, lost=0.2, freeze=0.1, action_late=2)))
    assert (ages(wrapped()) == 0).all()


def test_late_frames_are_as_old_as_they_say_and_show_what_was():
    env, plain = wrapped(late=0.15), Recording()
    plain.reset(0, 0, 0)
    names = [camera.name for camera in env.spec.cameras]
    was = []
    for index in range(10):
        seen = env.observe(names)
        was.append(plain.observe(names).images)
        age = min(index, 3)
        assert seen.image_times[names[0]] == pytest.approx(seen.time - age * PERIOD)
        assert np.array_equal(seen.images[names[0]], was[index - age][names[0]])
        for one in (env, plain):
            one.apply(Command(np.full(2, 0.3, np.float32), seen.time))
    assert not np.array_equal(was[0][names[0]], was[9][names[0]])


def test_lost_frames_leave_the_last_one_and_freezing_lasts():
    lost = ages(wrapped(lost=0.3), 200)
    assert 0.2 < (lost > 0).mean() < 0.4
    assert (np.diff(lost, axis=0) <= 1).all()
    frozen = ages(wrapped(freeze=0.05, freeze_s=0.5), 200)
    assert frozen.max() == 10
    # Cameras fail one by one.
    assert (frozen[:, 0] != frozen[:, 1]).any()
    assert np.array_equal(ages(wrapped(lost=0.3), 50), ages(wrapped(lost=0.3), 50))


def test_whether_anybody_looks_changes_nothing():
    looked, not_looked = wrapped(late=0.1, lost=0.3), wrapped(late=0.1, lost=0.3)
    names = [camera.name for camera in looked.spec.cameras]
    for _ in range(20):
        looked.observe(names)
        for env in (looked, not_looked):
            env.apply(Command(np.full(2, 0.3, np.float32), 0.0))
    assert looked.observe(names).image_times == not_looked.observe(names).image_times


def test_late_commands_are_carried_out_late_and_the_robot_stands_meanwhile():
    inner = Recording()
    env = DelayedEnv(inner, Faults(action_late=2))
    env.reset(0, 0, 0)
    still = standing(env.spec, env.observe())
    for index in range(5):
        env.apply(Command(np.full(2, index / 10, np.float32), index * PERIOD))
    done = [one.values for one in inner.applied]
    assert np.array_equal(done[:2], [still, still])
    np.testing.assert_allclose([values[0] for values in done[2:]], [0.0, 0.1, 0.2], atol=1e-6)


@pytest.mark.parametrize(
    ("faults", "message"),
    [({"lost": 1.5}, "faults.lost"), ({"late": -1}, "faults.late"), ({"action_late": 0.5}, "whole control periods")],
)
def test_faults_that_cannot_be_are_refused(faults, message):
    with pytest.raises(ValueError, match=message):
        Faults(**faults)


def test_what_gets_lost_does_not_hang_on_where_things_are():
    """An environment draws from (seed, task, episode), too."""
    env = wrapped(lost=0.3)
    assert env._generator.random() != np.random.default_rng((0, 0, 0)).random()
