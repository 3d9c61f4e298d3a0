"""`python -m vla_runtime.calibrate`: what a denoising policy may reuse over its steps, and what that costs.

    python -m vla_runtime.calibrate policy=nano_lift_diffusion data=data/lift

It composes, records a few demonstrations where none are given, and calls what `calibrator` in its config names;
it knows no network.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from vla_runtime.collect import collect_few
from vla_runtime.compose import BadArguments, Config, Result, build, main


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
        return run(config, lambda: config["data"] or collect_few(config, Path(folder) / "demonstrations")), 0


if __name__ == "__main__":
    main("calibrate", calibrate)
