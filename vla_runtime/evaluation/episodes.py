"""One episode after another: an environment and a policy in, rows out.

A row is one JSON object that says everything that makes the episode comparable; whatever may differ
between two identical runs sits under its key `timing`, and nothing else does.
"""

from __future__ import annotations

import importlib
import logging
import platform
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import vla_runtime
from vla_runtime.compose import BadArguments, Config, control_for
from vla_runtime.contract import Contract, at_rate, require_match
from vla_runtime.control.clock import SystemClock
from vla_runtime.control.planner import warm_up
from vla_runtime.control.recorder import Recorder
from vla_runtime.control.settings import Settings
from vla_runtime.control.smoothness import smoothness
from vla_runtime.control.trace import Run, Tick, Trace, percentiles
from vla_runtime.evaluation.building import build_environment, built_policy, decoding_for, latency_points, profiles
from vla_runtime.evaluation.folder import Job, Row, latency_label, without_secrets
from vla_runtime.evaluation.recorded_policy import with_absolute_paths
from vla_runtime.evaluation.row import error_source, make_row
from vla_runtime.evaluation.video import write_strip, write_video
from vla_runtime.interfaces import Env, Policy
from vla_runtime.machine import check_parent
from vla_runtime.messages import env_document, policy_document
from vla_runtime.types import Command, Image

if TYPE_CHECKING:
    from vla_runtime.evaluation.live import LiveView

_log = logging.getLogger(__name__)

# Every second control tick: half the rendering, and motion still looks smooth.
_VIDEO_STRIDE = 2


def begin_seed(policy_seed: int, task: int, episode: int) -> int:
    """The seed a policy's session begins with: another for every episode, whatever runs beside it."""
    return int(np.random.SeedSequence((policy_seed, task, episode)).generate_state(1)[0])


def policy_seed(config: Config) -> int:
    """`policy.seed`, by default the run's own seed."""
    seed = config["policy"]["seed"]
    return int(config["seed"] if seed is None else seed)


def video_name(job: Job) -> str:
    """Where an episode's video lies, relative to the run's folder."""
    return f"videos/{_name(job)}.mp4"


def recording_name(job: Job) -> str:
    """Where an episode's recording lies, relative to the run's folder."""
    return f"recordings/{_name(job)}.rec"


