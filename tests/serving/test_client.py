"""What comes back over a socket is what the policy said; what does not come back is a loud failure."""

from __future__ import annotations

import logging
import socket
import threading
import time
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from numbered import Numbered, Policy, Recording, forgetful
from served import NAMES, Served, metrics, serving, slow, small

from policies.deprived import Deprived
from vla_runtime.evaluation.folder import without_secrets
from vla_runtime.messages import policy_document
from vla_runtime.serving.client import RemoteError, RemotePolicy
from vla_runtime.serving.protocol import Keys
from vla_runtime.serving.server import Access
from vla_runtime.spline import SplineCurve
from vla_runtime.testing import check_policy
from vla_runtime.types import CameraSpec, SpecMismatch
from vla_runtime.wire import pack, unpack


def test_remote_answers_are_the_policys_own(env, seen):
    with serving(small()) as server:
        remote, here = RemotePolicy(server.address), Numbered(env)
        assert policy_document(remote.spec) == policy_document(here.spec)
        session = remote.begin(3)
        rows = np.float32([[0.5, 0.25]])
        for committed in (None, rows, None):
            far, near = session.predict([seen], committed), here.predict([seen], committed)
            assert far.actions.tobytes() == near.actions.tobytes()
            assert (far.start, far.period, far.observed) == (near.start, near.period, near.observed)
        check_policy(remote, env.spec)
        remote.close()


def test_curves_and_facts_survive_the_way(seen):
    def behave(session, seed):
        plain = session.predict

        def predict(observations, committed=None, deadline=None):
            curve = SplineCurve(np.random.default_rng(seed).normal(size=(8, 2)), 4, 0.75)
            return replace(plain(observations), curve=curve, curved=(0, 1), facts={"rounds": 3.0})

        session.predict = predict
        return session

    with serving(Policy(Recording(size=16), behave)) as server:
        remote = RemotePolicy(server.address, encoding="png")
        chunk = remote.begin(5).predict([seen])
        assert chunk.facts == {"rounds": 3.0}
        assert np.array_equal(chunk.curve.points, np.random.default_rng(5).normal(size=(8, 2)))
        assert (chunk.curve.degree, chunk.curved) == (4, (0, 1))
        remote.close()


def test_a_session_far_away_forgets_as_one_here(env, seen):
    """Before the next question, and once; also one that is not shown everything."""
    with serving(forgetful()) as server:
        policy = RemotePolicy(server.address)
        session = policy.begin(0)
        session.forget()
        assert session.predict([seen]).facts["forgot"] == 1
        assert session.predict([seen]).facts["forgot"] == 1
        blind = Deprived(policy, "images").begin(0)
        blind.predict([seen])
        blind.forget()
        assert blind.predict([seen]).facts["forgot"] == 1
        policy.close()


def test_a_session_that_is_gone_takes_its_connection_along(seen):
    """A run has a session an episode; a server has room for so many clients and no more."""
    with serving(small(), Access(connections=3)) as server:
        remote = RemotePolicy(server.address)
        for episode in range(8):
            # A connection that is closed at one end is gone at the other a little later.
            deadline = time.monotonic() + 5  # noqa: TID251
            while "vla_connections 0.0" not in metrics(server):
                assert time.monotonic() < deadline, "the connection of a session that is gone is still there"  # noqa: TID251
            assert remote.begin(episode).predict([seen]).actions.shape == (16, 2)
        kept = [remote.begin(0), remote.begin(1)]
        for session in kept:
            session.predict([seen])
        remote.close()
        assert not any(session._line.is_open for session in kept)


def test_after_a_long_silence_the_next_question_is_asked_on_a_new_connection(seen):
    """As after a takeover of some minutes: the server has hung up, and nothing had been asked."""
    with serving(small(), Access(idle=0.2)) as server:
        remote = RemotePolicy(server.address)
        session = remote.begin(0)
        session.predict([seen])
        deadline = time.monotonic() + 5  # noqa: TID251
        while session._line.is_open:
            assert time.monotonic() < deadline  # noqa: TID251
        assert session.predict([seen]).actions.shape == (16, 2)
        remote.close()


def test_an_answer_that_comes_too_late_is_no_answer_to_the_next_question(seen):
    policy, held = slow(5)
    with serving(policy) as server:
        remote = RemotePolicy(server.address, timeout=0.4)
        session = remote.begin(0)
        with pytest.raises(RemoteError, match=r"expected an answer within 0.4 s"):
            session.predict([seen])
        held.set()
        later = replace(seen, time=seen.time + 1.0)
        chunk = session.predict([later])
        assert chunk.observed == later.time
        # A session that begins anew: the first answer of a numbered policy is plan 0.
        assert chunk.actions[0, 0] == 0.0
        remote.close()


def test_a_restarted_server_is_a_loud_failure_and_then_a_new_beginning(seen, caplog):
    caplog.set_level(logging.ERROR)
    server = Served(small())
    remote = RemotePolicy(server.address)
    session = remote.begin(0)
    session.predict([seen])
    server.stop()
    with pytest.raises(RemoteError):
        session.predict([seen])
    with pytest.raises(RemoteError, match="expected a policy server, got ConnectionRefusedError"):
        session.predict([seen])
    again = Served(small())
    session._line._address = again.address
    assert session.predict([seen]).actions[0, 0] == 0.0
    remote.close()
    again.stop()


