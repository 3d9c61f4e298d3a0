"""A calibration as one page: what every way to decode costs and how far its chunks are from the recorded ones.

A pure function from the document that `calibrate` writes to text; it decides nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from html import escape
from typing import Any

from vla_runtime.evaluation.charts import scatter
from vla_runtime.evaluation.page import document, number, section, table


def page(calibration: Mapping[str, Any]) -> str:
    """The page of a calibration.json."""
    rows = calibration["rows"]
    groups: defaultdict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for row in rows:
        family = " ".join(word for word in str(row["variant"]).replace(",", " ").split() if not _is_number(word))
        groups[family.removesuffix(" bubbled")].append((row["p50_ms"], row["expert_error"], row["variant"]))
    title = f"Calibration of {calibration['policy']}"
    said = {key: escape(str(value)) for key, value in calibration.items() if key != "rows"}
    told = (
        f"{said['sampler']}, {said['steps']} steps; recorded on {said['recorded']}, judged on {said['judged']} other "
        f"frames; {said['hardware']}. Recommended: <b>{said['recommendation']}</b>, "
        "the fastest whose chunks are, on average, at most "
        f"{calibration['tolerance']:.0%} further from recorded ones than the plain decode's. Of the cached: "
        f"{said['cached']}" + ("." if calibration["cached_is_good"] else ", the nearest; none is within the tolerance.")
    )
    lines = [
        (
            escape(str(row["variant"])),
            number(row["p50_ms"]),
            number(row["p95_ms"]),
            f"{row['speedup']:.2f}x",
            f"{row['flops_ratio']:.1%}",
            f"{row['deviation']:.4f}",
            f"{row['expert_error']:.4f}",
        )
        for row in rows
    ]
    heads = ("", "#p50 ms", "#p95 ms", "#speed", "#of the branches' work", "#from plain", "#from recorded")
    chart = scatter(groups, ("milliseconds a chunk, median", "mean distance from the recorded chunk, in [-1, 1]"))
    parts = [f"<h1>{escape(title)}</h1>", f"<p class=soft>{told}</p>", f'<div class="card">{chart}</div>']
    return document(title, [*parts, section("Every way to decode", table(lines, heads))])


def _is_number(word: str) -> bool:
    return word.replace(".", "", 1).isdigit()
