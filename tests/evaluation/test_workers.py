"""Processes that crash, hang or refuse to start."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from vla_runtime.evaluation.workers import run_jobs


def build_echo(folder):
    """Work that misbehaves on request; a file per job remembers that it was tried."""

    def work(job):
        name, behaviour = job
        marker = Path(folder) / name
        first = not marker.exists()
        marker.touch()
        if behaviour == "crash" or (behaviour == "crash once" and first):
            os.kill(os.getpid(), signal.SIGKILL)
        while behaviour == "hang" or (behaviour == "hang once" and first):
            pass
        return name.upper()

    return {"pid": os.getpid()}, work


def build_nothing(folder):
    raise FileNotFoundError("expected assets, got none")


def build_death(folder):
    os.kill(os.getpid(), signal.SIGKILL)


def play(tmp_path, jobs, workers=2, timeout=60.0, build=build_echo):
    results, failures = {}, {}
    run_jobs(
        build,
        (str(tmp_path),),
        lambda facts: jobs,
        lambda job, result: results.__setitem__(job[0], result),
        lambda job, reason: failures.__setitem__(job[0], reason),
        workers=workers,
        timeout=timeout,
    )
    return results, failures


def test_lost_workers_are_replaced_and_jobs_retried_once(tmp_path):
    jobs = [("a", ""), ("b", "crash once"), ("c", ""), ("d", "crash"), ("e", "hang once"), ("f", "")]
    results, failures = play(tmp_path, jobs, timeout=4)
    assert results == {name: name.upper() for name in "abcef"}
    assert list(failures) == ["d"]
    assert "died" in failures["d"]


def test_a_job_that_always_hangs_is_given_up(tmp_path):
    results, failures = play(tmp_path, [("a", "hang"), ("b", "")], workers=1, timeout=2)
    assert results == {"b": "B"}
    assert "no answer within 2 s" in failures["a"]


def test_no_jobs_is_fine(tmp_path):
    assert play(tmp_path, []) == ({}, {})


def test_a_build_error_arrives_as_itself(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected assets"):
        play(tmp_path, [("a", "")], build=build_nothing)


def test_a_worker_that_cannot_start_ends_the_run(tmp_path):
    with pytest.raises(RuntimeError, match="could not start"):
        play(tmp_path, [("a", "")], build=build_death)


def build_mortal(folder):
    """Work that ends its process a moment after each answer."""

    def work(job):
        threading.Timer(0.05, os._exit, (1,)).start()
        return job[0].upper()

    return {}, work


def test_a_worker_that_dies_between_two_jobs_is_replaced(tmp_path):
    results = {}

    def slowly(job, result):
        results[job[0]] = result
        threading.Event().wait(0.3)

    run_jobs(
        build_mortal, (str(tmp_path),), lambda facts: [(name, "") for name in "abc"], slowly,
        lambda job, reason: pytest.fail(reason), workers=1, timeout=60.0,
    )  # fmt: skip
    assert results == {name: name.upper() for name in "abc"}
