"""What a robot is told that has no plan: to stay where it is, grip included."""

from __future__ import annotations

from itertools import repeat

import numpy as np
from numbered import PERIOD, Numbered, Recording

from vla_runtime.control.clock import VirtualClock
from vla_runtime.control.loop import run
from vla_runtime.control.planner import Delayed
from vla_runtime.control.standing import standing
from vla_runtime.types import ActionSpec, EnvSpec, Group, Observation, StateSpec


def test_a_standing_robot_keeps_its_place_and_its_grip():
    position = Group("hand", ("x",), "absolute", "m", (-1.0,), (1.0,))
    grip = Group("grip", ("g",), "binary", "1", (-1.0,), (1.0,), open=-1.0, close=1.0)
    state = StateSpec((Group("hand", ("x",), "measured", "m", (-1.0,), (1.0,)),))
    spec = EnvSpec("hand", (), state, ActionSpec((position, grip)), PERIOD, ("hold",), 100)
    seen = Observation(np.array([0.5], np.float32), {}, "hold", 0.0)
    np.testing.assert_array_equal(standing(spec, seen), np.array([0.5, -1], np.float32))
    np.testing.assert_array_equal(standing(spec, seen, np.array([0.1, 1], np.float32)), np.array([0.5, 1], np.float32))


def test_a_robot_that_pauses_to_think_stays_where_it_was_told_to_be_and_its_jumps_are_counted():
    """Not where it has come: an arm lags behind its goals, and would go back."""
    env = Recording(control="absolute")
    policy = Numbered(env)
    env.reset(0, 0, 0)
    env._joints[:] = 1.0
    result = run(
        env, policy, policy.spec, VirtualClock(), replan=4, max_steps=40, stands=True,
        planner=lambda session, wall: Delayed(session, wall, repeat(0.1)),
    )  # fmt: skip
    stands = [index for index, one in enumerate(env.applied) if one.held]
    assert stands[:2] == [0, 1]
    np.testing.assert_allclose(env.applied[0].values, 1.0)
    assert stands[2:6] == [6, 7, 12, 13]
    for index in stands[2:]:
        np.testing.assert_array_equal(env.applied[index].values, env.applied[5 + 6 * ((index - 6) // 6)].values)
    # Where it goes on after a pause one chunk follows another, however long it stood.
    assert result.trace.seams == [8, 14, 20, 26, 32, 38]
