"""Fused kernels without a GPU: in Triton's interpreter, compiled for one, and where Triton is missing."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vla_runtime.decoding import triton_kernels

SUPPORT = Path(__file__).parent.parent / "support"


def test_a_gpu_without_triton_is_announced(monkeypatch, caplog):
    triton_kernels.announce.cache_clear()
    monkeypatch.setattr(triton_kernels, "_has_triton", lambda: False)
    with caplog.at_level(logging.WARNING):
        triton_kernels.announce("cpu")
        assert not caplog.records
        assert not triton_kernels.fused("cuda")
        triton_kernels.announce("cuda")
    (line,) = caplog.messages
    assert "expected Triton on cuda, got none" in line
    assert "pip install triton" in line
    monkeypatch.setattr(triton_kernels, "_has_triton", lambda: True)
    assert triton_kernels.fused("cuda")
    assert not triton_kernels.fused("cpu")


@pytest.mark.parametrize(
    ("script", "interpret"),
    [("llama_interpreted", "1"), ("llama_compiled", "0"), ("kernels_interpreted", "1"), ("kernels_compiled", "0")],
)
def test_kernels_are_their_reference_lines_in_triton_s_interpreter_and_compile(need, tmp_path, script, interpret):
    if importlib.util.find_spec("triton") is None:
        need("triton")
    places = {"PYTHONPATH": str(SUPPORT.parent.parent), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(SUPPORT / f"{script}.py")], capture_output=True, text=True, timeout=120,
        env={**os.environ, **places, "TRITON_INTERPRET": interpret},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


