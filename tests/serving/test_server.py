"""A policy behind a socket: the same answers to everybody who may come in, and an end when it is told to."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from contextlib import ExitStack

import numpy as np
import pytest
from numbered import Numbered, Policy, Recording
from served import Served, serving, slow, small
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from vla_runtime.serving.client import RemoteError, RemotePolicy
from vla_runtime.serving.server import Access


def test_many_clients_get_what_they_would_get_alone(env, seen):
    answers = {}

    def ask(number, address):
        remote = RemotePolicy(address)
        session = remote.begin(number)
        answers[number] = [session.predict([seen]).actions for _ in range(10)]
        remote.close()

    with serving(small()) as server:
        threads = [threading.Thread(target=ask, args=(number, server.address)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    here = Numbered(env)
    alone = [here.predict([seen]).actions for _ in range(10)]
    assert len(answers) == 8
    assert all(np.array_equal(found, alone) for found in answers.values())


def test_only_those_with_the_token_get_in(seen):
    with serving(small(), Access(token="s3cret")) as server:
        for token in (None, "wrong", "s3cre", "s3crets"):
            with pytest.raises(RemoteError, match=r"expected a policy server, got InvalidStatus.*401"):
                RemotePolicy(server.address, token=token)
        remote = RemotePolicy(server.address, token="s3cret")
        assert remote.begin(0).predict([seen]).actions.shape == (16, 2)
        remote.close()


def test_too_many_too_large_and_too_silent_are_turned_away(seen):
    with serving(small(), Access(connections=2, largest=100_000, idle=0.3)) as server, ExitStack() as stack:
        first, second = (stack.enter_context(connect(server.address)) for _ in range(2))
        with pytest.raises(InvalidStatus, match="503"), connect(server.address):
            pass
        first.recv()
        first.send(b"\0" * 200_000)
        with pytest.raises(ConnectionClosed, match="1009"):
            first.recv(5)
        second.recv()
        assert "expected a message within 0.3 s" in second.recv(5)
        with pytest.raises(ConnectionClosed):
            second.recv(5)
        remote = RemotePolicy(server.address)
        assert remote.begin(0).predict([seen]).actions.shape == (16, 2)
        remote.close()


def test_health_and_metrics_are_there_without_a_token(seen):
    with serving(small(), Access(token="s3cret")) as server:
        base = f"http://127.0.0.1:{server.port}"
        assert urllib.request.urlopen(f"{base}/healthz", timeout=5).read() == b"OK\n"
        remote = RemotePolicy(server.address, token="s3cret")
        session = remote.begin(0)
        session.predict([seen])
        text = urllib.request.urlopen(f"{base}/metrics", timeout=5).read().decode()
        assert 'vla_requests_total{outcome="answered"} 2.0' in text
        assert "vla_connections 1.0" in text
        remote.close()
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{base}/nothing", timeout=5)


def test_a_server_that_is_told_to_stop_answers_what_it_was_asked(seen):
    policy, held = slow(5)
    server = Served(policy)
    remote = RemotePolicy(server.address)
    found = []
    thread = threading.Thread(target=lambda: found.append(remote.begin(0).predict([seen])))
    thread.start()
    threading.Timer(0.5, held.set).start()
    threading.Event().wait(0.2)
    server.stop()
    thread.join(5)
    assert found[0].actions.shape == (16, 2)
    with pytest.raises(RemoteError):
        remote.begin(1).predict([seen])


def test_a_policy_that_never_answers_does_not_keep_a_server_from_ending(seen, monkeypatch):
    monkeypatch.setattr("vla_runtime.serving.server._DRAIN", 0.2)
    released = threading.Event()

    def hang(session, seed):
        session.predict = lambda *_: released.wait(30)
        return session

    server = Served(Policy(Recording(size=16), hang))
    remote = RemotePolicy(server.address, timeout=0.2)
    with pytest.raises(RemoteError, match="expected an answer within"):
        remote.begin(0).predict([seen])
    try:
        server.stop()
        assert server.drained is False
    finally:
        released.set()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"connections": 0}, "connections: expected more than 0"), ({"token": ""}, "token: expected some text")],
)
def test_access_that_lets_nobody_in_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Access(**options)
