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
from dataclasses import dataclass

from envs.egl_device import DEVICE, cuda_devices_named, preferred_device, required_device

logger = logging.getLogger(__name__)

# EGL first: on a machine with a GPU it draws there; OSMesa always draws on the CPU.
BACKENDS = ("egl", "osmesa")
# The EGL device that a process chose, which those that it starts need not try again.
_DRAWN_ON = "VLA_RUNTIME_EGL_DEVICE"
REMEDY = "apt-get install libegl1 libgl1 libgles2 libegl-mesa0 libgl1-mesa-dri libosmesa6"

# Loading MuJoCo and drawing a frame takes about two seconds; a driver that hangs never ends.
PROBE_TIMEOUT = 60.0

# Arguments: the EGL device that must be used and the one to try first, each an index or nothing. The devices are tried
# in turn until one can be initialised; the last line says which, and how many there are.
# os._exit: EGL objects that outlive the interpreter print harmless errors, which would look like ours.
_PROBE = """
import os, sys
import mujoco
required, preferred = (int(text) if text else None for text in sys.argv[1:3])
chosen = ""
if os.environ["MUJOCO_GL"] == "egl":
    from mujoco.egl import egl_ext as EGL
    from OpenGL import error

    def initialises(device):
        try:
            display = EGL.eglGetPlatformDisplayEXT(EGL.EGL_PLATFORM_DEVICE_EXT, device, None)
            return display != EGL.EGL_NO_DISPLAY and EGL.eglInitialize(display, None, None) == EGL.EGL_TRUE
        except error.GLError:
            return False

    devices = EGL.eglQueryDevicesEXT()
    order = list(range(len(devices)))
    if required is not None:
        if required not in order:
            sys.exit(f"MUJOCO_EGL_DEVICE_ID: expected 0 to {len(devices) - 1}, got {required}")
        order = [required]
    elif preferred in order:
        order = [preferred] + [index for index in order if index != preferred]
    index = next((index for index in order if initialises(devices[index])), None)
    if index is None:
        sys.exit(f"expected an EGL device that can be initialised, got none among {order}")
    os.environ["MUJOCO_EGL_DEVICE_ID"] = str(index)
    chosen = f"{index} {len(devices)}"
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
print(chosen, flush=True)
os._exit(0)
"""


@dataclass(frozen=True, slots=True)
class Probed:
    """What a backend could do. reason: None where it drew a frame; device: EGL's index, one of `devices`, else None."""

    reason: str | None = None
    device: int | None = None
    devices: int = 0


def probe(backend: str, timeout: float = PROBE_TIMEOUT) -> Probed:
    """Draw one frame with MUJOCO_GL=backend in a subprocess, with EGL on the device that the variables ask for.

    ValueError for an EGL device that is not an index.
    """
    # PYOPENGL_PLATFORM is MuJoCo's to set; one left over from another backend makes it refuse.
    variables = {key: value for key, value in os.environ.items() if key not in ("PYOPENGL_PLATFORM", DEVICE)}
    wanted = (required_device(), preferred_device()) if backend == "egl" else (None, None)
    devices = ["" if index is None else str(index) for index in wanted]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, *devices],
            env={**variables, "MUJOCO_GL": backend},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return Probed(f"drew no frame within {timeout:g} s")
    if done.returncode == 0:
        found = done.stdout.split()[-2:] if backend == "egl" else []
        return Probed(None, int(found[0]), int(found[1])) if len(found) == 2 else Probed()
    if done.returncode < 0:
        return Probed(f"the process died of signal {-done.returncode} while drawing")
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return Probed(lines[-1] if lines else f"exit code {done.returncode}")


# PyOpenGL says at INFO which optional parts of it are absent.
logging.getLogger("OpenGL").setLevel(logging.WARNING)


