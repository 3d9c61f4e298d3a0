"""Kernel launches, host waits and blocking copies of a chunk as one CUDA graph, counted without a GPU.

    python benchmarks/launches.py [--only dp_t,nano_lift_beast]

Prints a table for every preset and shipped policy, and ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from policies.launches import table

PRESETS = sorted((Path(__file__).resolve().parents[1] / "configs" / "preset").glob("*.yaml"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="policies, separated by commas; all by default")
    only = {name for name in parser.parse_args().only.split(",") if name}
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as work:
        rows = table(PRESETS, Path(work), only)
    shown = Table(*rows[0])
    for row in rows:
        shown.add_row(*map(str, row.values()))
    Console(stderr=True).print(shown)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
