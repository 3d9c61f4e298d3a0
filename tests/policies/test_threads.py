"""Only what answers computes with many threads."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from policies.checkpoint import load_policy
from policies.threads import one_thread

# Counted by the system: a library's threads are no Python's.
LOADED = """
import os, sys, torch
from policies.checkpoint import load_policy
torch.set_num_threads(4)
before = len(os.listdir("/proc/self/task"))
policy = load_policy(sys.argv[1])
policy.begin(0)
policy.together()
assert torch.get_num_threads() == 4
print(len(os.listdir("/proc/self/task")) - before)
torch.ones(4000, 4000).sum()
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_within_one_computes_and_after_it_as_many_as_before():
    before = torch.get_num_threads()
    within = one_thread()(torch.get_num_threads)
    assert within() == 1
    with pytest.raises(KeyError):
        one_thread()({}.__getitem__)(0)
    assert torch.get_num_threads() == before


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted as Linux tells them")
def test_loading_a_policy_and_beginning_with_it_leaves_no_threads_waiting(denoising):
    load_policy(denoising)
    said = subprocess.run([sys.executable, "-c", LOADED, str(denoising)], capture_output=True, text=True, check=True)
    quiet, team = map(int, said.stdout.split())
    assert (quiet, team) == (0, 3)
