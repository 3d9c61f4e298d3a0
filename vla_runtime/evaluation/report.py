"""A run as one page: `write_report(folder)` turns the files of a run into its report.html.

It reads what the rollout wrote (config.yaml, episodes.jsonl, summary.json, videos/) and decides nothing:
no environment, no policy, no plotting library. The page needs neither network nor JavaScript; film strips
are inside it, videos lie beside it. Every text of a run is escaped.
"""

from __future__ import annotations

import base64
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from vla_runtime.disk import write_text
from vla_runtime.evaluation.charts import histogram, interval_bar
from vla_runtime.evaluation.folder import in_order, latency_label, read_rows
from vla_runtime.evaluation.page import document, number, section, table
from vla_runtime.evaluation.report_loop import control, latency, timelines
from vla_runtime.evaluation.row_text import Row, episode, plain, result
from vla_runtime.evaluation.statistics import wilson_interval

# Strips above this number are loaded from videos/ instead of being inside the page: some 10 MB of HTML.
_EMBEDDED = 200


def write_report(folder: str | Path) -> Path:
    """Write report.html of the run in `folder` and return its path; an older one is replaced at once.

    ValueError when the folder lacks summary.json or config.yaml, OSError when it cannot be written.
    """
    folder = Path(folder)
    texts = {}
    for name in ("config.yaml", "summary.json"):
        try:
            texts[name] = (folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ValueError(f"{folder}: expected the folder of a run, with a {name}; there is none") from None
    page = render(read_rows(folder), json.loads(texts["summary.json"]), texts["config.yaml"], folder)
    path = folder / "report.html"
    write_text(path, page)
    return path


def render(rows: Sequence[Row], summary: Mapping[str, Any], config: str, folder: Path) -> str:
    """The whole page. config: text of config.yaml. folder: where film strips and videos are looked for."""
    rows = in_order(rows)
    title = f"{summary['env']} / {summary['policy']}"
    parts = [_head(title, rows, summary), _warnings(rows, summary)]
    if rows:
        parts += [
            _tasks(rows),
            latency(summary),
            _charts(rows, summary),
            _errors(rows),
            _premises(rows),
            _strips(rows, folder),
        ]
        parts += [control(rows), timelines(rows), _episodes(rows), _facts(rows), _versions(rows)]
    parts.append(
        section("Configuration", f"<details><summary>config.yaml</summary><pre>{escape(config)}</pre></details>")
    )
    return document(title, parts)


def _head(title: str, rows: Sequence[Row], summary: Mapping[str, Any]) -> str:
    episodes, successes = int(summary["episodes"]), int(summary["successes"])
    # Of one latency; the same episodes with several are no more episodes.
    interval = summary.get("ci95")
    within = "success" if interval is None else f"success, 95 % {interval[0]:.1%} to {interval[1]:.1%}"
    thought, rate = summary.get("latency_ms") or {}, summary.get("control") or {}
    p50, p95, p99 = (number(thought.get(name)) for name in ("p50", "p95", "p99"))
    tiles = [
        (f"{successes / episodes:.1%}" if episodes else "-", within),
        (f"{successes} / {episodes}", "episodes succeeded"),
        (str(summary["errors"]), "errors, counted as failures"),
        (f"{p50} ms", f"latency p50; p95 {p95}, p99 {p99}"),
        (f"{number(rate.get('rate_hz'))} Hz", f"control rate, {rate.get('overruns', 0)} overruns"),
    ]
    cards = "".join(
        f'<div class="card tile"><b>{escape(value)}</b><span class="soft">{escape(label)}</span></div>'
        for value, label in tiles
    )
    settings = " &middot; ".join(f"{escape(name)} {escape(value)}" for name, value in _settings(rows))
    return f'<h1>{escape(title)}</h1>\n<div class="soft">{settings}</div>\n<div class="tiles">{cards}</div>'


def _settings(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """What all rows share, or every value that occurs, of what an episode was run with."""
    for name in ("seed", "policy_seed", "control", "statistics", "weights"):
        values = {plain(row[name]) for row in rows if row.get(name) is not None}
        if values:
            yield name.replace("_", " "), ", ".join(sorted(values))
    for name in ("loop", "decode"):
        settings: defaultdict[str, set[str]] = defaultdict(set)
        for row in rows:
            for key, value in (row.get(name) or {}).items():
                settings[key].add(plain(value))
        if settings:
            yield f"{name}:", ", ".join(f"{key} {'/'.join(sorted(found))}" for key, found in settings.items())
    timings = [row["timing"] for row in rows if row["timing"].get("host")]
    hosts = {f"{timing['host']} ({timing.get('cpu') or 'unknown CPU'})" for timing in timings}
    if hosts:
        yield "on", ", ".join(sorted(hosts))


def _warnings(rows: Sequence[Row], summary: Mapping[str, Any]) -> str:
    lines = []
    if len(rows) < summary["episodes"]:
        lines.append(
            f"This run is not complete: {len(rows)} of {summary['episodes']} episodes are finished; "
            "the rest count as failures."
        )
    errors = summary.get("infrastructure_errors", 0)
    if errors:
        lines.append(
            f"In {errors} of {len(rows)} episodes something else than the policy went wrong, which says nothing about "
            "it; the same command runs them again. Here they count as failures."
        )
    broken = _broken(rows)
    if broken:
        lines.append(f"In {len(broken)} of {len(rows)} episodes the premise of the task was broken.")
    overrides = Counter(
        f"{name} {plain(value)}" for row in rows for name, value in row["facts"].items() if "override" in name and value
    )
    lines.extend(f"Override in {count} of {len(rows)} episodes: {text}" for text, count in overrides.items())
    seen = Counter(str(row.get("init_seen")) for row in rows)
    if seen["True"]:
        lines.append(f"In {seen['True']} of {len(rows)} episodes the initial state was part of the training data.")
    told = "".join(f"<div>{escape(line)}</div>" for line in lines)
    return f'<div class="card warn">{told}</div>' if told else ""


def _tasks(rows: Sequence[Row]) -> str:
    latencies = {latency_label(row["loop"]["latency"]) for row in rows}
    by_task: defaultdict[tuple[int, str], list[Row]] = defaultdict(list)
    for row in rows:
        # The same episodes with several latencies are no more episodes.
        label = latency_label(row["loop"]["latency"]) if len(latencies) > 1 else ""
        by_task[row["task"], label].append(row)
    lines = []
    # Rows come in the order of latencies, which is not that of their names.
    for (task, label), members in sorted(by_task.items(), key=lambda item: item[0][0]):
        successes, n = sum(bool(row["success"]) for row in members), len(members)
        low, high = interval = wilson_interval(successes, n)
        progress = [row["progress"] for row in members if row.get("progress") is not None]
        reasons = Counter(str(row["reason"]) for row in members if not row["success"])
        lines.append(
            (
                str(task),
                escape(str(members[0]["task_name"]) + (f", latency {label}" if label else "")),
                f"{successes} / {n}",
                f"{successes / n:.1%}",
                interval_bar(successes / n, interval),
                f'<span class="whole">{low:.1%} to {high:.1%}</span>',
                f"{np.mean(progress):.2f}" if progress else "",
                escape(", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))),
            )
        )
    heads = ("#task", "", "#successes", "#rate", "95 % Wilson interval, 0 to 1", "", "#progress", "failures")
    return section("Success per task", table(lines, heads))


def _charts(rows: Sequence[Row], summary: Mapping[str, Any]) -> str:
    latencies = [float(x) for row in rows for x in row["timing"].get("latencies_ms") or () if np.isfinite(x)]
    steps = [float(row["steps"]) for row in rows if row["success"]]
    cards = []
    if latencies:
        p50, p95, p99, most = (number(x) for x in np.percentile(latencies, (50, 95, 99, 100)))
        told = f"{len(latencies)} plans; p50 {p50}, p95 {p95}, p99 {p99}, largest {most} ms"
        cards.append(("Planning latency", told, histogram(latencies, "ms per plan")))
    for name in sorted({name for row in rows for name in row["timing"].get("chunks") or ()}):
        means = [float(row["timing"]["chunks"][name]) for row in rows if name in (row["timing"].get("chunks") or ())]
        told = f"mean over an episode's chunks; median of {len(means)} episodes {number(float(np.median(means)))}"
        cards.append((f"Decoding: {name.replace('_', ' ')}", told, histogram(means, f"{name} per chunk")))
    if steps:
        rate = (summary.get("control") or {}).get("rate_hz")
        seconds = f" ({np.median(steps) / rate:.1f} s at {rate:g} Hz)" if rate else ""
        told = f"{len(steps)} successes; median {np.median(steps):g}{seconds}, longest {max(steps):g}"
        cards.append(("Steps to success", told, histogram(steps, "control steps")))
    charts = "".join(
        f'<div class="card"><b>{name}</b><div class="soft">{told}</div>{chart}</div>' for name, told, chart in cards
    )
    return f'<h2>Distributions</h2><div class="charts">{charts}</div>' if charts else ""


def _errors(rows: Sequence[Row]) -> str:
    failed = [row for row in rows if row.get("error")]
    # The first few are open: most often all are the same.
    lines = [
        f"<details{' open' if i < 3 else ''}><summary>{episode(row)}</summary>"
        f"<pre>{escape(str(row['error']))}</pre></details>"
        for i, row in enumerate(failed)
    ]
    return section(f"Errors ({len(failed)})", "".join(lines)) if failed else ""


def _premises(rows: Sequence[Row]) -> str:
    broken = _broken(rows)
    lines = [(episode(row), escape(_facts_but_state(row))) for row in broken]
    return section(f"Broken premises ({len(broken)})", table(lines)) if broken else ""


def _strips(rows: Sequence[Row], folder: Path) -> str:
    # What failed is what one looks for.
    filmed = sorted((row for row in rows if row.get("video")), key=lambda row: bool(row["success"]))
    figures = []
    for i, row in enumerate(filmed):
        video = Path(str(row["video"]))
        strip, image = video.with_suffix(".jpg"), ""
        if (folder / strip).is_file():
            source = _link(strip)
            if i < _EMBEDDED:
                source = "data:image/jpeg;base64," + base64.b64encode((folder / strip).read_bytes()).decode("ascii")
            image = f'<img loading="lazy" src="{source}" alt="film strip of {episode(row)}">'
        link = _link(video)
        figures.append(
            f'<figure class="card"><figcaption>{episode(row)} {result(row)}</figcaption>{image}'
            f'<details><summary class="soft">video</summary><video controls preload="none" src="{link}"></video>'
            f'<div><a href="{link}">{escape(str(video))}</a></div></details></figure>'
        )
    return f"<h2>Videos ({len(figures)})</h2>{''.join(figures)}" if figures else ""


def _episodes(rows: Sequence[Row]) -> str:
    lines = [
        (
            str(row["task"]),
            str(row["episode"]),
            result(row),
            str(row["steps"]),
            str(row["plans"]),
            number(row.get("progress")),
            escape(plain(row["loop"].get("latency"))),
            number(row["timing"].get("wall_s")),
            escape(plain(row["initial_state"])[:12]),
        )
        for row in rows
    ]
    heads = ("#task", "#episode", "result", "#steps", "#plans", "#progress", "#latency s", "#wall s", "initial state")
    return section("Episodes", f"<details><summary>all {len(rows)}</summary>{table(lines, heads)}</details>")


def _facts(rows: Sequence[Row]) -> str:
    """What the environments said about their episodes, counted."""
    counted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        facts = {"premise": "not checked", **row["facts"], "init_seen": row.get("init_seen")}
        for name, value in facts.items():
            counted[name][plain(value)] += 1
        for name in ("clamped", "held"):
            counted[f"{name} commands"]["none" if not row.get(name) else "some"] += 1
    counted.pop("initial_state", None)
    lines = [(escape(name), escape(_counts(values))) for name, values in sorted(counted.items())]
    return section("Facts", table(lines))


def _versions(rows: Sequence[Row]) -> str:
    versions: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        for name, version in row["versions"].items():
            versions[name].add(str(version))
    lines = [(escape(name), escape(", ".join(sorted(found)))) for name, found in sorted(versions.items())]
    return section("Versions", table(lines)) if lines else ""


def _broken(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["facts"].get("premise", True) is not True]


def _counts(values: Counter[str], shown: int = 6) -> str:
    """`true (18), false (2)`; a fact that differs in most episodes is only summed up."""
    if len(values) == 1:
        return next(iter(values))
    if len(values) > shown:
        return f"{len(values)} different values"
    return ", ".join(f"{value} ({count})" for value, count in values.most_common())


def _facts_but_state(row: Row) -> str:
    return ", ".join(f"{name} {plain(value)}" for name, value in row["facts"].items() if name != "initial_state")


def _link(path: Path) -> str:
    return quote(path.as_posix())
