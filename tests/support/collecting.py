"""Sets of a small environment, recorded by the command."""

from __future__ import annotations

from vla_runtime.collect import collect
from vla_runtime.compose import load

SMALL = ["env=reach", "env.size=16", "workers=1"]


def collected(out, *overrides):
    """The last line of a command that ends well."""
    result, code = collect(load("collect", [*overrides, f"out={out}"]))
    assert code == 0
    return result
