"""Programs of others, each in an environment of its own, as tests/peers.sh makes them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PEERS = Path(os.environ.get("VLA_PEERS") or Path.home() / ".cache" / "vla_runtime" / "peers")


class Peer:
    """The Python of an environment. Everything it starts sees this checkout, and no package of ours beside it."""

    def __init__(self, python, inside=()):
        self._command = [*inside, str(python)]
        self._started = []

    def start(self, *arguments, stdin=subprocess.DEVNULL, **environment):
        """A process; what it says is read by `communicate`. Ended with the test."""
        process = subprocess.Popen(
            [*self._command, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            stdin=stdin, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}", **environment},
            cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        self._started.append(process)
        return process

    def run(self, *arguments, timeout=60, **environment):
        """What it said on stdout; it must succeed."""
        process = self.start(*arguments, **environment)
        out, errors = process.communicate(timeout=timeout)
        assert process.returncode == 0, f"{out}\n{errors}"
        return out

    def close(self):
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.communicate()


def peer_of(name, need, inside=()):
    python = PEERS / name / "bin" / "python"
    if not (PEERS / name / ".ready").exists():
        need(f"the environment {name} (sh tests/peers.sh {PEERS})")
    assert sys.platform == "linux"
    return Peer(python, inside)


@pytest.fixture
def openpi(need):
    peer = peer_of("openpi", need)
    yield peer
    peer.close()


@pytest.fixture
def network():
    """What a command begins with to run where nothing but this test is reached: a network of its own, with loopback
    alone. Without the right to make one, a ROS domain of its own must do.
    """
    if os.geteuid() or not shutil.which("unshare") or not shutil.which("nsenter"):
        yield ()
        return
    holder = subprocess.Popen(["unshare", "-n", "sleep", "600"])
    inside = ("nsenter", "-t", str(holder.pid), "-n")
    try:
        made = subprocess.run(["sh", "-c", _WAIT.format(holder.pid)], capture_output=True, timeout=10)
        up = made.returncode == 0 and not subprocess.run([*inside, "ip", "link", "set", "lo", "up"]).returncode
        yield inside if up else ()
    finally:
        holder.kill()
        holder.wait()


# Until the holder has left this network.
_WAIT = "until [ $(readlink /proc/{0}/ns/net) != $(readlink /proc/self/ns/net) ]; do sleep 0.02; done"


@pytest.fixture
def ros2(need, network, monkeypatch):
    domain = random.randrange(1, 100)
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setenv("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")
    peer = peer_of("ros2", need, network)
    peer.domain = domain
    yield peer
    peer.close()


@pytest.fixture
def ros1(need, network, monkeypatch):
    """Debian's Python with ROS 1, beside a master."""
    port = random.randrange(12000, 20000)
    for name, value in (("ROS_MASTER_URI", f"http://127.0.0.1:{port}"), ("ROS_IP", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    peer = peer_of("ros1", need, network)
    # It finds its own programs on the path, and its own Python first.
    monkeypatch.setenv("PATH", f"/usr/bin:/bin:{os.environ['PATH']}")
    # What roscore starts, without the node that gathers logs.
    peer.master = peer.start("/usr/bin/rosmaster", "--core", "-p", str(port))
    answers = "import rosgraph, sys; sys.exit(not rosgraph.is_master_online())"
    deadline = time.monotonic() + 30  # noqa: TID251
    while peer.start("-c", answers).wait():
        assert time.monotonic() < deadline, "the master does not answer"  # noqa: TID251
    yield peer
    peer.close()


class WebBridge:
    """A rosbridge server (ros2-web-bridge) on a port of its own; `start` starts it anew."""

    def __init__(self, ros2, folder):
        self._ros2 = ros2
        self._program = folder / "node_modules" / "ros2-web-bridge" / "bin" / "rosbridge.js"
        self._port = random.randrange(12000, 20000)
        self.address = f"ws://127.0.0.1:{self._port}"
        self.start()

    def start(self):
        """Until it takes connections."""
        # By way of Python: where the wheels' libraries lie is known to it alone, and they want one in the process.
        command = ["node", str(self._program), "-p", str(self._port)]
        self.server = self._ros2.start(
            "-c", f"import os; os.environ['LD_PRELOAD'] = 'libpython3.11.so.1.0'; os.execvp('node', {command})",
            AMENT_PREFIX_PATH=str(PEERS / "ros2"), ROS_DISTRO="jazzy",
        )  # fmt: skip
        deadline = time.monotonic() + 30  # noqa: TID251
        look = f"import socket; socket.create_connection(('127.0.0.1', {self._port}), 1).close()"
        while self._ros2.start("-c", look).wait():
            assert self.server.poll() is None, self.server.communicate()
            assert time.monotonic() < deadline, "the rosbridge server does not answer"  # noqa: TID251


@pytest.fixture
def rosbridge(ros2, need):
    folder = PEERS / "rosbridge"
    if not (folder / ".ready").exists():
        need(f"a rosbridge server (sh tests/peers.sh {PEERS})")
    return WebBridge(ros2, folder)


@pytest.fixture
def here(network):
    """This Python, where the peers are."""
    peer = Peer(sys.executable, network)
    yield peer
    peer.close()