class EpisodeRunner:
    """Builds environment and policy of a config once and plays episodes; `job -> row`.

    video: all, failures or none; out: the run's folder, where videos go. SpecMismatch when the environment
    does not fulfil the policy's contract.
    """

    def __init__(self, config: Config, video: str, out: Path):
        config = decoding_for(config)
        self._env: Env = build_environment(config)
        self._policy: Policy = built_policy(config, self._env)
        control = control_for(config["env"], self._env, self._policy.spec.action)
        if control is not None:
            self._env.close()
            config = {**config, "env": {**config["env"], "control": control}}
            self._env = build_environment(config)
        self._config = config
        self._video = video
        self._out = out
        self._seed = policy_seed(config)
        spec, policy = self._env.spec, self._policy.spec
        wanted = Contract.of(policy)
        if config["loop"]["rate"] is not None:
            wanted = at_rate(wanted, 1 / spec.period)
        require_match(Contract.of(spec), wanted, f"environment {spec.name}", f"policy {policy.name}")
        if config["viz"] is not None:
            # What is missing is missed now, not in every episode.
            importlib.import_module("vla_runtime.evaluation.live")
        options = config["policy"]
        self._remote = {name: options[name] for name in ("address", "encoding") if name in options}
        self._latencies = latency_points(config["loop"])
        self._profiles = profiles(self._latencies)
        try:
            self._settings = Settings(config["loop"], config["limits"], config["safety"], spec, policy)
        except ValueError as error:
            raise BadArguments(str(error)) from error
        if self._settings.real_time:
            # Before the clock counts.
            warm_up(self._policy, self._seed, self._env.spec.tasks[0])
        self._common = {
            "env": config["choices"]["env"],
            "seed": config["seed"],
            # Of one that lives elsewhere, what it is and not where.
            "policy": policy.name if self._remote else config["choices"]["policy"],
            "policy_seed": self._seed,
            "statistics": policy.statistics,
            "weights": policy.weights,
            "contract": Contract.of(spec).fingerprint(),
            "control": getattr(self._env, "control", config["env"].get("control")),
            "style": config["style"],
            "recover": config["recover"],
            "faults": {name: value for name, value in config["faults"].items() if name != "_target_"},
            "versions": {"vla_runtime": vla_runtime.__version__, "python": platform.python_version(), **spec.versions},
            "loop": self._settings.facts,
            "decode": dict(policy.decode),
        }

    def __call__(self, job: Job) -> Row:
        task, episode, latency = job
        clock = SystemClock()
        began = clock.now()
        result, error, source, facts, recorder, live = Run(), None, None, {}, None, None
        reset_s = 0.0
        try:
            facts = dict(self._env.reset(self._config["seed"], task, episode))
            if self._settings.real_time:
                # What opening a renderer takes is no part of any period.
                self._env.observe([camera.name for camera in self._policy.spec.cameras])
            reset_s = clock.now() - began
            seed = begin_seed(self._seed, task, episode)
            session = self._policy.begin(seed)
            recorder = self._recorder(job, seed)
            live = self._live(job)
            watchers = [one for one in (recorder, live) if one is not None]

            def on_tick(tick: Tick) -> None:
                check_parent()
                for watcher in watchers:
                    watcher(tick)

            self._settings.play(self._env, session, result, latency, seed, on_tick, counted=True)
        except (Exception, SystemExit) as problem:
            # Whatever a policy or an environment raises belongs into the row; the next episode goes on.
            _log.warning("task %d episode %d", task, episode, exc_info=True)
            error, source = f"{type(problem).__name__}: {problem}", error_source(problem)
        wall_s = clock.now() - began
        if recorder is not None:
            recorder.close(result, error)
        if live is not None:
            live.close()
        row = make_row(self.facts, job, result, facts, error, self._policy.spec.seen, source)
        spec, trace = self._env.spec, result.trace
        row["smoothness"] = smoothness(spec.action, spec.state, trace.commands, trace.states, trace.seams, spec.period)
        wanted = self._video == "all" or (self._video == "failures" and not row["success"])
        row["timeline"] = trace.timeline()
        row["recording"] = None if recorder is None else recording_name(job)
        if wanted and result.steps:
            check_parent()
            try:
                row["video"] = self._record(job, result.trace)
            except Exception:
                # What broke the episode may break it again; and no film is worth a run.
                _log.warning("%s: no video", job, exc_info=True)
        row["timing"] = {
            "wall_s": round(wall_s, 6),
            "reset_s": round(reset_s, 6),
            "latencies_ms": [round(1e3 * latency, 3) for latency in result.trace.latencies],
            # As the world saw it, in whole control periods: what a profile for `loop.latency` is made of.
            "delays_ms": [round(1e3 * delay, 3) for delay in trace.delays],
            # Beside the times, since rounds may end by a deadline.
            "chunks": result.trace.chunk_means(),
            "tick_us": percentiles(result.trace.ticks, 1e6),
            "overruns": result.trace.overruns,
            "missed": result.trace.missed,
            "period_error_ms": percentiles(trace.period_errors(spec.period), 1e3) if self._settings.real_time else None,
            "host": socket.gethostname(),
            "cpu": platform.processor() or platform.machine(),
            **self._remote,
        }
        return row

    def _live(self, job: Job) -> LiveView | None:
        if self._config["viz"] is None:
            return None
        from vla_runtime.evaluation.live import LiveView

        path = self._out / "views" / f"{_name(job)}.rrd" if self._config["viz"] == "rrd" else None
        return LiveView(self._env.spec, _name(job), path)

    def _recorder(self, job: Job, seed: int) -> Recorder | None:
        record = self._config["record"]
        if not record["ticks"]:
            return None
        header = {
            "versions": {"recording": 1, **self._common["versions"]},
            "config": without_secrets(with_absolute_paths(self._config)),
            "job": list(job),
            "seed": seed,
            "env": env_document(self._env.spec),
            "policy": policy_document(self._policy.spec),
        }
        return Recorder(self._out / recording_name(job), header, record["images"] == "png")

    @property
    def facts(self) -> dict[str, Any]:
        """What is the same in every row, and the names of the tasks; plain values."""
        return {
            "common": self._common,
            "tasks": list(self._env.spec.tasks),
            "latencies": self._latencies,
            "profiles": self._profiles,
        }

    def close(self) -> None:
        """Close policy and environment."""
        self._policy.close()
        self._env.close()

    def _record(self, job: Job, trace: Trace) -> str | None:
        """Plays the episode's commands again, looking this time: episodes that are not kept cost no rendering."""
        spec = self._env.spec
        cameras = [camera.name for camera in spec.cameras]
        if not cameras:
            return None
        frames: list[Image] = []
        self._env.reset(self._config["seed"], job.task, job.episode)
        for index, (state, values) in enumerate(zip(trace.states, trace.commands, strict=True)):
            look = index % _VIDEO_STRIDE == 0 or index == len(trace.commands) - 1
            observation = self._env.observe(cameras if look else ())
            if not np.array_equal(observation.state, state):
                _log.warning("%s: no video, the environment did not repeat itself at tick %d", job, index)
                return None
            if look:
                frames.append(_side_by_side([observation.images[name] for name in cameras]))
            self._env.apply(Command(values, observation.time))
        name = video_name(job)
        path = self._out / name
        path.parent.mkdir(exist_ok=True)
        write_video(path, frames, 1 / spec.period / _VIDEO_STRIDE)
        write_strip(path.with_suffix(".jpg"), frames)
        return name


def _side_by_side(images: list[Image]) -> Image:
    height = min(image.shape[0] for image in images)
    return np.concatenate([image[:height] for image in images], axis=1)


def _name(job: Job) -> str:
    late = f"_latency{latency_label(job.latency)}" if job.latency else ""
    return f"task{job.task:02d}_episode{job.episode:03d}{late}"
