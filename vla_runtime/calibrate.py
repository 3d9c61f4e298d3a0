"""`python -m vla_runtime.calibrate`: what a denoising policy may reuse over its steps, or which rounds masked diffusion
can do without, and what that costs.

    python -m vla_runtime.calibrate policy=nano_lift_diffusion data=data/lift

It composes, records a few demonstrations where none are given, and calls what `calibrator` in its config names;
it knows no network.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

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
        found = run(config, lambda: config["data"] or collect_few(config, Path(folder) / "demonstrations"))
    Console(file=sys.stderr, width=130).print(_table(found.pop("rows"), found))
    return found, 0


def _table(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> Table:
    cached = "" if found["cached"] is None else f"; of the cached: {found['cached']}"
    table = Table(title=f"recommended: {found['recommendation']}{cached}")
    table.add_column("variant")
    for head in ("p50 ms", "speed-up", "work", "from full", "from recorded", "mean more than plain"):
        table.add_column(head, justify="right")
    for row in rows:
        low, high = row["worse_than_plain_interval"]
        speed = row["speedup"]
        table.add_row(
            row["variant"], "-" if row["p50_ms"] is None else f"{row['p50_ms']:.1f}",
            "-" if speed is None else f"{speed:.2f}x", f"{row['flops_ratio']:.1%}", f"{row['deviation']:.4f}",
            f"{row['expert_error']:.4f}", f"{row['worse_than_plain']:+.4f} [{low:+.4f}, {high:+.4f}]",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main("calibrate", calibrate)
