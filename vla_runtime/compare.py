"""Compare two runs episode by episode: `python -m vla_runtime.compare A B margin=0.05`.

A is the folder of the reference run, B the folder of the candidate. Both began the same episodes from the
same states, so episodes are paired, and the difference is success(B) - success(A): negative when the
candidate loses. The verdict is non-inferior when the whole 95 % interval of the difference lies above
-margin, inferior when it lies below, inconclusive otherwise.

What may differ between the runs is what a comparison is about: the policy, how it decodes, the loop that
drives it, limits and safety; the report lists what does. Anything else that differs would be mistaken for an
effect of these, and is refused. So are episodes that ended in an error which says nothing about the policy, unless
`errors=failures` counts them as failures. This file reads folders; it knows no environment, no policy and no torch.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_runtime.evaluation.folder import job_of, latency_label, read_config, read_rows, read_summary
from vla_runtime.evaluation.row import INFRASTRUCTURE
from vla_runtime.evaluation.row_check import check_rows
from vla_runtime.evaluation.statistics import (
    INCONCLUSIVE,
    INFERIOR,
    NON_INFERIOR,
    Interval,
    check_margin,
    mcnemar_mid_p,
    mcnemar_p,
    newcombe_interval,
    pairs_needed,
    tango_interval,
    verdict,
)

logger = logging.getLogger(__name__)

# The subject of a comparison, and what has no influence on an episode.
COMPARED = frozenset({"policy", "decode", "loop", "limits", "safety", "device", "style"})
BOOKKEEPING = frozenset(
    {
        "out",
        "workers",
        "video",
        "shard",
        "merge",
        "require",
        "timeout",
        "record",
        "replay",
        "explain",
        "export",
        "viz",
    }
)

# What to do with episodes that something else than the policy ended.
ERRORS = ("refuse", "failures")
# The keys of a row that are read here.
_FIELDS = (
    "env", "task", "episode", "loop", "control", "versions", "facts", "initial_state", "success", "error",
    "error_source",
)  # fmt: skip

Key = tuple[int, int, str]
Differing = tuple[str, Any, Any]
Row = Mapping[str, Any]

# As many unpaired episodes or differing values as one message lists; the rest are counted.
_LISTED = 20


def compare(config: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Compare the runs in folders config["a"] (reference) and config["b"] (candidate) at config["margin"].

    Returns the report and the exit code: 0 only for non-inferior, 2 (with an "error") for a margin or errors= that is
    none or a folder not given. Episodes that an error of the policy ended count as failures; others that ended in an
    error do with config["errors"] = "failures", and are else refused. ValueError, with a list,
    when a folder is missing or holds a run that is not complete (slow episodes, which are missing more often, fail more
    often), when something differs that must not, or when an episode of one run has no partner in the other.
    """
    margin, errors = config["margin"], config.get("errors", "refuse")
    try:
        check_margin(margin)
        if errors not in ERRORS:
            raise ValueError(f"errors: expected one of {', '.join(ERRORS)}, got {errors!r}")
        folders = [_folder(config, name) for name in ("a", "b")]
    except ValueError as error:
        return {"error": str(error)}, 2
    configs = [read_config(folder) for folder in folders]
    rows_a, rows_b = (read_rows(folder) for folder in folders)
    for folder, rows in zip(folders, (rows_a, rows_b), strict=True):
        if not rows:
            raise ValueError(f"{folder}: expected finished episodes in episodes.jsonl, got none; run the rollout first")
        check_rows(folder, rows, _FIELDS)
        _require_complete(folder, rows, errors)
    may, may_not = differing_keys(*configs)
    differing = [_told(*one) for one in may_not]
    pairs, unpaired = pair(rows_a, rows_b)
    differing += differing_facts(pairs)
    if differing or unpaired:
        raise ValueError("\n".join(_refusal(differing, unpaired)))
    report = {**judged_by_latency(pairs, margin), "differing": [_told(*one) for one in may]}
    _show(report)
    for line in report["differing"]:
        logger.info("%s", line)
    return report, 0 if report["verdict"] == NON_INFERIOR else 1


