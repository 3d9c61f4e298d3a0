"""What openpi's public client says to a server, and hears: run in its own environment, arguments are an address' port
and what to do.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy


def seen(value):
    picture = np.full((16, 16, 3), value, np.uint8)
    state = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    words = {"observation/state": state, "prompt": "touch the red disc"}
    return {"observation/image": picture, "observation/wrist_image": picture, **words}


def infer(client):
    client.reset()
    answer = client.infer(seen(7))
    return {
        "metadata": sorted(client.get_server_metadata()),
        "actions": answer["actions"].tolist(),
        "timing": sorted(answer["server_timing"]),
        "kinds": sorted({type(value).__name__ for value in answer.values()}),
    }


def broker(client):
    chunks = ActionChunkBroker(client, 4)
    return [chunks.infer(seen(step))["actions"].tolist() for step in range(6)]


def wrong(client):
    """A wrong observation is told; the connection is of use afterwards."""
    try:
        client.infer({"prompt": "touch"})
    except RuntimeError as error:
        return [str(error)[:2000], len(client.infer(seen(1))["actions"])]
    return "nothing was said"


def restart(client):
    """Ask, say so, wait for a line, ask again; then with a new client."""
    client.infer(seen(1))
    print("asked", flush=True)
    sys.stdin.readline()
    try:
        client.infer(seen(2))
        return "an answer"
    except Exception as error:
        fresh = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]))
        return [type(error).__name__, len(fresh.infer(seen(3))["actions"])]


if __name__ == "__main__":
    doing = {"infer": infer, "broker": broker, "wrong": wrong, "restart": restart}[sys.argv[2]]
    print(json.dumps(doing(WebsocketClientPolicy("127.0.0.1", int(sys.argv[1])))))
