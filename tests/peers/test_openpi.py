"""openpi's own client against our server, and our client against a server that speaks with openpi's packer."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numbered import Policy, Recording
from served import Served, serving

from vla_runtime.contract import Contract
from vla_runtime.serving.client import RemoteError, RemotePolicy

HERE = Path(__file__).parent
CLIENT, SERVER = HERE / "asking.py", HERE / "answering.py"


@pytest.fixture
def env():
    env = Recording(size=16)
    env.reset(0, 0, 0)
    return env


def test_it_infers_and_resets(openpi, env):
    policy = Policy(env)
    alone = policy.begin(0).predict([env.observe(("overhead", "hand"))]).actions
    with serving(policy) as server:
        said = json.loads(openpi.run(CLIENT, server.port, "infer"))
    assert said["actions"] == alone.tolist()
    assert {"keys", "policy", "vla_runtime"} <= set(said["metadata"])
    assert "infer_ms" in said["timing"]
    # Every array has the rows first; the rest is no array.
    assert said["kinds"] == ["dict", "ndarray"]


def test_its_chunk_broker_plays_row_by_row(openpi, env):
    with serving(Policy(env)) as server:
        rows = json.loads(openpi.run(CLIENT, server.port, "broker"))
    # A fresh session a question: the plan is always the first.
    assert np.allclose(rows, [[0.0, row / 100] for row in (0, 1, 2, 3, 0, 1)])


def test_two_clients_at_once(openpi, env):
    with serving(Policy(env)) as server:
        both = [openpi.start(CLIENT, server.port, "broker") for _ in range(2)]
        said = [process.communicate(timeout=60) for process in both]
    assert all(process.returncode == 0 for process in both), said
    assert said[0][0] == said[1][0]


def test_a_wrong_observation_is_told_and_the_client_stays(openpi, env):
    with serving(Policy(env)) as server:
        told, rows = json.loads(openpi.run(CLIENT, server.port, "wrong"))
    assert "expected 'observation/image'" in told
    assert "File" not in told.replace("Error in inference server", "")
    assert rows == 16


def test_a_restarted_server_is_a_loud_failure_and_then_a_new_beginning(openpi, env):
    first = Served(Policy(env))
    process = openpi.start(CLIENT, first.port, "restart", stdin=subprocess.PIPE)
    assert process.stdout.readline() == "asked\n"
    first.stop()
    with serving(Policy(env), port=first.port):
        out, errors = process.communicate("go\n", timeout=60)
    assert process.returncode == 0, errors
    kind, rows = json.loads(out)
    assert "Closed" in kind
    assert rows == 16


def test_a_stock_server_is_a_policy_for_our_loop(openpi, env, tmp_path):
    process = openpi.start(SERVER)
    address = f"ws://127.0.0.1:{int(process.stdout.readline())}"
    contract = replace(Contract.of(env.spec), horizon=16)
    path = tmp_path / "stock.yaml"
    contract.save(path)
    keys = {"cameras": {"overhead": "picture", "hand": "other"}, "state": "state", "prompt": "text"}
    policy = RemotePolicy(address, contract=str(path), keys=keys)
    seen = env.observe(("overhead", "hand"))
    chunk = policy.begin(0).predict([seen])
    assert np.allclose(chunk.actions[:, 0], seen.state[0])
    assert np.allclose(chunk.actions[:, 1], seen.images["overhead"].mean())
    wrong = RemotePolicy(address, contract=str(path), keys={**keys, "state": "joints"})
    with pytest.raises(RemoteError, match="the server says: Traceback: no state"):
        wrong.begin(0).predict([seen])
    for one in (policy, wrong):
        one.close()


def test_the_light_core_drives_a_robot_from_their_environment(openpi, env, tmp_path):
    """numpy below 2, no torch: a whole rollout over the wire."""
    with serving(Policy(Recording(size=64))) as server:
        out = openpi.run(
            "-m", "vla_runtime.rollout", "env=reach", "env.max_steps=20", "policy=remote",
            f"policy.address={server.address}", "episodes=1", f"out={tmp_path / 'run'}", "video=none",
        )  # fmt: skip
    line = json.loads(out.splitlines()[-1])
    assert (line["episodes"], line["errors"]) == (2, 0)  # of each task
    assert openpi.run("-c", "import numpy; print(numpy.__version__)").startswith("1.")


@pytest.mark.usefixtures("needs_sim")
def test_the_readmes_script_lifts(openpi, tmp_path):
    from policies.checkpoint import load_policy

    script = (HERE.parent.parent / "examples" / "openpi_lift.py").read_text()
    assert script.count("8000") == 1
    with serving(load_policy("nano_lift_beast")) as server:
        # At a port that is free here.
        (tmp_path / "lift.py").write_text(script.replace("8000", str(server.port)))
        said = openpi.run(tmp_path / "lift.py", timeout=120)
    assert "success=True" in said
