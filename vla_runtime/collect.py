"""`python -m vla_runtime.collect`: demonstrations of an environment's expert, as a LeRobot v3 data set.

Every attempt (task, k) is recorded through the same loop as a rollout and kept as one part, whole or not
at all; the first N successes of each task, in the order of attempts, become the data set. So its content
depends neither on the number of processes nor on interruptions: the same command on the same out= goes on
where it stopped.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from vla_runtime.compose import BadArguments, build_env, load, main, select_tasks
from vla_runtime.contract import Contract
from vla_runtime.data import page, report, schema
from vla_runtime.data.attempts import Attempter, Job, action_specs, part_name, start_attempter
from vla_runtime.data.episode import Part, write_part
from vla_runtime.data.unfinished import PARTS, require_same, save_settings, saved_settings, settings
from vla_runtime.data.writer import Writer
from vla_runtime.disk import locked, plain, write_text
from vla_runtime.evaluation.workers import run_jobs
from vla_runtime.machine import set_single_threaded_blas
from vla_runtime.types import ActionSpec, EnvSpec

# Evaluation takes its initial states from seeds below this one.
FIRST_SEED = 10_000
# Of demonstrations that a command makes for itself, to judge a policy by.
FEW_SEED = 1_000_000
REPORT = "report.html"

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Tally:
    """The attempts at one task. done: success by attempt; given: nobody chose when to stop, so that all count."""

    task: int
    wanted: int
    done: dict[int, bool] = field(default_factory=dict)
    given: bool = False

    @property
    def missing(self) -> int:
        return max(0, self.wanted - sum(self.done.values()))

    def next(self, spare: bool) -> list[int]:
        """The attempts to make now; RuntimeError when as many as are allowed have been made.

        As many as would complete the task if all succeeded; with `spare`, as many as would at the success rate
        so far, since beginning another round of processes costs more than a few attempts too many.
        """
        if not self.missing:
            # One that a kill left out, below those that a spare process made: the first successes are taken, always.
            return [attempt for attempt in range(max(self.chosen(), default=0)) if attempt not in self.done]
        limit = 5 * self.wanted + 20
        free = [attempt for attempt in range(limit) if attempt not in self.done]
        if not free:
            raise RuntimeError(
                f"task {self.task}: expected {self.wanted} successes of the expert, got {sum(self.done.values())} in "
                f"{limit} attempts; choose another task or style, or look at it with vla_runtime.rollout policy=expert"
            )
        rate = (sum(self.done.values()) + 1) / (len(self.done) + 1) if spare else 1.0
        return free[: ceil(self.missing / rate)]

    def chosen(self) -> list[int]:
        """The first successes, in the order of attempts."""
        return sorted(attempt for attempt, success in self.done.items() if success)[: self.wanted]

    def attempts(self) -> int:
        """Attempts up to the last chosen one: what the episodes cost."""
        return len(self.done) if self.given else self.chosen()[-1] + 1


def collect(config: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Collect what `config` (configs/collect.yaml) asks for; returns the last line and the exit code 0.

    ValueError for settings that cannot be, for an out= that holds something else or is in use, RuntimeError
    for an expert that fails too often.
    """
    if config["bag"] is not None:
        return _from_bags(config)
    _check(config)
    config = _sampled(config)
    out = _folder(config)
    with locked(out):
        if (out / schema.INFO).is_file():
            own = json.loads((out / schema.OWN).read_text())
            require_same(out, own["collect"], settings(config))
            shutil.rmtree(out / PARTS, ignore_errors=True)
            _log.info("%s holds this data set already", out)
            return _last_line(own, out), 0
        _claim(out, config)
        # The environment is built here once for what it says of itself, and anew in every process.
        env = build_env(config["env"])
        try:
            spec, actions = env.spec, action_specs(env)
        finally:
            env.close()
        schema.features(spec, actions, config["images"])
        tasks = select_tasks(spec.name, spec.tasks, config["env"].get("tasks"))
        wanted = config["episodes"] or (20 if len(tasks) == 1 else 1)
        _log.info("collecting %d episodes of each of %d tasks of %s into %s", wanted, len(tasks), spec.name, out)
        tallies = [_tally(out, task, wanted) for task in tasks]
        _attempt_all(config, out, tallies)
        own = _assemble(config, out, spec, actions, tallies)
        shutil.rmtree(out / PARTS)
        return _last_line(own, out), 0


