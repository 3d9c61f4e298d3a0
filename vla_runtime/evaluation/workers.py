"""Jobs run by processes that may crash or hang, without losing or inventing a result.

A worker is a fresh process that builds something once and then works off jobs. One that dies, or is silent
for too long, is started again and its job tried once more; then the job is reported as failed. It knows
nothing of what the jobs are.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from vla_runtime.control.clock import Clock, SystemClock
from vla_runtime.control.isolated import tell
from vla_runtime.machine import Orphaned

_log = logging.getLogger(__name__)

# A simulator may compile, and a first import may read hundreds of megabytes.
_BUILD_TIMEOUT = 300.0
_TRIES = 2

Work = Callable[[Any], Any]


@dataclass(slots=True)
class _Worker:
    process: Any
    connection: Connection
    job: Any = None
    tries: int = 0
    since: float = 0.0
    ready: bool = False


def run_jobs(
    build: Callable[..., tuple[Any, Work]],
    arguments: tuple[Any, ...],
    jobs: Callable[[Any], Sequence[Any]],
    on_result: Callable[[Any, Any], None],
    on_failure: Callable[[Any, str], None],
    *,
    workers: int,
    timeout: float,
    clock: Clock | None = None,
) -> None:
    """Work off `jobs` on `workers` processes.

    build(*arguments), a module-level function, runs in each process and returns (facts, work). jobs(facts),
    called here once with the first worker's facts, gives the list. Each work(job) is reported by
    on_result(job, result) in order of completion, a job that crashed or hung its process `_TRIES` times by
    on_failure(job, what happened). An exception from build or work is re-raised here.
    """
    clock = clock or SystemClock()
    context = multiprocessing.get_context("spawn")

    def start() -> _Worker:
        ours, theirs = context.Pipe()
        # Not a daemon: a policy may live in a process of its own. Without us it reads the end of its pipe.
        process = context.Process(target=_work, args=(theirs, build, arguments))
        process.start()
        theirs.close()
        return _Worker(process, ours, since=clock.now())

    pool = [start()]
    waiting: deque[tuple[Any, int]] | None = None
    try:
        while pool:
            for worker in pool:
                if worker.ready and worker.job is None and waiting:
                    worker.job, worker.tries = waiting.popleft()
                    worker.since = clock.now()
                    with suppress(OSError):  # one that has just died is found so below
                        worker.connection.send(worker.job)
            if waiting is not None and not waiting:
                for idle in [worker for worker in pool if worker.job is None]:
                    _stop(idle)
                    pool.remove(idle)
                if not pool:
                    return
            for connection in wait([worker.connection for worker in pool], timeout=1.0):
                worker = next(worker for worker in pool if worker.connection is connection)
                try:
                    kind, value = worker.connection.recv()
                except (EOFError, ConnectionError):
                    worker.process.join(5)
                    _replace(
                        worker, pool, waiting, f"its process died (exit code {worker.process.exitcode})", on_failure
                    )
                    if _needed(pool, waiting, workers):
                        pool.append(start())
                    continue
                if kind == "error":
                    raise value
                if kind == "ready":
                    worker.ready = True
                    if waiting is None:
                        waiting = deque((job, 0) for job in jobs(value))
                        while _needed(pool, waiting, workers):
                            pool.append(start())
                else:
                    job, worker.job = worker.job, None
                    on_result(job, value)
            for worker in list(pool):
                allowed = timeout if worker.ready else _BUILD_TIMEOUT
                if (worker.job is not None or not worker.ready) and clock.now() - worker.since > allowed:
                    worker.process.kill()
                    _replace(worker, pool, waiting, f"no answer within {allowed:g} s", on_failure)
                    if _needed(pool, waiting, workers):
                        pool.append(start())
    finally:
        for worker in pool:
            _stop(worker)


def _needed(pool: list[_Worker], waiting: deque[tuple[Any, int]] | None, workers: int) -> bool:
    free = sum(worker.job is None for worker in pool)
    return len(pool) < workers and bool(waiting) and len(waiting or ()) > free


def _replace(
    worker: _Worker,
    pool: list[_Worker],
    waiting: deque[tuple[Any, int]] | None,
    reason: str,
    on_failure: Callable[[Any, str], None],
) -> None:
    """Takes a lost worker out of the pool; its job goes back to the front, or is given up."""
    pool.remove(worker)
    if not worker.ready or waiting is None:
        raise RuntimeError(f"a worker could not start: {reason}; run the doctor, or with workers=1 to see its output")
    if worker.job is None:
        return
    if worker.tries + 1 < _TRIES:
        _log.warning("job %s: %s; trying it once more", worker.job, reason)
        waiting.appendleft((worker.job, worker.tries + 1))
    else:
        on_failure(worker.job, f"{reason}, {_TRIES} times")


def _stop(worker: _Worker) -> None:
    with suppress(OSError, ValueError):
        worker.connection.send(None) if worker.job is None and worker.ready else worker.process.kill()
    worker.process.join(10)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    worker.connection.close()


def _work(connection: Connection, build: Callable[..., tuple[Any, Work]], arguments: tuple[Any, ...]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    # Ctrl-C reaches the whole group: the parent decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        facts, work = build(*arguments)
        connection.send(("ready", facts))
        while (job := connection.recv()) is not None:
            connection.send(("result", work(job)))
        close = getattr(work, "close", None)
        if close is not None:
            close()
    except (EOFError, BrokenPipeError, Orphaned):
        return  # The parent is gone: nobody is left to tell.
    except Exception as error:
        _log.debug("", exc_info=True)
        tell(connection, error)
