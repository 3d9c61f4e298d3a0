"""Real probes draw with Mesa; the choice itself is tested with probes that only answer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from envs import rendering
from envs.egl_device import DEVICE, preferred_device
from envs.rendering import Probed

pytest.importorskip("mujoco", reason="rendering needs the sim extra")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    # setenv first: whatever choose_gl sets is then undone at the end.
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", DEVICE, "VLA_RUNTIME_EGL_DEVICE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def answer(monkeypatch: pytest.MonkeyPatch, reasons: dict[str, str | None]) -> list[str]:
    asked: list[str] = []

    def probe(backend: str, timeout: float = 1.0) -> Probed:
        asked.append(backend)
        return Probed(reasons[backend])

    monkeypatch.setattr(rendering, "probe", probe)
    return asked


def test_a_backend_draws_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYOPENGL_PLATFORM", "nonsense")
    chosen = rendering.choose_gl()
    assert chosen in rendering.BACKENDS
    assert os.environ["MUJOCO_GL"] == chosen
    assert "PYOPENGL_PLATFORM" not in os.environ


def test_nonsense_is_told() -> None:
    reason = rendering.probe("nonsense").reason
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


@pytest.fixture(scope="session")
def needs_egl(need: Callable[[str], None]) -> None:
    reason = rendering.probe("egl").reason
    if reason is not None:
        need(f"EGL ({reason})")


@pytest.mark.parametrize(
    ("visible", "preferred"),
    [("", None), ("-1", None), ("GPU-5ca1ab1e", None), ("3,1", 3), (" 0", 0), ("NoDevFiles", None)],
)
def test_cuda_may_prefer_a_device(monkeypatch: pytest.MonkeyPatch, visible: str, preferred: int | None) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert preferred_device() == preferred


def test_robosuite_draws_whatever_cuda_is_shown(needs_egl: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """robosuite reads the variable as a list of EGL devices, refuses this one, and with that every episode."""
    visible = "GPU-5ca1ab1e"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    script = (
        "import os, envs.osc_arm; from robosuite.renderers.context.egl_context import EGLGLContext; "
        "EGLGLContext(64, 48, -1).make_current(); print(os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == f"{visible}\n", done.stderr


def test_the_chosen_device_is_inherited_and_not_tried_again(
    needs_egl: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "99")
    assert rendering.choose_gl() == "egl"
    assert os.environ[DEVICE].isdigit()
    assert "CUDA_VISIBLE_DEVICES names GPU 99, which EGL cannot draw on" in caplog.text
    asked = answer(monkeypatch, {})
    assert rendering.choose_gl() == "egl"
    assert asked == []


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ("77", RuntimeError, r"MUJOCO_EGL_DEVICE_ID: expected 0 to \d+, got 77; remedy: unset MUJOCO_EGL_DEVICE_ID"),
        ("abc", ValueError, "MUJOCO_EGL_DEVICE_ID: expected the index of an EGL device, such as 0, got 'abc'"),
        ("-1", ValueError, "MUJOCO_EGL_DEVICE_ID: expected the index of an EGL device, such as 0, got '-1'"),
    ],
)
def test_a_device_that_is_not_there_is_refused_and_the_doctor_says_so(
    needs_egl: None, monkeypatch: pytest.MonkeyPatch, device: str, error: type[Exception], message: str
) -> None:
    monkeypatch.setenv(DEVICE, device)
    with pytest.raises(error, match=message):
        rendering.choose_gl()
    finding = rendering.check_rendering()
    assert not finding["ok"]
    assert DEVICE in str(finding["detail"])
    assert f"unset {DEVICE}" in str(finding["remedy"])
    # It is nothing to OSMesa.
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert rendering.choose_gl() == "osmesa"


def test_the_doctor_says_which_device(needs_egl: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert str(rendering.check_rendering()["detail"]).startswith("uses egl (MUJOCO_GL is set) on device 0 of ")


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
    assert expected in str(rendering.probe("egl", timeout=0.5 if "sleep" in script else 20.0).reason)


def test_importing_it_imports_no_simulator() -> None:
    code = "import sys, envs.rendering; sys.exit('mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
