"""Which OpenGL MuJoCo draws with, decided before MuJoCo is imported.

MuJoCo and robosuite read MUJOCO_GL once, when they are imported, and a backend that does not work may
abort the process instead of raising. So each candidate draws one frame in a process of its own. Nothing
here imports a simulator or knows an environment.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping

logger = logging.getLogger(__name__)

# EGL first: on a machine with a GPU it draws there; OSMesa always draws on the CPU.
BACKENDS = ("egl", "osmesa")
REMEDY = "apt-get install libegl1 libgl1 libgles2 libegl-mesa0 libgl1-mesa-dri libosmesa6"

# Loading MuJoCo and drawing a frame takes about two seconds; a driver that hangs never ends.
PROBE_TIMEOUT = 60.0

# os._exit: EGL objects that outlive the interpreter print harmless errors, which would look like ours.
_PROBE = """
import os, sys
import mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 3"/><geom type="plane" size="1 1 .1" rgba=".2 .4 .6 1"/>'
    '<geom type="box" pos="0 0 .2" size=".2 .2 .2" rgba="1 .3 .1 1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 48, 64)
renderer.update_scene(data)
image = renderer.render()
if image.min() == image.max():
    sys.exit(f"the rendered frame has one colour only ({image.min()})")
os._exit(0)
"""


def probe(backend: str, timeout: float = PROBE_TIMEOUT) -> str | None:
    """Draw one frame with MUJOCO_GL=backend in a subprocess; None when it worked, else the reason in one line."""
    # PYOPENGL_PLATFORM is MuJoCo's to set; one left over from another backend makes it refuse.
    variables = {key: value for key, value in os.environ.items() if key != "PYOPENGL_PLATFORM"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={**variables, "MUJOCO_GL": backend},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return f"drew no frame within {timeout:g} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"the process died of signal {-done.returncode} while drawing"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"


# PyOpenGL says at INFO which optional parts of it are absent.
logging.getLogger("OpenGL").setLevel(logging.WARNING)


def choose_gl() -> str:
    """Set MUJOCO_GL for this process and its children, and return it. Call before importing mujoco.

    A value that is set is respected unprobed; otherwise the first of EGL and OSMesa that draws a frame.
    Children inherit the variable and so do not probe again. RuntimeError, with the remedy, when neither
    draws.
    """
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen:
        return chosen
    if "mujoco" in sys.modules:
        logger.warning(
            "mujoco was imported before MUJOCO_GL was chosen: set MUJOCO_GL=egl or osmesa, or import it later"
        )
    reasons = {}
    for backend in BACKENDS:
        reason = probe(backend)
        if reason is None:
            logger.info("rendering with MUJOCO_GL=%s", backend)
            os.environ["MUJOCO_GL"] = backend
            # Inherited from a shell it would contradict the choice; MuJoCo sets its own.
            os.environ.pop("PYOPENGL_PLATFORM", None)
            return backend
        reasons[backend] = reason
    raise RuntimeError(f"rendering: expected EGL or OSMesa to draw a frame, but {_told(reasons)}; remedy: {REMEDY}")


def check_rendering() -> dict[str, object]:
    """The doctor's check: what a set MUJOCO_GL, or else each backend, can draw, and which one is used."""
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen:
        reason = probe(chosen)
        if reason is None:
            return {"ok": True, "detail": f"uses {chosen} (MUJOCO_GL is set)", "remedy": ""}
        remedy = f"unset MUJOCO_GL, or set it to one of {', '.join(BACKENDS)}; if neither draws: {REMEDY}"
        return {"ok": False, "detail": f"MUJOCO_GL={chosen}: {reason}", "remedy": remedy}
    reasons = {backend: probe(backend) for backend in BACKENDS}
    working = [backend for backend in BACKENDS if reasons[backend] is None]
    if not working:
        return {"ok": False, "detail": _told(reasons), "remedy": REMEDY}
    detail = f"uses {working[0]}"
    if len(working) > 1:
        detail += f"; {', '.join(working[1:])} works too"
    broken = {backend: reason for backend, reason in reasons.items() if reason is not None}
    return {"ok": True, "detail": "; ".join(filter(None, (detail, _told(broken)))), "remedy": REMEDY if broken else ""}


def _told(reasons: Mapping[str, str | None]) -> str:
    return "; ".join(f"{backend}: {reason}" for backend, reason in reasons.items())
