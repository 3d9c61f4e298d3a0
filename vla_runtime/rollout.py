"""The command that evaluates a policy in an environment and leaves a folder that can be trusted.

    python -m vla_runtime.rollout env=lift policy=expert episodes=20

It composes, plans the episodes, hands them to worker processes and keeps their rows. It knows neither
environments nor policies.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from vla_runtime.compose import (
    BadArguments,
    Config,
    Result,
    main,
    select_tasks,
)
from vla_runtime.control.recorder import Recording
from vla_runtime.control.settings import read_groups
from vla_runtime.disk import locked
from vla_runtime.evaluation.episodes import EpisodeRunner
from vla_runtime.evaluation.folder import (
    Job,
    Row,
    RowFile,
    check_same_parts,
    check_same_run,
    claim,
    job_of,
    read_rows,
    sort_rows,
)
from vla_runtime.evaluation.merging import merge
from vla_runtime.evaluation.recorded_policy import recorded_policy
from vla_runtime.evaluation.replaying import Replay, explain
from vla_runtime.evaluation.row import INFRASTRUCTURE, failure_row
from vla_runtime.evaluation.row_check import check_rows
from vla_runtime.evaluation.summary import finish, infrastructure_errors
from vla_runtime.evaluation.video import has_video
from vla_runtime.evaluation.workers import run_jobs
from vla_runtime.machine import set_single_threaded_blas
from vla_runtime.messages import read_env
from vla_runtime.seeds import check_seed

_VIDEO = ("all", "failures", "none")

_log = logging.getLogger(__name__)


def rollout(config: Config) -> Result:
    """Run (or finish, or merge) the episodes of `config`; the summary and the exit code.

    ValueError for an option that makes no sense; what goes wrong inside an episode is in its row, and where that was
    not the policy, the exit code is 1 and the same command runs the episode again.
    """
    if config["replay"] is not None:
        return _replay(config)
    config = _checked(config)
    folder = Path(config["out"] or _new_folder(config))
    with locked(folder):
        if config["merge"] is not None:
            summary = merge(config, [Path(part) for part in config["merge"]], folder)
        else:
            check_same_run(folder, config)
            summary = _run(config, folder)
        _log.info("report: %s", folder / "report.html")
    met = config["require"] is None or summary["success_rate"] >= config["require"]
    if not met:
        _log.error(
            "require=%s: expected at least this success rate, got %s", config["require"], summary["success_rate"]
        )
    if summary["infrastructure_errors"]:
        _tell_errors(folder, summary, "" if config["merge"] is None else ", without merge=,")
    return summary, 0 if met and not summary["infrastructure_errors"] else 1


def _tell_errors(folder: Path, summary: Mapping[str, Any], but: str) -> None:
    broken = infrastructure_errors(read_rows(folder))
    kinds = Counter(row["error"] for row in broken)
    (commonest, count), *_ = kinds.most_common(1)
    _log.error(
        "%d of %d episodes ended in errors that say nothing about the policy (%d different; %d times: %s); mend the "
        "cause, then the same command with out=%s%s runs these episodes again",
        len(broken), summary["episodes"], len(kinds), count, commonest, folder, but,
    )  # fmt: skip


def _replay(config: Config) -> Result:
    """Decide a recording once more and compare; with `explain=`, say why one command was what it was."""
    recording = Recording(Path(str(config["replay"])))
    set_single_threaded_blas()
    policy = recorded_policy(recording, config)
    session = None if policy is None else policy.begin(recording.header["seed"])
    replay = Replay(recording, session)
    for line in replay.differences:
        _log.error("%s", line)
    result: dict[str, Any] = {
        "replay": str(config["replay"]),
        "ticks": len(replay.ticks),
        "decoded": replay.decoded,
        "ended_by_deadline": replay.timed,
        "equal": not replay.differences,
        "cut_short": recording.end is None,
        "end": None if recording.end is None else recording.end["end"],
    }
    if config["export"] is not None:
        from vla_runtime.evaluation.exporting import export_mcap

        result["messages"] = export_mcap(recording, Path(str(config["export"])))
        _log.info("exported: %s", config["export"])
    if config["explain"] is not None:
        result["explain"] = explain(
            replay.ticks, float(config["explain"]), read_env(recording.header["env"]), recording.end
        )
        sys.stdout.write("".join(f"{line}\n" for line in result["explain"]))
    if policy is not None:
        policy.close()
    return result, 0 if result["equal"] else 1


def _run(config: Config, folder: Path) -> dict[str, Any]:
    held = read_rows(folder)
    check_rows(folder, held)
    # The others say nothing about the policy: they are played again.
    rows = [row for row in held if row["error_source"] != INFRASTRUCTURE]
    done = {job_of(row) for row in rows}
    if held:
        again = len(held) - len(done)
        _log.info("%s holds %d finished episodes, and %d that ended in errors and run again", folder, len(done), again)
    facts: dict[str, Any] = {}
    requested: list[Job] = []
    file: RowFile | None = None

    def plan(found: dict[str, Any]) -> list[Job]:
        nonlocal file
        facts.update(found)
        check_same_parts(folder, rows, found["common"], found["profiles"], config["policy"].get("address"))
        requested.extend(_jobs(config, found))
        claim(folder, config)
        file = RowFile(folder, rows)
        progress.begin(len(requested), len(done))
        return [job for job in requested if job not in done]

    def keep(row: Row) -> None:
        assert file is not None
        file.append(row)
        rows.append(row)
        progress.advance(sum(row["success"] for row in rows), len(rows))

    set_single_threaded_blas()
    try:
        with _Progress() as progress:
            run_jobs(
                _build,
                (config, str(folder)),
                plan,
                lambda job, row: keep(row),
                lambda job, error: keep(failure_row(facts, job, error)),
                workers=config["workers"],
                timeout=config["timeout"],
            )
    finally:
        # Also when interrupted: what is there can be read, and says that it is not complete.
        if file is not None:
            file.close()
            summary = finish(config, sort_rows(folder), requested, folder)
    return summary


def _build(config: Config, folder: str) -> tuple[dict[str, Any], EpisodeRunner]:
    """Runs in each worker process."""
    runner = EpisodeRunner(config, config["video"], Path(folder))
    return runner.facts, runner


def _jobs(config: Config, facts: Mapping[str, Any]) -> list[Job]:
    tasks = facts["tasks"]
    chosen = select_tasks(config["choices"]["env"], tasks, config["env"].get("tasks"))
    episodes = config["episodes"]
    if episodes is None:
        episodes = 1 if len(tasks) > 1 else 20
    jobs = [
        Job(task, episode, latency) for task in chosen for episode in range(episodes) for latency in facts["latencies"]
    ]
    if config["shard"] is None:
        return jobs
    index, count = _shard(config["shard"])
    # An episode with all its latencies: what is compared stays together.
    places = list(dict.fromkeys((job.task, job.episode) for job in jobs))
    if count > len(places):
        raise BadArguments(f"shard: expected at most {len(places)} shards of as many episodes, got {config['shard']}")
    mine = set(places[index::count])
    return [job for job in jobs if (job.task, job.episode) in mine]


def _checked(config: Config) -> Config:
    """The config with defaults that depend on the machine filled in; ValueError naming a bad option."""

    def expect(key: str, what: str, good: bool) -> None:
        if not good:
            raise BadArguments(f"{key}: expected {what}, got {config[key]!r}")

    config = dict(config)
    if config["video"] is None:
        config["video"] = "failures" if has_video() else "none"
    expect("video", f"one of {_VIDEO}", config["video"] in _VIDEO)
    if config["video"] != "none" and not has_video():
        raise ImportError(
            f"video={config['video']}: expected PyAV, got none; pip install 'vla_runtime[data]', or video=none"
        )
    _check_seeds(config)
    for key, least in (("episodes", 1), ("workers", 1)):
        value = config[key]
        optional = key == "episodes" and value is None
        expect(key, f"a whole number >= {least}", optional or (type(value) is int and value >= least))
    expect("timeout", "a number of seconds > 0", isinstance(config["timeout"], (int, float)) and config["timeout"] > 0)
    for name in ("explain", "export"):
        expect(name, "replay=<a recording> beside it", config[name] is None)
    config["limits"] = {**config["limits"], "groups": read_groups(config["limits"]["groups"])}
    expect("viz", "rerun, rrd or null", config["viz"] in (None, "rerun", "rrd"))
    record = config["record"]
    if not isinstance(record["ticks"], bool) or record["images"] not in (None, "png"):
        raise BadArguments(f"record: expected ticks true or false and images null or png, got {record!r}")
    expect("style", "uni or multi", config["style"] in ("uni", "multi"))
    expect("recover", "true or false", isinstance(config["recover"], bool))
    require = config["require"]
    expect(
        "require", "a rate from 0 to 1", require is None or (isinstance(require, (int, float)) and 0 <= require <= 1)
    )
    if config["shard"] is not None:
        _shard(config["shard"])
    merge = config["merge"]
    expect("merge", "a list of at least one folder", merge is None or (isinstance(merge, list) and len(merge) > 0))
    expect("out", "a folder", config["out"] is None or str(config["out"]) != "")
    return config


def _check_seeds(config: Config) -> None:
    try:
        check_seed("seed", config["seed"])
        if config["policy"]["seed"] is not None:
            check_seed("policy.seed", config["policy"]["seed"])
    except ValueError as error:
        raise BadArguments(str(error)) from error


def _shard(text: object) -> tuple[int, int]:
    index, _, count = str(text).partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise BadArguments(f"shard: expected i/n with 0 <= i < n, got {text!r}")
    return int(index), int(count)


def _new_folder(config: Config) -> Path:
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    choices = config["choices"]
    folder = Path("runs") / f"{stamp}_{choices['env']}_{choices['policy']}"
    return folder if not folder.exists() else folder.with_name(f"{folder.name}_{datetime.now().microsecond:06d}")


class _Progress:
    """A bar on a terminal, nothing elsewhere."""

    def __enter__(self) -> _Progress:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console) if sys.stderr.isatty() else None
        self._context = self._bar or nullcontext()
        self._context.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._context.__exit__(*problem)

    def begin(self, total: int, done: int) -> None:
        if self._bar is not None:
            self._task = self._bar.add_task("episodes", total=total, completed=done)

    def advance(self, successes: int, finished: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=f"{successes} of {finished} succeeded")


if __name__ == "__main__":
    main("rollout", rollout)
