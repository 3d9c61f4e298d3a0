"""A policy in a process of its own: the same answers, and an error wherever there is none."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from numbered import Numbered, Recording, fails_to_build, forgetful, obedient, says_who

from vla_runtime.control.clock import SystemClock
from vla_runtime.control.isolated import Isolated
from vla_runtime.control.loop import run
from vla_runtime.control.planner import Beside
from vla_runtime.control.safety import Safety, Timeouts


def observation():
    env = Recording()
    env.reset(0, 0, 0)
    return env, env.observe([camera.name for camera in env.spec.cameras])


@pytest.fixture
def isolated():
    made = []

    def make(build, *arguments):
        made.append(Isolated(build, arguments))
        return made[-1]

    yield make
    for policy in made:
        policy.close()


def test_its_answers_are_the_policys_own_and_from_another_process(isolated):
    env, seen = observation()
    policy = isolated(says_who, "well")
    here = Numbered(env)
    session = policy.begin(5)
    rows = np.float32([[0.5, 0.25]])
    for committed in (None, rows):
        chunk, own = session.predict([seen], committed), here.predict([seen], committed)
        assert np.array_equal(chunk.actions, own.actions)
        assert chunk.facts["pid"] == policy.pid != os.getpid()
    assert (chunk.facts["seed"], chunk.facts["asked"]) == (5, 2)
    again = policy.begin(6)
    assert (again.predict([seen]).facts["seed"], again.predict([seen]).facts["asked"]) == (6, 2)
    with pytest.raises(RuntimeError, match="expected the newest session"):
        session.predict([seen])


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot tell")
def test_it_leaves_a_core_to_the_loop(isolated):
    """Whatever computes in it: libraries start as many threads as they find cores."""
    before = os.sched_getaffinity(0)
    _, seen = observation()
    assert isolated(says_who, "well").begin(0).predict([seen]).facts["cores"] == max(1, len(before) - 1)
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(
    ("behaviour", "kind", "message"),
    [
        ("raise", LookupError, "no idea"), ("exit", SystemExit, "3"), ("odd", RuntimeError, "cannot be pickled"),
        ("die", RuntimeError, r"died \(exit code 7\)"), ("lost", ConnectionResetError, "no route"),
        ("picky", RuntimeError, "Picky: cannot be read again"),
    ],
)  # fmt: skip
def test_what_goes_wrong_in_it_is_raised_here(isolated, behaviour, kind, message):
    _, seen = observation()
    policy = isolated(says_who, behaviour)
    with pytest.raises(kind, match=message):
        policy.begin(0).predict([seen])
    if behaviour != "die":
        with pytest.raises(kind):
            policy.begin(1).predict([seen])


def test_what_cannot_be_built_is_raised_at_once(isolated):
    with pytest.raises(ValueError, match="expected weights, got none"):
        isolated(fails_to_build)


def test_killed_while_the_robot_moves_it_ends_the_run(isolated):
    env = Recording()
    env.reset(0, 0, 0)
    policy = isolated(obedient)

    def on_tick(tick):
        if tick.index == 10:
            os.kill(policy.pid, signal.SIGKILL)

    with pytest.raises(RuntimeError, match=r"the policy's process died \(exit code -9\)"):
        run(
            env, policy.begin(0), policy.spec, SystemClock(), replan=4, max_steps=40, planner=Beside, on_tick=on_tick,
        )  # fmt: skip
    assert 11 <= len(env.applied) <= 30


def test_one_that_never_answers_again_stops_the_robot_and_keeps_nobody(isolated):
    env, clock = Recording(), SystemClock()
    env.reset(0, 0, 0)
    policy, safety, began = isolated(says_who, "hang"), Safety(Timeouts(plan=0.2)), clock.now()
    result = run(
        env, policy.begin(0), policy.spec, SystemClock(), replan=4, max_steps=50, safety=safety,
        planner=lambda session, wall: Beside(session, wall, patience=0.2),
    )  # fmt: skip
    assert (result.outcome.reason, result.steps) == ("stopped", 50)
    assert [event.what for event in result.events] == ["stopped"]
    # 50 periods of 50 ms; and whoever waits in vain does so for a moment.
    assert clock.now() - began < 10
    hung = policy.pid
    _, seen = observation()
    assert policy.begin(1).predict([seen]).facts["pid"] == policy.pid != hung


def test_it_forgets_as_it_would_in_this_process(isolated):
    """The same session goes on: its noise is not drawn again."""
    _, seen = observation()
    session = isolated(forgetful).begin(3)
    said = []
    for anew in (False, True, False):
        if anew:
            session.forget()
        said.append(session.predict([seen]).facts)
    assert [one["forgot"] for one in said] == [0, 1, 1]
    assert [one["asked"] for one in said] == [1, 2, 3]
