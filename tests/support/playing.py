"""Episodes of a config without a folder: nothing is filmed or recorded."""

from __future__ import annotations

from pathlib import Path

from vla_runtime.compose import load
from vla_runtime.evaluation.episodes import EpisodeRunner


def runner(*options):
    """What plays the episodes of `rollout` with these options."""
    return EpisodeRunner(load("rollout", [*options, "record.ticks=false"]), "none", Path("unused"))
