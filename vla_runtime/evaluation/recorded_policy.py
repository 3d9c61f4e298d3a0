"""The policy of a recording, built once more from what the recording says and from what has moved since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vla_runtime.compose import BadArguments, Config, build_policy, options
from vla_runtime.control.recorder import Recording
from vla_runtime.interfaces import Policy
from vla_runtime.messages import read_env

# Options of a policy that name a checkpoint, by its folder or as one that is shipped; and those that name a file.
_CHECKPOINTS, _FILES = ("folder", "of"), ("data", "contract", "ca")
# A recording holds no secrets, and a server or a file may have moved.
_MOVABLE = ("token", "address", "proxy", *_FILES)


def with_absolute_paths(config: Config) -> Config:
    """A config as a recording keeps it: its files are found from any working directory."""
    policy = dict(config["policy"])
    for name in (*_CHECKPOINTS, *_FILES):
        value = policy.get(name)
        if isinstance(value, str) and (name in _FILES or _is_folder(value)):
            policy[name] = _absolute(value)
    decode = policy.get("decode")
    if isinstance(decode, Mapping) and decode.get("schedule"):
        policy["decode"] = {**decode, "schedule": _absolute(decode["schedule"])}
    return {**config, "policy": policy}


def recorded_policy(recording: Recording, config: Config) -> Policy | None:
    """The policy that decided a recording, to decode its images again; None where it kept none, or an expert decided.

    config: of the command that replays it. Its policy=<folder> replaces the recorded checkpoint's folder, and so do
    policy.address=, token=, ca=, proxy=, contract=, data= and decode.schedule= what was recorded of them. ValueError
    where the checkpoint is not there, or has other weights than were recorded; BadArguments for a folder that nothing
    would be taken from.
    """
    recorded, given = dict(recording.header["config"]["policy"]), config["policy"]
    where, what = f"replay={config['replay']}", recording.header["config"]["choices"]["policy"]
    checkpoint = next((name for name in _CHECKPOINTS if name in recorded), None)
    moved = given["folder"] if "folder" in given and _is_folder(given["folder"]) else None
    # The expert of an environment needs the environment, and no images.
    decided = what != "expert" and any(tick["images"] for tick in recording.ticks)
    if moved is not None and (checkpoint is None or not decided):
        reason = f"was decided by {what}, no checkpoint" if checkpoint is None else "kept no images to decode again"
        raise BadArguments(f"policy={moved}: expected none beside {where}, which {reason}")
    if not decided:
        return None
    if checkpoint is not None:
        recorded[checkpoint] = moved or recorded[checkpoint]
        if _is_folder(recorded[checkpoint]) and not Path(recorded[checkpoint]).is_dir():
            raise ValueError(
                f"{where}: expected the checkpoint that decided it in {recorded[checkpoint]}, got no folder there; "
                "policy=<folder> says where it is now"
            )
    for name in _MOVABLE:
        if name in recorded and given.get(name):
            recorded[name] = given[name]
    schedule = (given.get("decode") or {}).get("schedule")
    if schedule and "decode" in recorded:
        recorded["decode"] = {**recorded["decode"], "schedule": schedule}
    policy = build_policy({**recording.header["config"], "policy": recorded}, read_env(recording.header["env"]))
    weights, found = recording.header["policy"]["weights"], policy.spec.weights
    if found != weights:
        policy.close()
        raise ValueError(
            f"{where}: expected a policy with weights {weights}, got {found}; it was trained again since, or is "
            "another one: policy=<folder> or policy.address= says where the recorded one is"
        )
    return policy


def _is_folder(value: str) -> bool:
    """Whether a checkpoint is named by a folder, and not as one that is shipped."""
    return "/" in value or (value not in options("policy") and Path(value).is_dir())


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
