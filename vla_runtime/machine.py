"""What this machine is, and who of it may use how much: its name beside figures, cores and threads of processes."""

from __future__ import annotations

import multiprocessing
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# How libraries are told how many threads to start.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Names those that were set here and not by the user; processes that are started inherit it as they do them.
_SET_HERE = "VLA_RUNTIME_LIMITED_THREADS"


class Orphaned(BaseException):
    """The process that this one works for is gone; another may own what it writes by now."""


def check_parent() -> None:
    """Orphaned where the process that started this one by `multiprocessing` has ended."""
    parent = multiprocessing.parent_process()
    # Asked in every control period: a number, and no wait for the other process.
    if parent is not None and os.getppid() != parent.pid:
        raise Orphaned


def hardware() -> str:
    """The processor's name and how many cores this process may use."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores"


def set_single_threaded_blas() -> None:
    """For processes that step simulators: their matrices are tiny, and BLAS threads only fight over cores.

    Works for processes started afterwards; a value the user has set stays.
    """
    names = [name for name in _THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(names, "1"))
    os.environ[_SET_HERE] = ",".join([*_limited(), *names])


def _limited() -> list[str]:
    return [name for name in os.environ.get(_SET_HERE, "").split(",") if name]


@contextmanager
def one_core_left() -> Iterator[None]:
    """Processes that are started within may use all cores but one, with a thread on each unless the user says how many.

    Set before they begin, since libraries start their threads when they are loaded. Where there is one core, or a
    system that cannot tell, nothing changes.
    """
    known = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(known) < 2:
        yield
        return
    os.sched_setaffinity(0, known - {max(known)})
    before = {name: os.environ[name] for name in _limited()}
    os.environ.update(dict.fromkeys(before, str(len(known) - 1)))
    try:
        yield
    finally:
        os.environ.update(before)
        os.sched_setaffinity(0, known)
