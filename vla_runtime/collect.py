"""`python -m vla_runtime.collect`: demonstrations of an environment's expert, as a LeRobot v3 data set.

Every attempt (task, k) is recorded through the same loop as a rollout and kept as one part, whole or not
at all; the first N successes of each task, in the order of attempts, become the data set. So its content
depends neither on the number of processes nor on interruptions: the same command on the same out= goes on
where it stopped.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Mapping
from math import ceil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from vla_runtime.compose import BadArguments, build_env, load, main, select_tasks
from vla_runtime.data import schema
from vla_runtime.data.assembly import Tally, assemble, last_line, read_tally
from vla_runtime.data.attempts import Attempter, Job, action_specs, recorded_spec, start_attempter
from vla_runtime.data.opening import read_own
from vla_runtime.data.unfinished import PARTS, require_same, save_settings, saved_settings, settings
from vla_runtime.disk import locked
from vla_runtime.evaluation.workers import run_jobs
from vla_runtime.machine import set_single_threaded_blas
from vla_runtime.seeds import check_seed

# Evaluation takes its initial states from seeds below this one.
FIRST_SEED = 10_000
# Of demonstrations that a command makes for itself, to judge a policy by.
FEW_SEED = 1_000_000

_log = logging.getLogger(__name__)


def collect(config: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Collect what `config` (configs/collect.yaml) asks for; returns the last line and the exit code 0.

    ValueError for settings that cannot be, for an out= that holds something else or is in use, RuntimeError
    for an expert that fails too often.
    """
    if config["bag"] is not None:
        from vla_runtime.ros.bag_set import set_from_bags

        return set_from_bags(config)
    _check(config)
    config = _sampled(config)
    out = _folder(config)
    with locked(out):
        if (out / schema.INFO).is_file():
            if not (out / schema.OWN).is_file():
                raise ValueError(
                    f"out={out}: expected an empty folder or one begun by this command, got a data set without "
                    f"{schema.OWN}, which this command writes; choose another out="
                )
            own = read_own(out)[0]
            require_same(out, own.get("collect", {}), settings(config))
            shutil.rmtree(out / PARTS, ignore_errors=True)
            _log.info("%s holds this data set already", out)
            return last_line(own, out), 0
        _claim(out, config)
        # The environment is built here once for what it says of itself, and anew in every process.
        env = build_env(config["env"])
        try:
            spec, actions = recorded_spec(env.spec, config), action_specs(env)
        finally:
            env.close()
        schema.features(spec, actions, config["images"])
        tasks = select_tasks(spec.name, spec.tasks, config["env"].get("tasks"))
        wanted = config["episodes"] or (20 if len(tasks) == 1 else 1)
        _log.info("collecting %d episodes of each of %d tasks of %s into %s", wanted, len(tasks), spec.name, out)
        tallies = [read_tally(out, task, wanted) for task in tasks]
        _attempt_all(config, out, tallies)
        own = assemble(config, out, spec, actions, tallies)
        shutil.rmtree(out / PARTS)
        return last_line(own, out), 0


def _check(config: Mapping[str, Any]) -> None:
    try:
        check_seed("seed", config["seed"])
    except ValueError as error:
        raise BadArguments(str(error)) from error
    if config["seed"] < FIRST_SEED:
        raise BadArguments(
            f"seed: expected at least {FIRST_SEED}, got {config['seed']}; lower seeds are for evaluation, "
            "and demonstrations must not begin where policies are judged"
        )
    for key in ("image_stride", "workers"):
        if config[key] < 1:
            raise BadArguments(f"{key}: expected at least 1, got {config[key]}")
    if config["lead"]["folder"] is not None and not config["recover"]:
        raise BadArguments("lead.folder: expected recover=true, got false; nothing would begin where the policy went")
    if config["episodes"] is not None and config["episodes"] < 1:
        raise BadArguments(f"episodes: expected at least 1, got {config['episodes']}")
    for key, known in (("images", schema.IMAGES), ("style", ("uni", "multi"))):
        if config[key] not in known:
            raise BadArguments(f"{key}: expected one of {list(known)}, got {config[key]!r}")


