"""Words for one row of a run, as its report says them; escaped where they come from the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from vla_runtime.evaluation.folder import latency_label

Row = Mapping[str, Any]


def episode(row: Row) -> str:
    """Which episode it is, of what, and with which latency if with one."""
    latency = row["loop"].get("latency")
    late = f", latency {latency_label(latency)}" if latency else ""
    return escape(f"task {row['task']} episode {row['episode']}: {row['task_name']}{late}")


def result(row: Row) -> str:
    """How it ended, as HTML."""
    if row["success"]:
        return f'<span class="good">success</span> <span class="soft">after {row["steps"]} steps</span>'
    return f'<span class="bad">{escape(str(row["reason"]))}</span>'


def plain(value: object) -> str:
    """A text as it is, anything else as JSON; not escaped."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
