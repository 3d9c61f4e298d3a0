"""`python -m vla_runtime.bench`: what decoding a policy costs, every variant timed in turn in one run.

    python -m vla_runtime.bench policy=nano_lift_diffusion data=data/lift
    python -m vla_runtime.bench preset=dp_t

It composes, records a few demonstrations where a trained policy is measured and none are given, calls what `bencher`
in its config names, and prints the table; it knows no network.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vla_runtime.collect import collect_few
from vla_runtime.compose import BadArguments, Config, Result, build, main


def bench(config: Config) -> Result:
    """Measure what `config` says; the last line and the exit code. BadArguments for options that cannot be."""
    if config["preset"]["name"] is None and "folder" not in config["policy"]:
        raise BadArguments(f"policy: expected a trained policy or preset=, got {config['choices']['policy']}")
    for name in ("observations", "repeats", "episodes"):
        if config[name] is None and name == "repeats":
            continue
        if config[name] < 1:
            raise BadArguments(f"{name}: expected at least 1, got {config[name]}")
    if config["warmup"] < 1:
        raise BadArguments(f"warmup: expected at least 1 round, got {config['warmup']}; buffers are made in the first")
    run = build({**config["bencher"], "_partial_": True})
    with tempfile.TemporaryDirectory() as folder:
        found = run(config, lambda: config["data"] or collect_few(config, Path(folder) / "demonstrations"))
    Console(file=sys.stderr, width=160).print(_table(found))
    return found, 0


def _table(found: Mapping[str, Any]) -> Table:
    title = f"{found['policy']}, {found['device']}, {found['threads']} threads, {found['precision']}"
    table = Table(title=title, caption=", ".join(f"{name} {ms} ms" for name, ms in found["stages_ms"].items()))
    table.add_column("variant")
    heads = ("p50 ms", "p95 ms", "p99 ms", "speed-up", "over exact", "FLOPs", "branches", "chunks/s", "actions/s")
    for head in (*heads, "from plain", "from recorded"):
        table.add_column(head, justify="right")
    for row in found["rows"]:
        error, branches, share = row["expert_error"], row["evaluations"], row["flops_ratio"]
        over = row["speedup_over_exact"]
        table.add_row(
            row["variant"], *(f"{row[name]:.1f}" for name in ("p50_ms", "p95_ms", "p99_ms")),
            f"{row['speedup']:.2f}x", "-" if over is None else f"{over:.2f}x", "-" if share is None else f"{share:.1%}",
            "-" if branches is None else f"{branches:.0f}",
            f"{row['chunks_per_s']:.1f}", f"{row['actions_per_s']:.0f}",
            *("-" if value is None else f"{value:.4f}" for value in (row["deviation"], error)),
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main("bench", bench)
