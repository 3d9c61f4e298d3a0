"""`python -m vla_runtime.calibrate`: what a denoising policy may reuse over its steps, and what that costs.

    python -m vla_runtime.calibrate policy=nano_lift_diffusion data=data/lift

It composes, records a few demonstrations where none are given, and calls what `calibrator` in its config names;
it knows no network.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from vla_runtime.collect import FIRST_SEED, collect
from vla_runtime.compose import BadArguments, Config, Result, build, load, main

_log = logging.getLogger(__name__)


def calibrate(config: Config) -> Result:
    """Calibrate what `config` says; the last line and the exit code. BadArguments for options that cannot be."""
    if "folder" not in config["policy"]:
        raise BadArguments(f"policy: expected a trained policy, got {config['choices']['policy']}")
    for name in ("recorded", "judged", "noises", "timed", "episodes"):
        if config[name] < 1:
            raise BadArguments(f"{name}: expected at least 1, got {config[name]}")
    run = build({**config["calibrator"], "_partial_": True})
    with tempfile.TemporaryDirectory() as folder:
        # Asked for when the settings have been checked: recording takes minutes.
        return run(config, lambda: config["data"] or _recorded(config, Path(folder) / "demonstrations")), 0


def _recorded(config: Config, out: Path) -> str:
    _log.info("no data=: recording %d demonstrations of %s first", config["episodes"], config["choices"]["env"])
    recording = load("collect", [
        f"env={config['choices']['env']}", f"episodes={config['episodes']}", f"seed={FIRST_SEED + config['seed']}",
        "recover=true", f"out={out}",
    ])  # fmt: skip
    collect({**recording, "env": config["env"]})
    return str(out)


if __name__ == "__main__":
    main("calibrate", calibrate)
