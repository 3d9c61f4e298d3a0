"""What is written of an episode, whether it was played or its process died."""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_runtime.control.limits import LimitExceeded
from vla_runtime.control.trace import Run, percentiles
from vla_runtime.evaluation.folder import Job, Row
from vla_runtime.types import InvalidAnswer

# Whose an error is. The policy's is a failure like any other; of the rest (a server or renderer that is gone, a process
# that died, a program's mistake) nothing follows about the policy, and the episode is played again.
POLICY, INFRASTRUCTURE = "policy", "infrastructure"


def error_source(problem: BaseException) -> str:
    """Whether the policy asked for what must not be executed, or something else broke."""
    return POLICY if isinstance(problem, (InvalidAnswer, LimitExceeded)) else INFRASTRUCTURE


def make_row(
    facts: dict[str, Any],
    job: Job,
    result: Run,
    initial: dict[str, Any],
    error: str | None,
    seen: frozenset[str] = frozenset(),
    source: str | None = None,
) -> Row:
    """An episode's row without `timing`. facts: `EpisodeRunner.facts`; initial: what the reset told; source: of an
    error, POLICY or INFRASTRUCTURE.
    """
    task, episode, latency = job
    state = initial.get("initial_state")
    profile = {"profile": facts["profiles"][latency]} if latency in facts["profiles"] else {}
    outcome = result.outcome
    return {
        **facts["common"],
        "loop": {**facts["common"]["loop"], "latency": latency, **profile},
        "task": task,
        "task_name": facts["tasks"][task],
        "episode": episode,
        "initial_state": state,
        "init_seen": state in seen if seen else None,
        "success": outcome.success and error is None,
        "reason": "error" if error else outcome.reason,
        "progress": outcome.progress,
        "steps": result.steps,
        "plans": result.plans,
        "clamped": result.clamped,
        "limits": dict(sorted(result.broken.items())),
        "safety": [[round(event.time, 6), event.what, event.reason] for event in result.events],
        "held": result.trace.held,
        "late": result.trace.late,
        "refused": result.trace.refused,
        "delay": round(float(np.mean(result.trace.delays)), 6) if result.trace.delays else None,
        "plan_age": percentiles(result.trace.ages),
        "error": error,
        "error_source": source,
        "facts": {key: value for key, value in initial.items() if key != "initial_state"},
        "smoothness": None,
        "timeline": None,
        "recording": None,
        "video": None,
    }


def failure_row(facts: dict[str, Any], job: Job, error: str) -> Row:
    """The row of an episode whose process crashed or hung."""
    row = make_row(facts, job, Run(), {}, error, source=INFRASTRUCTURE)
    return {
        **row,
        "timing": {"wall_s": None, "reset_s": None, "latencies_ms": [], "tick_us": percentiles([]), "overruns": 0},
    }
