"""A policy behind a socket: the same answers to everybody, and nothing that a client sends stops it."""

from __future__ import annotations

import logging
import re
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from numbered import Numbered, Policy, Recording, forgetful
from PIL import Image
from served import Served, serving
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from policies.deprived import Deprived
from vla_runtime.messages import encode_image, observation_document, read_observation
from vla_runtime.serving.client import RemoteError, RemotePolicy
from vla_runtime.serving.protocol import Keys
from vla_runtime.serving.server import Access
from vla_runtime.spline import SplineCurve
from vla_runtime.testing import check_policy
from vla_runtime.types import CameraSpec, SpecMismatch
from vla_runtime.wire import pack, unpack

NAMES = {"overhead": "observation/image", "hand": "observation/wrist_image"}


def openpi(seen):
    """What an openpi client would send, packed as openpi packs it."""

    def array(value):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}

    images = {key: array(seen.images[name]) for name, key in NAMES.items()}
    return msgpack.packb({**images, "observation/state": array(seen.state), "prompt": seen.instruction})


def small():
    """A policy for the small cameras of the fixture."""
    return Policy(Recording(size=16))


def test_remote_answers_are_the_policys_own(env, seen):
    with serving(small()) as server:
        remote, here = RemotePolicy(server.address), Numbered(env)
        assert remote.spec == here.spec or replace(remote.spec, seen=here.spec.seen) is not None
        for name in ("name", "period", "horizon", "max_committed", "cameras", "executed", "curves"):
            assert getattr(remote.spec, name) == getattr(here.spec, name)
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


def test_openpis_words_are_understood(env, seen):
    with serving(small()) as server, connect(server.address) as connection:
        metadata = unpack(connection.recv())
        assert metadata["keys"] == {"cameras": NAMES, "state": "observation/state", "prompt": "prompt"}
        for _ in range(2):
            connection.send(openpi(seen))
            answer = unpack(connection.recv())
            # A fresh session for every request.
            assert np.array_equal(answer["actions"], Numbered(env).predict([seen]).actions)
            assert answer["actions"].dtype == np.float32
            assert set(answer) == {"actions", "facts", "server_timing"}
            assert 0 <= answer["server_timing"]["infer_ms"] <= answer["server_timing"]["server_ms"] < 1000


def test_names_can_be_others(seen):
    keys = Keys.of(small().spec, {"overhead": "cam_high", "hand": "cam_low"}, state="joints", prompt="task")
    with serving(small(), keys=keys) as server, connect(server.address) as connection:
        connection.recv()
        asked = {"cam_high": seen.images["overhead"], "cam_low": seen.images["hand"]}
        connection.send(pack({**asked, "joints": seen.state, "task": seen.instruction}))
        assert unpack(connection.recv())["actions"].shape == (16, 2)
    with pytest.raises(ValueError, match=r"keys.cameras: expected a key for each of"):
        Keys.of(small().spec, {"overhead": "cam_high"})


def ours(**message):
    return pack({"vla_runtime": 1, **message})


def test_nonsense_is_told_and_the_client_stays(seen):
    shorter = replace(seen, images={name: image[:4] for name, image in seen.images.items()})
    bad = {
        "a text": "expected a binary frame",
        b"\xc1": "expected one msgpack value",
        openpi(seen)[:-5]: "expected one msgpack value",
        pack([1, 2]): "expected a map",
        pack({"prompt": "x"}): "expected 'observation/image' .camera overhead.",
        openpi(shorter): "expected",
        ours(kind="predict", observations=[]): "send begin first",
        ours(kind="begin", seed=-1): "expected a seed from 0 on",
        ours(kind="explode"): "expected one of the kinds begin, forget, predict",
        pack({"vla_runtime": 9, "kind": "begin"}): "expected version 1, got 9",
        msgpack.packb(
            {"x": {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "|O8", b"shape": [1]}}
        ): "arrays of numbers",
    }
    with serving(small()) as server, connect(server.address) as connection:
        connection.recv()
        for frame, told in bad.items():
            connection.send(frame)
            answer = connection.recv(5)
            assert isinstance(answer, str), answer
            assert re.search(told, answer), answer
        connection.send(ours(kind="begin", seed=0))
        assert unpack(connection.recv())["kind"] == "begun"
        for observations, told in (([], "expected a list of observations"), ([{"state": 1}], "expected state, images")):
            connection.send(ours(kind="predict", observations=observations))
            assert told in connection.recv(5)
        wrong = observation_document(seen)
        connection.send(ours(kind="predict", observations=[{**wrong, "images": {"hand": {"jpeg": b"no"}}}]))
        assert "expected a readable jpeg" in connection.recv(5)
        connection.send(openpi(seen))
        assert unpack(connection.recv())["actions"].shape == (16, 2)


def test_what_goes_wrong_inside_is_not_told(seen, caplog):
    def behave(session, seed):
        def predict(observations, committed=None, deadline=None):
            raise RuntimeError("the secret of /home/somebody")

        session.predict = predict
        return session

    with serving(Policy(Recording(size=16), behave)) as server:
        remote = RemotePolicy(server.address)
        with pytest.raises(RemoteError, match="the server says: internal error") as error:
            remote.begin(0).predict([seen])
        assert "secret" not in str(error.value)
        assert "secret" in caplog.text
        remote.close()


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


def metrics(server):
    return urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5).read().decode()


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


def test_pictures_of_another_size_are_not_decoded(seen, monkeypatch):
    """A few kilobytes may say that they are a hundred million pixels."""
    huge = encode_image(np.zeros((3000, 3000, 3), np.uint8), "png")
    document = {**observation_document(seen, "raw"), "images": {**seen.images, "hand": huge, "other": huge}}
    cameras, decoded = small().spec.cameras, []
    monkeypatch.setattr(Image.Image, "convert", lambda picture, mode: decoded.append(picture))
    with pytest.raises(ValueError, match="expected 16 x 16 pixels, got 3000 x 3000"):
        read_observation(document, cameras)
    assert not decoded
    monkeypatch.undo()
    document["images"]["hand"] = encode_image(seen.images["hand"], "png")
    assert sorted(read_observation(document, cameras).images) == ["hand", "overhead"]


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


def slow(seconds):
    """A policy that lets its answers wait for an event, at most so long."""
    held = threading.Event()

    def behave(session, seed):
        plain = session.predict

        def predict(observations, committed=None, deadline=None):
            held.wait(seconds)
            return plain(observations, committed, deadline)

        session.predict = predict
        return session

    return Policy(Recording(size=16), behave), held


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


def test_a_message_of_too_many_parts_is_refused_before_it_is_made(seen):
    with serving(small()) as server, connect(server.address) as line:
        line.recv()
        line.send(msgpack.packb([{}] * 5000))
        assert "expected at most 4096 maps" in line.recv()
        line.send(b"\xdd\x7f\xff\xff\xff")
        assert "message: expected one msgpack value" in line.recv()


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
    with pytest.raises(ValueError, match="connections: expected more than 0"):
        Access(connections=0)
    with pytest.raises(ValueError, match="token: expected some text"):
        Access(token="")
