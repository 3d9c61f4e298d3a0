"""The environment, the policy and the latencies that a run's configuration asks for."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path

from vla_runtime.compose import BadArguments, Config, build, build_env, build_policy
from vla_runtime.control.isolated import Isolated
from vla_runtime.control.planner import MEASURED, latencies
from vla_runtime.evaluation.folder import latency_label
from vla_runtime.interfaces import Env, Policy


def build_environment(config: Config) -> Env:
    """The environment of a config, inside the wrapper that disturbs it when `recover=true`, behind its bad line."""
    rate, values = config.get("loop", {}).get("rate"), dict(config["env"])
    if rate is not None:
        module, _, name = str(values["_target_"]).rpartition(".")
        if not getattr(getattr(importlib.import_module(module), name), "takes_rate", False):
            raise BadArguments(
                f"loop.rate: expected null, got {rate}; env={config['choices']['env']} has a control rate of its own"
            )
        values["rate_hz"] = rate
    env = build_env(values)
    if config["recover"]:
        env = build(config["perturbation"], env)
    behind: Env = build(config["faults"], env)
    return behind


def decoding_for(config: Config) -> Config:
    """A config whose policy decodes as its loop needs it."""
    if config["loop"].get("join") == "guide" and "decode" in config["policy"]:
        decode = {**config["policy"]["decode"], "guide": True}
        return {**config, "policy": {**config["policy"], "decode": decode}}
    return config


def built_policy(config: Config, env: Env) -> Policy:
    """The policy of a config, in a process of its own where `loop.planner` says so."""
    if config["loop"].get("clock") == "system" and config["policy"]["_target_"] == "expert":
        raise BadArguments(
            "policy=expert: expected loop.clock=virtual: an expert reads the world while it must stand still"
        )
    if config["loop"].get("planner") == "process":
        return Isolated(build_policy, (config, env.spec))
    return build_policy(config, env)


def latency_points(loop: Config) -> list[float | str]:
    """The latencies every episode is played with; `loop.latency` is one or a list. BadArguments for a wrong one."""
    wanted = loop["latency"]
    if loop.get("clock") == "system":
        if wanted not in (0, MEASURED):
            raise BadArguments(
                f"loop.latency: expected none with loop.clock=system, where it is measured, got {wanted!r}"
            )
        return [MEASURED]
    points = wanted if isinstance(wanted, list) else [wanted]
    found: list[float | str] = []
    for point in points:
        try:
            latencies(point, 0)
        except ValueError as error:
            raise BadArguments(str(error)) from error
        found.append(point if isinstance(point, str) else float(point))
    labels = [latency_label(point) for point in found]
    if not found or len(set(labels)) < len(labels):
        raise BadArguments(f"loop.latency: expected at least one, all with different names, got {wanted!r}")
    return found


def profiles(points: Sequence[float | str]) -> dict[str, str]:
    """What recorded latencies are, by their files: 16 hex digits of each. One recorded anew is another."""
    files = [point for point in points if isinstance(point, str) and point != MEASURED]
    return {file: hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] for file in files}
