"""The conformance checks, on what ships and on classes that break a promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.reach import Reach
from policies.hold import Hold
from vla_runtime.testing import check_env, check_policy
from vla_runtime.types import Observation


@pytest.mark.parametrize("control", ["velocity", "absolute"])
def test_reach_conforms(control):
    for task in (0, 1):
        check_env(Reach(control), task=task)


def test_experts_and_hold_conform():
    env = Reach()
    env.reset(0, 0, 0)
    check_policy(env.expert(0, "multi"), env.spec)
    check_policy(Hold(env.spec), env.spec)


class Drifting(Reach):
    """Its reset forgets one thing."""

    def reset(self, seed, task, episode):
        before = self._joints.copy()
        facts = super().reset(seed, task, episode)
        self._joints = self._joints + 1e-3 * before
        return facts


class Nosy(Reach):
    def observe(self, cameras=()):
        if cameras:
            self._joints = self._joints + 1e-3
        return super().observe(cameras)


class Careless(Reach):
    def apply(self, command):
        self._tick += 1


class Late(Reach):
    def observe(self, cameras=()):
        seen = super().observe(cameras)
        return Observation(seen.state, seen.images, seen.instruction, 2 * seen.time, seen.image_times)


@pytest.mark.parametrize(
    ("broken", "message"),
    [(Drifting, "changed the state"), (Nosy, "changed the state"), (Careless, "SpecMismatch"), (Late, "spec.period")],
)
def test_a_broken_environment_is_found(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_env(broken())


class Forgetful(Hold):
    """Keeps episode state on the policy."""

    calls = 0

    def predict(self, observations, committed=None, deadline=None):
        self.calls += 1
        chunk = super().predict(observations)
        return replace(chunk, actions=chunk.actions + np.float32(self.calls))


class Scribbling(Hold):
    def predict(self, observations, committed=None, deadline=None):
        observations[-1].state[0] += 1
        return super().predict(observations)


class Short(Hold):
    def predict(self, observations, committed=None, deadline=None):
        chunk = super().predict(observations)
        return replace(chunk, actions=chunk.actions[:-1])


@pytest.mark.parametrize(
    ("broken", "message"), [(Forgetful, "live in the session"), (Scribbling, "wrote into"), (Short, "chunk: expected")]
)
def test_a_broken_policy_is_found(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_policy(broken(Reach().spec), Reach().spec)