def judged_by_latency(pairs: Sequence[tuple[Row, Row]], margin: float) -> dict[str, Any]:
    """`judge`, of each latency alone where there are several: their episodes are the same, and not so many more.

    Then {by_latency: {latency: report}, n, margin, verdict: the worst of all, n_needed: the most}.
    """
    groups: dict[str, list[tuple[Row, Row]]] = {}
    for one in pairs:
        groups.setdefault(latency_label(job_of(one[0]).latency), []).append(one)
    reports = {label: judge(members, margin) for label, members in groups.items()}
    if len(reports) == 1:
        return next(iter(reports.values()))
    verdicts = [report["verdict"] for report in reports.values()]
    needed = [report["n_needed"] for report in reports.values() if report["n_needed"] is not None]
    return {
        "n": len(pairs),
        "by_latency": reports,
        "margin": margin,
        "verdict": next(one for one in (INFERIOR, INCONCLUSIVE, NON_INFERIOR) if one in verdicts),
        "n_needed": max(needed, default=None),
    }


def judge(pairs: Sequence[tuple[Row, Row]], margin: float) -> dict[str, Any]:
    """The report on paired rows (reference, candidate): counts, difference, intervals, p, verdict."""
    outcomes = Counter((bool(a["success"]), bool(b["success"])) for a, b in pairs)
    both, neither = outcomes[True, True], outcomes[False, False]
    only_a, only_b = outcomes[True, False], outcomes[False, True]
    # The candidate goes first: a difference is p_first - p_second.
    interval = newcombe_interval(both, only_b, only_a, neither)
    decision = verdict(interval, margin)
    return {
        "n": len(pairs),
        "both": both,
        "only_a": only_a,
        "only_b": only_b,
        "neither": neither,
        "errors_a": sum(a["error"] is not None for a, _ in pairs),
        "errors_b": sum(b["error"] is not None for _, b in pairs),
        "difference": _rounded((only_b - only_a) / len(pairs)),
        "ci95": _limits(interval),
        "ci95_tango": _limits(tango_interval(both, only_b, only_a, neither)),
        "p_mcnemar": mcnemar_p(only_b, only_a),
        "p_mid": mcnemar_mid_p(only_b, only_a),
        "margin": margin,
        "verdict": decision,
        "n_needed": pairs_needed(both, only_b, only_a, neither, margin) if decision == INCONCLUSIVE else None,
    }


