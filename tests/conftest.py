"""What tests need beside Python: a simulator, a renderer, LIBERO's files.

On a user's machine a test whose real part is missing skips; under CI it fails.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

import pytest

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` run where there is one; no machine is asked to have one, not even under CI."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def _has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing; under CI every test must run", pytrace=False)
    pytest.skip(f"{what} is missing")


@pytest.fixture(scope="session")
def need() -> Callable[[str], None]:
    return _missing


@pytest.fixture(scope="session")
def needs_sim() -> None:
    """robosuite, MuJoCo and a way to render."""
    for package in ("mujoco", "robosuite"):
        if importlib.util.find_spec(package) is None:
            _missing(package)
    from envs.rendering import choose_gl

    try:
        choose_gl()
    except RuntimeError as error:
        _missing(f"a renderer ({error})")


@pytest.fixture(scope="session")
def needs_libero(needs_sim: None) -> None:
    """hf-libero and its scene files."""
    if importlib.util.find_spec("libero") is None:
        _missing("hf-libero")
    if not os.path.isdir(os.environ.get("VLA_LIBERO_ASSETS", "")):
        _missing("LIBERO's scene files (VLA_LIBERO_ASSETS)")
