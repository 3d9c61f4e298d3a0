"""Questions that wait are answered in one pass, and nobody pays for another's."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from numbered import Policy, Recording
from served import NAMES, metrics, serving
from websockets.sync.client import connect

from vla_runtime.serving.client import RemoteError, RemotePolicy
from vla_runtime.serving.server import PolicyServer
from vla_runtime.wire import pack, unpack


class Waiting(Policy):
    """Answers in one pass those who wait; waits itself, so that there are some. Refuses 13 in a pass."""

    def __init__(self, env):
        super().__init__(env)
        self.passes = []

    def together(self):
        def answer(sessions, seen, committed):
            if any(one[-1].state[0] == 13 for one in seen):
                raise ValueError("13")
            self.passes.append(len(sessions))
            time.sleep(0.05)  # noqa: TID251
            return [session.predict(one) for session, one in zip(sessions, seen, strict=True)]

        return answer


def test_questions_that_wait_are_answered_in_one_pass_and_a_wrong_one_spoils_none(env, seen):
    policy = Waiting(env)
    with serving(policy, batch=3) as server:
        remotes = [RemotePolicy(server.address) for _ in range(6)]
        sessions = [remote.begin(index) for index, remote in enumerate(remotes)]
        for session in sessions:
            session.predict([seen])
        policy.passes.clear()

        def ask(index):
            state = seen.state.copy()
            state[0] = 13 if index == 5 else index
            return sessions[index].predict([replace(seen, state=state)]).actions

        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(ask, range(6)))
        for index, actions in enumerate(found):
            alone = policy.begin(index)
            alone.predict([seen])
            state = seen.state.copy()
            state[0] = 13 if index == 5 else index
            assert np.array_equal(actions, alone.predict([replace(seen, state=state)]).actions)
        assert max(policy.passes) > 1
        assert max(policy.passes) <= 3
        for remote in remotes:
            remote.close()


def test_waiting_for_others_is_part_of_the_time_there_is(env, seen):
    left = []

    def behave(session, seed):
        plain = session.predict

        def predict(observations, committed=None, deadline=None):
            left.append(deadline)
            time.sleep(0.2)  # noqa: TID251
            return plain(observations, committed)

        session.predict = predict
        return session

    with serving(Policy(Recording(size=16), behave)) as server:
        remotes = [RemotePolicy(server.address) for _ in range(2)]
        sessions = [remote.begin(0) for remote in remotes]
        for session in sessions:
            session.predict([seen])
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda session: session.predict([seen], None, 1.0), sessions))
        first, second = left[2:]
        assert 0.9 < first <= 1.0
        assert 0.6 < second < 0.85
        sessions[0].predict([seen])
        assert left[-1] is None
        remotes[0].message = lambda *question: {**RemotePolicy.message(remotes[0], *question), "deadline": "soon"}
        with pytest.raises(RemoteError, match="expected a deadline in seconds or none, got str"):
            sessions[0].predict([seen])


def test_a_pass_that_goes_wrong_leaves_nobody_waiting(env, seen):
    class Short(Policy):
        def together(self):
            def answer(sessions, seen, committed):
                time.sleep(0.05)  # noqa: TID251
                return [session.predict(one) for session, one in zip(sessions, seen, strict=True)][1:]

            return answer

    with serving(Short(env), batch=3) as server:
        remotes = [RemotePolicy(server.address) for _ in range(3)]
        sessions = [remote.begin(0) for remote in remotes]
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda session: session.predict([seen]).actions.shape, sessions))
        assert set(found) == {(16, 2)}
        assert sessions[0].predict([seen]).actions.shape == (16, 2)
        for remote in remotes:
            remote.close()


def test_a_batch_needs_a_policy_that_can(env):
    with pytest.raises(ValueError, match="batch: expected a policy that answers several sessions in one pass"):
        PolicyServer(Policy(env), batch=2)
    with pytest.raises(ValueError, match="batch: expected at least 1, got 0"):
        PolicyServer(Policy(env), batch=0)


@pytest.mark.parametrize("batch", [1, 2])
def test_what_nobody_waits_for_any_more_is_not_asked(seen, batch):
    """Each client that asked and hung up cost the next one a pass of the policy."""
    asked, busy, released = [], threading.Event(), threading.Event()

    class Counting(Waiting):
        def begin(self, seed):
            session = super().begin(seed)
            plain = session.predict

            def predict(observations, committed=None, deadline=None):
                asked.append(seed)
                busy.set()
                assert released.wait(10)
                return plain(observations, committed)

            session.predict = predict
            return session

    question = {key: seen.images[name] for name, key in NAMES.items()}
    question = pack({**question, "observation/state": seen.state, "prompt": "x"})

    def client():
        line = stack.enter_context(connect(server.address))
        line.recv(5)
        line.send(question)
        return line

    with serving(Counting(Recording(size=16)), batch=batch) as server, ExitStack() as stack:
        stack.callback(released.set)
        first = client()
        assert busy.wait(10)
        gone = [client() for _ in range(6)]
        for line in gone:
            line.socket.shutdown(socket.SHUT_RDWR)
        await_metric(server, 'vla_requests_total{outcome="abandoned"} 6.0')
        last = client()
        released.set()
        for line in (first, last):
            assert unpack(line.recv(5))["actions"].shape == (16, 2)
        assert len(asked) == 2


def await_metric(server, text):
    for _ in range(200):
        if text in metrics(server):
            return
        time.sleep(0.02)  # noqa: TID251
    pytest.fail(f"no {text} in:\n{metrics(server)}")
