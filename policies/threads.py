"""Which thread computes with many: the one that answers, and no other.

OpenMP keeps a team of threads for every thread that has ever computed in parallel. Once all teams together are more
than the machine has cores, each sleeps after every operation instead of waiting a moment for the next, and small
operations take several times as long (a chunk of nano_lift_diffusion on two cores: 1.23 s where it was 0.29 s). A
planner and a server answer in a thread of their own, so whoever loads a policy for them computes alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """What is computed within makes no team."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