def choose_gl() -> str:
    """Set MUJOCO_GL, and with EGL its device, for this process and its children; return the backend.

    Call before importing mujoco. A MUJOCO_GL that is set is respected, and probed only where a variable may name an EGL
    device that is not there; otherwise the first of EGL and OSMesa that draws a frame is taken. Children inherit the
    variables and so do not probe again. RuntimeError, with the remedy, when nothing that may be used draws; ValueError
    for an EGL device that is not an index.
    """
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen and chosen != "egl":
        return chosen
    device = required_device()
    if chosen and not (cuda_devices_named() or device is not None):
        os.environ.pop(DEVICE, None)  # blank, which MuJoCo takes for no number
        return chosen
    if chosen and device is not None and os.environ.get(_DRAWN_ON) == str(device):
        return chosen
    if "mujoco" in sys.modules:
        logger.warning(
            "mujoco was imported before MUJOCO_GL was chosen: set MUJOCO_GL=egl or osmesa, or import it later"
        )
    reasons = {}
    # Whoever names an EGL device is not given another renderer in silence.
    for backend in ("egl",) if chosen or device is not None else BACKENDS:
        probed = probe(backend)
        if probed.reason is None:
            _use(backend, probed)
            return backend
        reasons[backend] = probed.reason
    expected = "EGL" if len(reasons) == 1 else "EGL or OSMesa"
    raise RuntimeError(f"rendering: expected {expected} to draw a frame, but {_told(reasons)}; remedy: {_remedy()}")


def _use(backend: str, probed: Probed) -> None:
    where = f" on EGL device {probed.device} of {probed.devices}" if probed.device is not None else ""
    logger.info("rendering with MUJOCO_GL=%s%s", backend, where)
    preferred = preferred_device()
    if probed.device is not None and preferred not in (None, probed.device) and required_device() is None:
        logger.warning(
            "CUDA_VISIBLE_DEVICES names GPU %d, which EGL cannot draw on here; set %s to choose another device",
            preferred, DEVICE,
        )  # fmt: skip
    os.environ["MUJOCO_GL"] = backend
    # Inherited from a shell it would contradict the choice; MuJoCo sets its own.
    os.environ.pop("PYOPENGL_PLATFORM", None)
    os.environ.pop(DEVICE, None)
    if probed.device is not None:
        os.environ[DEVICE] = os.environ[_DRAWN_ON] = str(probed.device)


def _remedy() -> str:
    """How to make a backend draw."""
    device = os.environ.get(DEVICE, "").strip()
    if device and device != os.environ.get(_DRAWN_ON):
        return f"unset {DEVICE}, or set it to a device that draws; without EGL, MUJOCO_GL=osmesa; if neither: {REMEDY}"
    if os.environ.get("MUJOCO_GL", "").strip():
        return f"unset MUJOCO_GL, or set it to one of {', '.join(BACKENDS)}; if neither draws: {REMEDY}"
    return REMEDY


def check_rendering() -> dict[str, object]:
    """The doctor's check: what the backend and the device that are set, or else each backend, can draw, and which one
    is used.
    """
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    try:
        named = chosen in ("", "egl") and required_device() is not None
        backends = (chosen,) if chosen else ("egl",) if named else BACKENDS
        probed = {backend: probe(backend) for backend in backends}
    except ValueError as error:
        return {"ok": False, "detail": str(error), "remedy": f"unset {DEVICE}, or set it to a device that draws"}
    broken = {backend: one.reason for backend, one in probed.items() if one.reason is not None}
    working = [backend for backend in backends if backend not in broken]
    if not working:
        detail = f"MUJOCO_GL={chosen}: {broken[chosen]}" if chosen else _told(broken)
        return {"ok": False, "detail": detail, "remedy": _remedy()}
    used = probed[working[0]]
    detail = f"uses {working[0]}" + (" (MUJOCO_GL is set)" if chosen else "")
    if used.device is not None:
        detail += f" on device {used.device} of {used.devices}" + (f" ({DEVICE} is set)" if named else "")
    if len(working) > 1:
        detail += f"; {', '.join(working[1:])} works too"
    return {"ok": True, "detail": "; ".join(filter(None, (detail, _told(broken)))), "remedy": REMEDY if broken else ""}


def _told(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{backend}: {reason}" for backend, reason in reasons.items())