def test_a_server_of_another_policy_is_not_obeyed(seen):
    """Started again at the same place with other weights, or by somebody else."""
    one = Served(small())
    remote = RemotePolicy(one.address)
    session = remote.begin(0)
    session.predict([seen])
    one.stop()
    other = small()
    other.spec = replace(other.spec, weights="other")
    with serving(other) as server:
        session._line._address = server.address
        for _ in range(2):
            with pytest.raises(RemoteError):
                session.predict([seen])
        with pytest.raises(
            RemoteError, match=r"\(weights None\) that was there at first, got numbered \(weights other\)"
        ):
            session.predict([seen])
    remote.close()


def test_more_cameras_than_openpi_has_names_for():
    policy = small()
    names = ("left", "right", "hand")
    policy.spec = replace(policy.spec, cameras=tuple(CameraSpec(name, 16, 16) for name in names))
    keys = Keys.of(policy.spec, cameras={name: f"observation/{name}" for name in names})
    with serving(policy, keys=keys) as server:
        remote = RemotePolicy(server.address)
        assert [camera.name for camera in remote.spec.cameras] == list(names)
        remote.close()


def test_a_stock_server_needs_a_contract_and_gets_openpis_words(env, seen):
    """One that knows nothing of us: openpi's metadata, openpi's words."""
    from websockets.sync.server import serve

    from vla_runtime.contract import Contract

    asked = []

    def talk(connection):
        connection.send(msgpack.packb({"name": "stock"}))
        for frame in connection:
            asked.append(unpack(frame))
            rows = np.zeros((16, 2), np.float64) if len(asked) < 3 else np.zeros((3, 2))
            connection.send(pack({"actions": rows, "server_timing": {"infer_ms": 1.0}}))

    with serve(talk, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        with pytest.raises(ValueError, match="which states no contract of its own"):
            RemotePolicy(address)
        contract = {**Contract.of(Numbered(env).spec).document()}
        remote = RemotePolicy(address, contract=contract)
        chunk = remote.begin(0).predict([seen])
        assert chunk.actions.dtype == np.float32
        assert set(asked[0]) == {*NAMES.values(), "observation/state", "prompt"}
        assert np.array_equal(asked[0]["observation/image"], seen.images["overhead"])
        remote.begin(0).predict([seen])
        with pytest.raises(SpecMismatch, match=r"actions: expected \[16, 2\], got \[3, 2\]"):
            remote.begin(0).predict([seen])
        remote.close()
        server.shutdown()


@pytest.mark.parametrize(
    ("options", "message"), [({"encoding": "gif"}, "policy.encoding"), ({"timeout": 0}, "policy.timeout")]
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RemotePolicy("ws://127.0.0.1:1", **options)
    with pytest.raises(RemoteError, match="expected a policy server"):
        RemotePolicy("ws://127.0.0.1:1", timeout=1.0)


PROXIES = ("http_proxy", "https_proxy", "all_proxy", "socks_proxy", "HTTP_PROXY", "ALL_PROXY")


@pytest.mark.parametrize("variable", PROXIES)
def test_proxies_of_the_environment_are_for_the_web_and_not_for_a_robot(monkeypatch, seen, variable):
    """Even connections to this machine went through them, images and token included."""
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv(variable, "socks5://127.0.0.1:9" if "socks" in variable else "http://127.0.0.1:9")
    with serving(small()) as server:
        remote = RemotePolicy(server.address, timeout=5)
        assert remote.begin(0).predict([seen]).actions.shape == (16, 2)
        remote.close()


def test_a_proxy_that_is_asked_for_is_gone_through_and_named_without_its_password():
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        port, heard = proxy.getsockname()[1], []

        def refuse():
            line, _ = proxy.accept()
            heard.append(line.recv(4096))
            line.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            line.close()

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(RemoteError, match=rf"through the proxy http://127\.0\.0\.1:{port}, got") as refused:
            RemotePolicy("ws://robot.invalid:8000", timeout=5, proxy=f"http://me:secret@127.0.0.1:{port}")
        thread.join(5)
    assert heard[0].startswith(b"CONNECT robot.invalid:8000 ")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("proxy", "error", "message"),
    [
        ("127.0.0.1:3128", ValueError, r"policy\.proxy: expected http://host:port .* or null, got '127"),
        ("ftp://127.0.0.1:1", ValueError, r"policy\.proxy: expected http://host:port"),
        (True, ValueError, r"policy\.proxy: expected http://host:port .*, got True"),
        (
            "socks5://me:secret@127.0.0.1:1",
            RuntimeError,
            r"policy\.proxy=socks5://127.*expected the package python-socks",
        ),
    ],
)
def test_a_proxy_that_cannot_be_is_refused(monkeypatch, proxy, error, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(error, match=message) as refused:
        RemotePolicy("ws://127.0.0.1:1", proxy=proxy)
    assert "secret" not in str(refused.value)


def test_no_file_holds_the_password_of_a_proxy():
    proxy = "http://me:secret@proxy:3128"
    kept = without_secrets({"policy": {"proxy": proxy, "token": "t"}, "transport": {"proxy": proxy}})
    assert kept == {
        "policy": {"proxy": "http://proxy:3128", "token": None}, "transport": {"proxy": "http://proxy:3128"}
    }  # fmt: skip
