"""What clients say, ours and openpi's, and that nothing they send stops a server."""

from __future__ import annotations

import re
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from numbered import Numbered, Policy, Recording
from PIL import Image
from served import NAMES, serving, small
from websockets.sync.client import connect

from vla_runtime.messages import encode_image, observation_document, read_observation
from vla_runtime.serving.client import RemoteError, RemotePolicy
from vla_runtime.serving.protocol import Keys
from vla_runtime.wire import pack, unpack


def openpi(seen):
    """What an openpi client would send, packed as openpi packs it."""

    def array(value):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}

    images = {key: array(seen.images[name]) for name, key in NAMES.items()}
    return msgpack.packb({**images, "observation/state": array(seen.state), "prompt": seen.instruction})


def ours(**message):
    return pack({"vla_runtime": 1, **message})


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
        assert "expected a readable JPEG" in connection.recv(5)
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


def test_a_message_of_too_many_parts_is_refused_before_it_is_made(seen):
    with serving(small()) as server, connect(server.address) as line:
        line.recv()
        line.send(msgpack.packb([{}] * 5000))
        assert "expected at most 4096 maps" in line.recv()
        line.send(b"\xdd\x7f\xff\xff\xff")
        assert "message: expected one msgpack value" in line.recv()


NAN = np.float32([[0.1, 0.2], [0.1, np.nan]])


@pytest.mark.parametrize(
    ("observation", "question", "told"),
    [
        ({}, {"committed": NAN}, r"committed: expected finite values, got nan in row 1, dimension 1 \(joints\.elbow\)"),
        ({}, {"committed": np.zeros(2, np.float32)}, r"committed: expected float32 \[c, 2\] .*, got float32 \[2\]"),
        ({}, {"committed": np.zeros((), np.float32)}, r"committed: expected float32 \[c, 2\] .*, got float32 \[\]"),
        ({}, {"committed": np.zeros((1, 3), np.float32)}, r"committed: expected float32 .*, got float32 \[1, 3\]"),
        ({}, {"committed": np.zeros((1, 2), np.complex64)}, r"committed: expected float32 .*, got complex64 \[1, 2\]"),
        ({}, {"committed": np.zeros((9, 2), np.float32)}, "committed: expected at most 8 rows, got 9"),
        ({}, {"committed": [[0.1, 0.2]]}, "committed: expected float32 .*, got list"),
        ({}, {"deadline": float("nan")}, "expected a deadline in seconds or none, got nan"),
        ({"time": "now"}, {}, "expected time in seconds, got str"),
        ({"time": np.zeros(2)}, {}, "expected time in seconds, got ndarray"),
        ({"time": float("inf")}, {}, "expected time in seconds, got inf"),
        ({"image_times": {"hand": None}}, {}, r"expected image_times\['hand'\] in seconds, got NoneType"),
        ({"image_times": [1.0]}, {}, "expected image_times as a map, got list"),
        ({"instruction": None}, {}, "expected an instruction as text, got NoneType"),
        ({"state": {"a": 1}}, {}, r"state: expected float32 \[4\] .*, got dict"),
        ({"state": np.zeros(4, np.complex64)}, {}, r"state: expected float32 \[4\] .*, got complex64 \[4\]"),
        ({"state": np.float32([0, 0, 0, np.nan])}, {}, "state: expected finite values, got nan in dimension 3"),
        ({"images": {}}, {}, "camera 'overhead': expected an image, got"),
        ({"images": None}, {}, "observation: expected state, images"),
    ],
)
def test_questions_that_do_not_fit_are_named(seen, observation, question, told):
    """They were answered with NaN, in numpy's words, or by an internal error."""
    with serving(small()) as server, connect(server.address) as line:
        line.recv()
        line.send(ours(kind="begin", seed=0))
        line.recv()
        seen = {**observation_document(seen), **observation}
        line.send(ours(**{"kind": "predict", "observations": [seen], "committed": None, "deadline": None, **question}))
        answer = line.recv(5)
        assert isinstance(answer, str), unpack(answer)
        assert re.search(told, answer), answer


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"observation/state": {"a": 1}}, "expected real numbers under 'observation/state', got dict"),
        ({"observation/state": None}, "expected real numbers under 'observation/state', got NoneType"),
        ({"observation/state": "text"}, "expected real numbers under 'observation/state', got str"),
        ({"observation/state": [[1.0], [1.0, 2.0]]}, "expected real numbers under 'observation/state', got list"),
        ({"observation/state": np.zeros(4, complex)}, r"expected real numbers .*, got complex128 \[4\]"),
        ({"observation/state": np.full(4, 1e300)}, "state: expected finite values, got inf in dimension 0"),
        ({"prompt": None}, "expected text under 'prompt', got NoneType"),
    ],
)
def test_openpi_questions_that_do_not_fit_are_named(seen, message, told):
    with serving(small()) as server, connect(server.address) as line:
        line.recv()
        images = {key: seen.images[name] for name, key in NAMES.items()}
        asked = {**images, "observation/state": seen.state, "prompt": "x"}
        line.send(pack({**asked, **message}))
        answer = line.recv(5)
        assert isinstance(answer, str), unpack(answer)
        assert re.search(told, answer), answer
        line.send(pack({**asked, "observation/state": seen.state.tolist()}))
        assert unpack(line.recv(5))["actions"].shape == (16, 2)