def _sampled(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`config` with initial states that are drawn afresh, for environments that also have stored ones."""
    env = config["env"]
    if env.get("initial") != "stored":
        return config
    _log.info("env.initial=sampled: stored initial states are for evaluation and never recorded")
    return {**config, "env": {**env, "initial": "sampled"}}


def _folder(config: Mapping[str, Any]) -> Path:
    if config["out"] is not None:
        return Path(config["out"])
    name = config["choices"]["env"]
    for number in range(10_000):
        folder = Path("runs") / f"collect_{name}_{number:04d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise ValueError("out: expected a free name under runs/, got none; name a folder with out=")


def _claim(out: Path, config: Mapping[str, Any]) -> None:
    """Begin in an empty folder, or go on in one that was begun with the same settings."""
    saved = saved_settings(out)
    if saved is not None:
        require_same(out, saved, settings(config))
        return
    strange = sorted(path.name for path in out.iterdir() if path.name != PARTS)
    if strange:
        raise ValueError(
            f"out={out}: expected an empty folder or one begun by this command, got {strange[:5]}; choose another out="
        )
    arguments = sys.argv[1:] if Path(sys.argv[0]).name == "collect.py" else [f"env={config['choices']['env']}"]
    save_settings(out, config, arguments)


def _attempt_all(config: Mapping[str, Any], out: Path, tallies: list[Tally]) -> None:
    """Make attempts until every task has its successes."""
    by_task = {tally.task: tally for tally in tallies}
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("demonstrations", total=sum(tally.wanted for tally in tallies))

        def note(job: Job, facts: Mapping[str, Any]) -> None:
            by_task[job[0]].done[job[1]] = facts["success"]
            _log.debug("task %d, attempt %d: %s", *job, facts["reason"])
            progress.update(bar, completed=sum(tally.wanted - tally.missing for tally in tallies))

        progress.update(bar, completed=sum(tally.wanted - tally.missing for tally in tallies))
        spare = config["workers"] > 1
        while jobs := [(tally.task, attempt) for tally in tallies for attempt in tally.next(spare)]:
            _run(config, out / PARTS, jobs, note)


def _run(
    config: Mapping[str, Any], parts: Path, jobs: list[Job], note: Callable[[Job, Mapping[str, Any]], None]
) -> None:
    if config["workers"] == 1:
        attempter = Attempter(config, parts)
        try:
            for job in jobs:
                note(job, attempter(job))
        finally:
            attempter.close()
        return
    set_single_threaded_blas()
    run_jobs(
        start_attempter,
        (dict(config), parts),
        lambda _: jobs,
        note,
        _give_up,
        workers=config["workers"],
        timeout=config["timeout"],
    )


def _give_up(job: Job, reason: str) -> None:
    raise RuntimeError(
        f"task {job[0]}, attempt {job[1]}: expected a recorded attempt, got none ({reason}); "
        "run the same command with workers=1 to see where it stops"
    )


def collect_few(config: Mapping[str, Any], out: Path) -> str:
    """About `config["episodes"]` demonstrations of `config["env"]` for a command that was given none; their folder.

    They begin in other states than those that policies are evaluated from, as every collection does.
    """
    name = config["choices"]["env"]
    env = build_env(config["env"])
    try:
        tasks = len(select_tasks(name, env.spec.tasks, config["env"].get("tasks")))
    finally:
        env.close()
    each = ceil(config["episodes"] / tasks)
    _log.info("no data=: recording %d demonstrations of each of %d tasks of %s first", each, tasks, name)
    # Not those that a policy learns from who is trained on a collection of its own.
    seed = FEW_SEED + config["seed"]
    asked = [f"env={name}", f"episodes={each}", f"seed={seed}", "recover=true", f"out={out}"]
    collect({**load("collect", asked), "env": config["env"]})
    return str(out)


if __name__ == "__main__":
    main("collect", collect)