def _from_bags(config: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The successful episodes of recorded robots, as a data set like any other."""
    from vla_runtime.ros.demonstrations import demonstrations

    if config["contract"] is None:
        raise BadArguments("contract: expected a YAML file with the robot's contract, got none")
    if config["images"] not in schema.IMAGES:
        raise BadArguments(f"images: expected one of {list(schema.IMAGES)}, got {config['images']!r}")
    contract = Contract.load(config["contract"])
    bags = [Path(one) for one in ([config["bag"]] if isinstance(config["bag"], str) else config["bag"])]
    out = Path(config["out"] or f"{bags[0]}_data")
    with locked(out):
        _begin_anew(out)
        told = contract, config["instruction"], config["succeeded"]
        found = [episode for bag in bags for episode in demonstrations(bag, *told)]
        kept = [episode for episode in found if episode.facts["success"]]
        if not kept:
            raise ValueError(f"bag: expected successful episodes, got none of {len(found)}")
        tasks = sorted({str(episode.facts["instruction"]) for episode in kept})
        name = "robot" if contract.robot is None else contract.robot.name
        spec = EnvSpec(
            name, contract.cameras, contract.state, contract.action, 1.0 / contract.rate_hz, tuple(tasks),
            max(episode.length for episode in kept),
        )  # fmt: skip
        tallies = [_Tally(task, 0, given=True) for task in range(len(tasks))]
        rate = schema.frames_per_second(spec.period)
        save_settings(out, config, sys.argv[1:])
        for episode in found:
            if episode.facts["instruction"] not in tasks:
                _log.warning(
                    "an episode of %r, which never succeeded, is no part of the set", episode.facts["instruction"]
                )
                continue
            tally = tallies[tasks.index(str(episode.facts["instruction"]))]
            attempt = len(tally.done)
            facts = {**episode.facts, "task": tally.task, "attempt": attempt}
            tally.done[attempt] = bool(facts["success"])
            tally.wanted += tally.done[attempt]
            written = episode if facts["success"] else None
            write_part(out / PARTS / part_name(tally.task, attempt), facts, written, config["images"], rate)
        own = _assemble(config, out, spec, {"action": spec.action}, tallies)
        shutil.rmtree(out / PARTS)
        return _last_line(own, out), 0


def _check(config: Mapping[str, Any]) -> None:
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


def _begin_anew(out: Path) -> None:
    """Begin in an empty folder, or in one where bags were read before to no end: reading them again costs little, and
    what is left of others may be of another contract or instruction.
    """
    names = sorted(path.name for path in out.iterdir())
    ours = names == [PARTS] and (saved_settings(out) or {}).get("bag") is not None
    if names and not ours:
        raise BadArguments(f"out={out}: expected a new folder, got one with {names[:5]}; choose another out=")
    shutil.rmtree(out / PARTS, ignore_errors=True)


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


def _tally(out: Path, task: int, wanted: int) -> _Tally:
    tally = _Tally(task, wanted)
    for folder in (out / PARTS).glob(f"task-{task:03d}-attempt-*"):
        try:
            part = Part.read(folder)
        except ValueError:
            _log.warning("%s is incomplete and made again", folder)
            shutil.rmtree(folder)
            continue
        tally.done[part.facts["attempt"]] = part.success
    return tally


def _attempt_all(config: Mapping[str, Any], out: Path, tallies: list[_Tally]) -> None:
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


def _assemble(
    config: Mapping[str, Any], out: Path, spec: EnvSpec, actions: Mapping[str, ActionSpec], tallies: list[_Tally]
) -> dict[str, Any]:
    """Write the data set from the chosen parts; returns what meta/vla_runtime.json holds."""
    writer = Writer(out, spec, actions, config["images"])
    columns, facts, attempts = [], [], []
    try:
        for tally in tallies:
            for attempt in tally.chosen():
                part = Part.read(out / PARTS / part_name(tally.task, attempt))
                columns.append(writer.add(part, spec.tasks[tally.task]))
                facts.append({key: value for key, value in part.facts.items() if key not in ("histograms", "sizes")})
            attempts.append(
                {
                    "task": tally.task,
                    "instruction": spec.tasks[tally.task],
                    "attempts": tally.attempts(),
                    "successes": tally.wanted,
                    "success_rate": tally.wanted / tally.attempts(),
                }
            )
        contract = Contract.of(spec)
        own: dict[str, Any] = {
            "version": 1,
            "env": spec.name,
            "versions": dict(spec.versions),
            "collect": settings(config),
            "recover": config["recover"],
            "image_stride": config["image_stride"],
            "contract": contract.document(),
            "actions": {
                name: replace(contract, action=action).document()["action"] for name, action in actions.items()
            },
            "attempts": attempts,
            "episodes": facts,
            "report": report.build(columns, facts, attempts, spec.state, actions),
        }
        own = plain(own)
        notes = {key: config[key] for key in ("style", "recover", "seed", "image_stride", "images", "trim_idle")}
        write_text(out / REPORT, page.page(f"Demonstrations of {spec.name}", own["report"], notes))
        writer.finish(own)
    except BaseException:
        writer.abandon()
        raise
    return own


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


def _last_line(own: Mapping[str, Any], out: Path) -> dict[str, Any]:
    attempts = sum(task["attempts"] for task in own["attempts"])
    episodes = len(own["episodes"])
    return {
        "env": own["env"],
        "episodes": episodes,
        "frames": sum(facts["length"] for facts in own["episodes"]),
        "attempts": attempts,
        "expert_success_rate": round(episodes / attempts, 4),
        "out": str(out),
    }


if __name__ == "__main__":
    main("collect", collect)
