"""Real probes draw with Mesa; the choice itself is tested with probes that only answer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from envs import rendering

pytest.importorskip("mujoco", reason="rendering needs the sim extra")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    # setenv first: whatever choose_gl sets is then undone at the end.
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def answer(monkeypatch: pytest.MonkeyPatch, reasons: dict[str, str | None]) -> list[str]:
    asked: list[str] = []

    def probe(backend: str, timeout: float = 1.0) -> str | None:
        asked.append(backend)
        return reasons[backend]

    monkeypatch.setattr(rendering, "probe", probe)
    return asked


def test_a_backend_draws_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYOPENGL_PLATFORM", "nonsense")
    chosen = rendering.choose_gl()
    assert chosen in rendering.BACKENDS
    assert os.environ["MUJOCO_GL"] == chosen
    assert "PYOPENGL_PLATFORM" not in os.environ


def test_nonsense_is_told() -> None:
    reason = rendering.probe("nonsense")
    assert reason is not None
    assert "MUJOCO_GL" in reason
    assert "nonsense" in reason


def test_a_set_value_is_respected_unprobed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, {})
    monkeypatch.setenv("MUJOCO_GL", "OSMesa")
    assert rendering.choose_gl() == "osmesa"
    assert asked == []


def test_osmesa_when_egl_fails_and_no_second_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, {"egl": "no display", "osmesa": None})
    assert rendering.choose_gl() == rendering.choose_gl() == "osmesa"
    assert asked == ["egl", "osmesa"]


def test_neither_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, {"egl": "no display", "osmesa": "no library"})
    with pytest.raises(RuntimeError, match=r"no display.*no library.*apt-get install .*libosmesa6"):
        rendering.choose_gl()
    assert "MUJOCO_GL" not in os.environ
    finding = rendering.check_rendering()
    assert not finding["ok"]
    assert finding["remedy"] == rendering.REMEDY


def test_check_says_which_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, {"egl": None, "osmesa": "no library"})
    finding = rendering.check_rendering()
    assert finding["ok"]
    assert finding["detail"] == "uses egl; osmesa: no library"
    answer(monkeypatch, {"egl": None, "osmesa": None})
    assert rendering.check_rendering() == {"ok": True, "detail": "uses egl; osmesa works too", "remedy": ""}
    answer(monkeypatch, {"nonsense": "invalid value"})
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    finding = rendering.check_rendering()
    assert not finding["ok"]
    assert "unset MUJOCO_GL" in str(finding["remedy"])


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("import sys; sys.exit('the rendered frame has one colour only (0)')", "one colour"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGABRT)", "signal 6"),
        ("import time; time.sleep(60)", "within 0.5 s"),
        ("import os; os._exit(3)", "exit code 3"),
    ],
)
def test_a_probe_survives_what_it_probes(monkeypatch: pytest.MonkeyPatch, script: str, expected: str) -> None:
    monkeypatch.setattr(rendering, "_PROBE", script)
    assert expected in str(rendering.probe("egl", timeout=0.5 if "sleep" in script else 20.0))


def test_importing_it_imports_no_simulator() -> None:
    code = "import sys, envs.rendering; sys.exit('mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
