"""The command itself: encrypted, in step with a robot's contract, and ended as it should."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from vla_runtime.compose import load
from vla_runtime.serve import serve
from vla_runtime.serving.client import RemoteError, RemotePolicy
from vla_runtime.types import Observation, SpecMismatch

ROBOTS = Path(__file__).parent.parent / "examples" / "robots"


@contextmanager
def served(*options):
    """The address at which the command says it serves, and its process."""
    command = [sys.executable, "-m", "vla_runtime.serve", "policy=nano_lift_beast", "port=0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if " at ws" in line:
                break
        else:
            pytest.fail("".join(said))
        yield line.split()[-1], process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def certificate(need, tmp_path):
    """Of 127.0.0.1, which vouches for itself; and its key."""
    if shutil.which("openssl") is None:
        need("openssl")
    paths = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-out", paths[0], "-keyout", paths[1]], check=True, capture_output=True)
    return paths


def test_encrypted_with_a_token_and_ended_by_a_signal(certificate):
    cert, key = (str(path) for path in certificate)
    options = (f"certificate={cert}", f"key={key}", "token=open sesame", f"contract={ROBOTS / 'lift.yaml'}")
    with served(*options) as (address, process):
        assert address.startswith("wss://")
        with pytest.raises(RemoteError, match="CERTIFICATE_VERIFY_FAILED"):
            RemotePolicy(address, token="open sesame")
        with pytest.raises(RemoteError, match="401"):
            RemotePolicy(address, ca=cert)
        remote = RemotePolicy(address, token="open sesame", ca=cert)
        spec = remote.spec
        images = {camera.name: camera.example() for camera in spec.cameras}
        seen = Observation(spec.state.example(), images, "lift the red cube", 1.0, dict.fromkeys(images, 1.0))
        chunk = remote.begin(0).predict([seen])
        assert chunk.actions.shape == (spec.horizon, spec.action.size)
        os.kill(process.pid, signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
        remote.close()
    assert process.returncode == 0
    assert json.loads(out.splitlines()[-1]) == {"address": address, "policy": "nano_lift_beast"}


def test_a_policy_that_does_not_fit_the_robot_is_not_served():
    with pytest.raises(SpecMismatch, match=r"quadruped\.yaml does not fulfil the contract of nano_lift_beast, 5 diff"):
        serve(load("serve", ["policy=nano_lift_beast", "port=0", f"contract={ROBOTS / 'quadruped.yaml'}"]))


def test_a_certificate_needs_an_address_that_is_checked(tmp_path):
    with pytest.raises(ValueError, match=r"policy\.ca: expected an address with wss://"):
        RemotePolicy("ws://127.0.0.1:1", ca="some.pem")
    with pytest.raises(ValueError, match=r"policy\.ca: expected a PEM file"):
        RemotePolicy("wss://127.0.0.1:1", ca=str(tmp_path / "none.pem"))
