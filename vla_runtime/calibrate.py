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
    for name in ("recorded", "judged", "episodes"):
        if config[name] < 1:
            raise BadArguments(f"{name}: expected at least 1, got {config[name]}")
    run = build({**config["calibrator"], "_partial_": True})
    if config["data"] is not None:
        return run(config, config["data"]), 0
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "demonstrations"
        _log.info("no data=: recording %d demonstrations of %s first", config["episodes"], config["choices"]["env"])
        recording = load("collect", [
            f"env={config['choices']['env']}", f"episodes={config['episodes']}", f"seed={FIRST_SEED + config['seed']}",
            "recover=true", f"out={data}",
        ])  # fmt: skip
        collect({**recording, "env": config["env"]})
        return run(config, str(data)), 0


if __name__ == "__main__":
    main("calibrate", calibrate)
