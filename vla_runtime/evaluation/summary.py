"""What a run's rows add up to, and the files that tell it."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_runtime.compose import Config
from vla_runtime.control.trace import percentiles
from vla_runtime.disk import write_text
from vla_runtime.evaluation.folder import Job, Row, job_of
from vla_runtime.evaluation.report import write_report
from vla_runtime.evaluation.row import INFRASTRUCTURE
from vla_runtime.evaluation.statistics import wilson_interval

_log = logging.getLogger(__name__)


def finish(config: Config, rows: list[Row], requested: Sequence[Job], folder: Path) -> dict[str, Any]:
    """Write summary and report of the rows that are there, and in real time the delays; returns the summary."""
    summary = summarise(config, rows, requested, folder)
    if config["loop"].get("clock") == "system":
        # A profile for loop.latency: what it costs can be told in simulation.
        delays = [round(delay / 1e3, 6) for row in rows for delay in row["timing"].get("delays_ms", ())]
        write_text(folder / "latencies.json", json.dumps(delays) + "\n")
    write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    write_report(folder)
    return summary


def summarise(config: dict[str, Any], rows: Sequence[Row], jobs: Sequence[Job], folder: Path) -> dict[str, Any]:
    """The last line of a rollout. Errors and missing episodes count as not successful.

    infrastructure_errors: those of `errors` that say nothing about the policy; missing: episodes without a row;
    complete: there is none of either.

    With several latencies the same episodes count several times: an interval is then told for each alone.
    """
    requested, points = len(jobs), by_latency(rows, jobs)
    repeats = repeated(rows)
    if repeats:
        _log.warning(
            "%d episodes begin in a state that another of the same task began in; intervals take them for independent",
            repeats,
        )
    successes = sum(row["success"] for row in rows)
    broken, missing = len(infrastructure_errors(rows)), requested - len(rows)
    latencies = [latency for row in rows for latency in row["timing"]["latencies_ms"]]
    interval = wilson_interval(successes, requested)
    return {
        "env": config["choices"]["env"],
        "policy": config["choices"]["policy"],
        "episodes": requested,
        "successes": successes,
        "errors": sum(row["error"] is not None for row in rows),
        "infrastructure_errors": broken,
        "success_rate": round(successes / requested, 6),
        "ci95": None if points else [round(limit, 6) for limit in interval],
        "latency_ms": percentiles(latencies),
        "control": {
            "rate_hz": rows[0]["loop"]["rate_hz"] if rows else None,
            "overruns": sum(row["timing"]["overruns"] for row in rows),
        },
        "by_latency": points,
        "repeated_states": repeats,
        "premises_broken": sum(row["facts"].get("premise") is False for row in rows),
        "missing": missing,
        "complete": not broken and not missing,
        "out": str(folder),
    }


def infrastructure_errors(rows: Sequence[Row]) -> list[Row]:
    """Rows of episodes that something else than the policy ended: they are played again."""
    return [row for row in rows if row["error_source"] == INFRASTRUCTURE]


def repeated(rows: Sequence[Row]) -> int:
    """Episodes of one latency that begin in a state of their task in which one before began: LIBERO stores fifty."""
    began = [
        (row["task"], row["initial_state"], job_of(row).latency) for row in rows if row["initial_state"] is not None
    ]
    return len(began) - len(set(began))


def by_latency(rows: Sequence[Row], jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Success and throughput of each latency of a run that has several, in order; none of a run that has one.

    jobs: what was asked for; missing episodes count as not successful. per_minute: successes per
    minute of the episodes' own time; delay: mean seconds from an observation to the tick that had its chunk.
    """
    asked = Counter(job.latency for job in jobs)
    if len(asked) < 2:
        return []
    points = []
    for latency in sorted(asked, key=lambda one: (isinstance(one, str), one)):
        members, episodes = [row for row in rows if job_of(row).latency == latency], asked[latency]
        successes = sum(row["success"] for row in members)
        minutes = sum(row["steps"] / row["loop"]["rate_hz"] for row in members) / 60
        delays = [row["delay"] for row in members if row["delay"] is not None]
        points.append(
            {
                "latency": latency,
                "delay": round(sum(delays) / len(delays), 6) if delays else None,
                "episodes": episodes,
                "successes": successes,
                "success_rate": round(successes / episodes, 6),
                "ci95": [round(limit, 6) for limit in wilson_interval(successes, episodes)],
                "per_minute": round(successes / minutes, 6) if minutes else None,
            }
        )
    return points
