"""A small arm, and what it shows."""

from __future__ import annotations

import pytest
from numbered import Recording


@pytest.fixture
def env():
    env = Recording(size=16)
    env.reset(0, 0, 0)
    return env


@pytest.fixture
def seen(env):
    return env.observe([camera.name for camera in env.spec.cameras])
