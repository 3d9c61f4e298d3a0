"""A calibration as one page: what every way to decode costs and how far its chunks are from the recorded ones.

A pure function from the document that `calibrate` writes to text; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vla_runtime.evaluation.page import document, number, section, table


def page(calibration: Mapping[str, Any], chart: str) -> str:
    """The page of a calibration.json; chart: its plot, as SVG."""
    cached = calibration["cached"]
    title = f"Calibration of {calibration['policy']}"
    said = {key: escape(str(value)) for key, value in calibration.items() if key != "rows"}
    made = f"{said['steps']} {'rounds' if calibration['sampler'] == 'masked' else 'steps'}"
    made += "" if cached is None else f"; recorded on {said['recorded']}"
    drawn = f"{said['noises']} noises each" if calibration["noises"] > 1 else "one decode each"
    told = (
        f"{said['sampler']}, {made}, judged on {said['judged']} frames "
        f"of {said['episodes']} other episodes, {drawn}; {said['hardware']}. "
        f"{verdict(calibration)}"
    )
    lines = [
        (
            f"<b>{escape(str(row['variant']))}</b>" if row["front"] else escape(str(row["variant"])),
            number(row["p50_ms"]),
            "-" if row["speedup"] is None else f"{row['speedup']:.2f}x",
            f"{row['flops_ratio']:.1%}",
            f"{row['deviation']:.4f} {_interval(row['deviation_interval'])}",
            f"{row['expert_error_median']:.4f} {_interval(row['expert_error_median_interval'])}",
            f"{row['expert_error']:.4f}",
            f"{row['worse_than_plain']:+.4f} {_interval(row['worse_than_plain_interval'])}",
        )
        for row in calibration["rows"]
    ]
    heads = (
        "", "#ms", "#speed", "#work", "#from full, median", "#from recorded, median", "#mean", "#more than plain",
    )  # fmt: skip
    note = (
        "<p class=soft>Distances are mean absolute differences in [-1, 1], from the full decode of the same sampler "
        "with the same noise; brackets are 95 % bootstrap intervals over episodes. Milliseconds are of one chunk at a "
        "time, encoding of the observation included, in the median; work is counted in floating-point operations. "
        "Bold: nothing is faster and as near.</p>"
    )
    parts = [f"<h1>{escape(title)}</h1>", f"<p class=soft>{told}</p>", f'<div class="card">{chart}</div>']
    parts += [section("Every way to decode", table(lines, heads) + note)]
    if calibration.get("rivals"):
        parts.append(section(f"Beside {escape(str(cached))}: other schedules", _rivals(calibration)))
    spread = calibration.get("homogeneity")
    if spread is not None:
        parts.append(section("One demonstration's schedule on others", _spread(spread)))
    return document(title, parts)


def verdict(calibration: Mapping[str, Any]) -> str:
    """What wins, said plainly; HTML."""
    best, cached = calibration["recommendation"], calibration["cached"]
    allowed = f"at most {calibration['tolerance']:.0%} further from recorded ones than the plain decode's"
    found = f"Recommended: <b>{escape(best)}</b>, the fastest whose chunks are shown to be, on average, {allowed}. "
    if calibration.get("episodes_needed"):
        found += (
            f"Of another noise alone {calibration['episodes']} episodes do not show it, so that good ways may be "
            f"passed over: judge on {calibration['episodes_needed']} or more. "
        )
    if cached is None:
        return found
    if not best.startswith(cached):
        found += f"It beats caching, whose best is {escape(cached)}"
        found += ". " if calibration["cached_is_good"] else ", the nearest: no schedule is within the tolerance. "
    equal, own = calibration["equal_time"]["nearest"], calibration["equal_time"]["cached"]
    if equal["variant"] == cached:
        found += f"In the {number(own['p50_ms'])} ms that {escape(cached)} takes nothing is nearer to recorded chunks. "
    else:
        found += (
            f"In the {number(own['p50_ms'])} ms that {escape(cached)} takes ({own['expert_error']:.4f} from recorded "
            f"chunks), {escape(equal['variant'])} is nearer ({equal['expert_error']:.4f} in "
            f"{number(equal['p50_ms'])} ms). "
        )
    if "warm start" in best:
        found += (
            "Warm starts were judged after one of their own; in the loop many follow each other: let compare tell "
            "what that costs in success."
        )
    return found


def _rivals(calibration: Mapping[str, Any]) -> str:
    own = next(row for row in calibration["rows"] if row["variant"] == calibration["cached"])
    lines = []
    for rival in calibration["rivals"]:
        (low, high), (mine, most) = rival["expert_error_median_interval"], own["expert_error_median_interval"]
        said = "further" if low > most else "nearer" if high < mine else "no difference shown"
        median = f"{rival['expert_error_median']:.4f} {_interval((low, high))}"
        lines.append((escape(rival["variant"]), f"equal {' and '.join(rival['equal'])}", median, said))
    return table(lines, ("", "", "#from recorded, median", "beside it"))


def _spread(spread: Mapping[str, Any]) -> str:
    low, middle, high = spread["ratio_quartiles"]
    another, own = spread["mean_square_of_another"], spread["mean_square_of_its_own"]
    each = ", ".join(f"{one:.2f}" for one in spread["ratio_by_source"])
    return (
        f"<p>{escape(spread['method'])}, S = {spread['updates']}, {spread['bubble']} bubbled: made from a frame of one "
        f"demonstration and tried on {spread['demonstrations']} others, the mean squared difference from plain is "
        f"{another:.2e}, with each one's own schedule {own:.2e}: {spread['ratio']:.2f} times as much (by source "
        f"{each}; quartiles over frames {low:.2f}, {middle:.2f}, {high:.2f}). A frame's own schedule was recorded with "
        "another noise.</p>"
    )


def _interval(limits: Sequence[float]) -> str:
    return f'<span class="soft">[{limits[0]:.4f}, {limits[1]:.4f}]</span>'
