"""Who may use which cores."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vla_runtime import machine
from vla_runtime.machine import one_core_left, set_single_threaded_blas


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot tell")
def test_all_cores_but_one_with_a_thread_on_each_unless_the_user_says_how_many(monkeypatch):
    asked = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5, 7})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: asked.append(set(cores)))
    monkeypatch.delenv(machine._SET_HERE, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    set_single_threaded_blas()
    try:
        assert (os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"]) == ("1", "2")
        with one_core_left():
            assert (os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"]) == ("3", "2")
        assert os.environ["OMP_NUM_THREADS"] == "1"
        assert asked == [{0, 1, 5}, {0, 1, 5, 7}]
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
        with one_core_left():
            assert os.environ["OMP_NUM_THREADS"] == "1"
        assert len(asked) == 2
        # A process that was started meanwhile knows which of them nobody but us has set.
        script = "from vla_runtime import machine; print(machine._limited())"
        told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        assert "OMP_NUM_THREADS" in told
        assert "OPENBLAS_NUM_THREADS" not in told
    finally:
        for name in machine._limited():
            os.environ.pop(name, None)
        os.environ.pop(machine._SET_HERE, None)
