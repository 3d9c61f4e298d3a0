"""The other end is there, and does not read: whoever sends is told, and can end."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import threading

import numpy as np
import pytest

from vla_runtime.control.clock import SystemClock
from vla_runtime.robot_side import CameraStream, Topic
from vla_runtime.ros.messages import image_message
from vla_runtime.ros.rosbridge_transport import RosbridgeTransport
from vla_runtime.serving.client import RemoteError, _Line
from vla_runtime.wire import pack

BIG = np.random.default_rng(0).integers(0, 255, (600, 600, 3)).astype(np.uint8)


@pytest.fixture
def address():
    """Of a server that shakes hands, says one thing, and then reads nothing."""
    listening = socket.create_server(("127.0.0.1", 0))
    held = []

    def take():
        while True:
            try:
                line, _ = listening.accept()
            except OSError:
                return
            held.append(line)
            key = re.search(rb"Sec-WebSocket-Key: (.+?)\r\n", line.recv(10000))[1]
            accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
            line.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
            line.send(b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + b"\x82\x01\xc0")

    threading.Thread(target=take, daemon=True).start()
    yield f"ws://127.0.0.1:{listening.getsockname()[1]}"
    listening.close()
    for line in held:
        line.close()


def test_a_client_has_its_timeout(address):
    line, clock = _Line(address, None, 1.0), SystemClock()
    assert line.connect() is None
    began = clock.now()
    with pytest.raises(RemoteError, match="expected"):
        line.exchange({"images": pack(np.zeros(20_000_000, np.uint8))})
    assert clock.now() - began < 8
    assert not line.is_open


def test_a_bridge_knows_that_it_is_not_heard_and_can_end(address):
    transport, clock = RosbridgeTransport(address), SystemClock()
    topic = Topic("/camera", "sensor_msgs/msg/CompressedImage")
    transport.open([topic])
    picture = image_message(BIG, CameraStream(topic.name), 1.0, "")
    began, problem = clock.now(), ""
    while not problem and clock.now() - began < 20:
        try:
            transport.publish(topic, picture)
        except RuntimeError as error:
            problem = str(error)
        clock.sleep_until(clock.now() + 0.02)
    assert "expected a connection" in problem
    said = " ".join(transport.health())
    assert "messages lost with the connection" in said
    assert "connections lost" in said
    began = clock.now()
    transport.close()
    assert clock.now() - began < 8