def pair(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> tuple[list[tuple[Row, Row]], list[str]]:
    """Rows of equal (task, episode, loop latency, initial state), and one line for every row without a partner.

    An episode that died before its reset has no initial state; it is a failure, and pairs with any.
    ValueError when a run holds the same episode twice.
    """
    by_key_a, by_key_b = _by_key(rows_a, "A"), _by_key(rows_b, "B")
    pairs, unpaired = [], []
    for key in sorted(by_key_a.keys() | by_key_b.keys()):
        a, b = by_key_a.get(key), by_key_b.get(key)
        if a is None or b is None:
            unpaired.append(f"{_named(key)}: only in {'B' if a is None else 'A'}")
        elif _began(a) and _began(b) and a["initial_state"] != b["initial_state"]:
            unpaired.append(f"{_named(key)}: initial state {a['initial_state']} in A, {b['initial_state']} in B")
        else:
            pairs.append((a, b))
    return pairs, unpaired


def differing_keys(config_a: Mapping[str, Any], config_b: Mapping[str, Any]) -> tuple[list[Differing], list[Differing]]:
    """(dotted key, A's value, B's value) of every difference that a comparison may be about, and of every one that
    makes two runs incomparable.
    """
    flat_a, flat_b = dict(_flat(config_a)), dict(_flat(config_b))
    missing = "(not set)"
    may: list[Differing] = []
    may_not: list[Differing] = []
    for key in sorted(flat_a.keys() | flat_b.keys()):
        # `choices` repeats what each config group was set to.
        group = key.removeprefix("choices.").split(".")[0]
        # What was not asked for follows from the policy: rows say what it was.
        if group in BOOKKEEPING or key == "env.control":
            continue
        one, other = flat_a.get(key, missing), flat_b.get(key, missing)
        if key not in flat_a or key not in flat_b or one != other:
            (may if group in COMPARED else may_not).append((key, one, other))
    return may, may_not


def differing_facts(pairs: Sequence[tuple[Row, Row]]) -> list[str]:
    """One line for every simulator version, override or control that differs within a pair, with how often."""
    seen: Counter[str] = Counter()
    for a, b in pairs:
        if not (_began(a) and _began(b)):
            continue
        facts_a, facts_b = _facts(a), _facts(b)
        for name in sorted(facts_a.keys() | facts_b.keys()):
            one, other = facts_a.get(name), facts_b.get(name)
            if one != other:
                seen[_told(name, one, other)] += 1
    return [f"{line} (in {count} of {len(pairs)} pairs)" for line, count in seen.items()]


def _folder(config: Mapping[str, Any], name: str) -> Path:
    folder = config.get(name)
    if not folder:
        raise ValueError("compare: expected the folders of two runs, e.g. `compare runs/reference runs/candidate`")
    return Path(str(folder))


def _require_complete(folder: Path, rows: Sequence[Row], errors: str) -> None:
    if read_summary(folder)["missing"]:
        raise ValueError(
            f"{folder}: expected a complete run, got one that is not; run its command again with this out="
        )
    broken = Counter(row["error"] for row in rows if row["error_source"] == INFRASTRUCTURE)
    if not broken:
        return
    (commonest, count), *_ = broken.most_common(1)
    found = f"{sum(broken.values())} of {len(rows)} episodes ended in other errors ({count} times: {commonest})"
    if errors == "refuse":
        raise ValueError(
            f"{folder}: expected episodes that the policy ended, well or not; {found}. Run its command again with this "
            "out=, which plays these again, or take errors=failures to count them as failures"
        )
    logger.warning("%s: %s; they count as failures", folder, found)


def _told(key: str, one: Any, other: Any) -> str:
    return f"{key}: A has {one!r}, B has {other!r}"


def _began(row: Row) -> bool:
    return row["initial_state"] is not None


def _by_key(rows: Sequence[Row], run: str) -> dict[Key, Row]:
    found: dict[Key, Row] = {}
    for row in rows:
        # What was recorded, wherever it lies; files of one name may differ.
        latency = row["loop"].get("profile", row["loop"]["latency"])
        # 0 and 0.0 are one latency; "measured" and a recorded profile are named.
        key = (row["task"], row["episode"], f"{latency:g} s" if isinstance(latency, int | float) else str(latency))
        if key in found:
            raise ValueError(f"run {run}: {_named(key)} is there twice; episodes.jsonl must hold every episode once")
        found[key] = row
    return found


def _named(key: Key) -> str:
    task, episode, latency = key
    return f"task {task} episode {episode} latency {latency}"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _facts(row: Row) -> dict[str, Any]:
    """What must be equal within a pair: environment, control, versions, and every fact that tells of an override."""
    facts = {f"row.{name}": row[name] for name in ("env", "control")}
    facts.update({f"row.versions.{name}": value for name, value in row["versions"].items()})
    facts.update({f"row.facts.{name}": value for name, value in row["facts"].items() if "override" in name})
    return facts


def _refusal(differing: Sequence[str], unpaired: Sequence[str]) -> Iterator[str]:
    yield "the two runs cannot be compared"
    if differing:
        yield f"these differ; only {', '.join(sorted(COMPARED))} and {', '.join(sorted(BOOKKEEPING))} may:"
        yield from _shortened(differing)
    if unpaired:
        yield "these episodes have no partner (same task, episode, initial state and loop latency) in the other run:"
        yield from _shortened(unpaired)
        yield "remedy: finish both runs with the same env, tasks, episodes, seed and loop.latency"


def _shortened(lines: Sequence[str]) -> Iterator[str]:
    yield from (f"  {line}" for line in lines[:_LISTED])
    if len(lines) > _LISTED:
        yield f"  and {len(lines) - _LISTED} more"


def _rounded(value: float) -> float:
    return round(value, 6)


def _limits(interval: Interval) -> list[float]:
    return [_rounded(limit) for limit in interval]


def _show(report: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    if "by_latency" in report:
        for label, one in report["by_latency"].items():
            Console(stderr=True, highlight=False).print(f"latency {label}:")
            _show(one)
        Console(stderr=True, highlight=False).print(f"of all latencies, the worst: {report['verdict']}")
        return
    table = Table(title=f"{report['n']} paired episodes")
    for column in ("", "B succeeds", "B fails"):
        table.add_column(column, justify="right")
    table.add_row("A succeeds", str(report["both"]), str(report["only_a"]))
    table.add_row("A fails", str(report["only_b"]), str(report["neither"]))
    low, high = report["ci95"]
    needed = report["n_needed"]
    console = Console(stderr=True, highlight=False)
    console.print(table)
    console.print(
        f"success(B) - success(A) = {report['difference']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}, "
        f"McNemar p = {report['p_mcnemar']:.3g}"
    )
    console.print(
        f"margin {report['margin']:g}: {report['verdict']}" + (f", about {needed} pairs needed" if needed else "")
    )


if __name__ == "__main__":
    from vla_runtime.compose import main

    main("compare", compare, ("a", "b"))
