"""A small data set made of known random numbers, and the factory that writes it without any environment."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vla_runtime.contract import Contract
from vla_runtime.data import report, schema
from vla_runtime.data.episode import Episode, Part, write_part
from vla_runtime.data.writer import Writer
from vla_runtime.disk import plain
from vla_runtime.types import ActionSpec, CameraSpec, EnvSpec, Group, StateSpec

DELTA = ActionSpec(
    (
        Group("position", ("x", "y", "z"), "delta", "1", (-1.0,) * 3, (1.0,) * 3, full_scale=0.05),
        Group("gripper", ("command",), "binary", "1", (-1.0,), (1.0,), open=-1.0, close=1.0),
    )
)
ABSOLUTE = ActionSpec(
    (
        Group("position", ("x", "y", "z"), "absolute", "m", (-1.0,) * 3, (1.0,) * 3),
        Group("gripper", ("command",), "binary", "1", (-1.0,), (1.0,), open=-1.0, close=1.0),
    )
)
STATE = StateSpec(
    (
        Group("position", ("x", "y", "z"), "measured", "m", (-1.0,) * 3, (1.0,) * 3),
        Group("fingers", ("left", "right"), "measured", "m", (-0.05,) * 2, (0.05,) * 2),
    )
)
SPEC = EnvSpec(
    name="tiny",
    cameras=(CameraSpec("front", 16, 24), CameraSpec("hand", 16, 16)),
    state=STATE,
    action=DELTA,
    period=0.05,
    tasks=("lift the cube", "drop the cube"),
    max_steps=50,
)
ACTIONS = {"action": DELTA, "action.delta": DELTA, "action.absolute": ABSOLUTE}


def make_episode(seed: int, length: int, stride: int = 1, facts: dict | None = None) -> Episode:
    generator = np.random.default_rng(seed)
    fresh = np.arange(length) % stride == 0

    def vector(size):
        return generator.uniform(-1, 1, (length, size)).astype(np.float32)

    delta = vector(4)
    delta[:, 3] = np.sign(delta[:, 3])
    columns = {
        "observation.state": vector(5),
        "action": delta,
        "action.delta": delta,
        "action.absolute": np.concatenate([vector(3), delta[:, 3:]], axis=1),
        "image_fresh": fresh,
        "disturbed": np.zeros(length, bool),
    }
    # Smooth pictures: what a camera sees, and what a video codec is made for.
    shades = np.linspace(0, 200, 24).astype(np.uint8)
    images = {}
    for camera in SPEC.cameras:
        picture = np.tile(shades[None, : camera.width, None], (camera.height, 1, 3))
        images[camera.name] = [
            (picture + generator.integers(0, 50, 3).astype(np.uint8)).astype(np.uint8) for _ in range(int(fresh.sum()))
        ]
    return Episode(facts or {}, columns, images, np.cumsum(fresh) - 1)


def make_set(folder: Path, images: str = "embedded", lengths=(7, 5, 6), stride: int = 1, **limits) -> SimpleNamespace:
    episodes, columns, all_facts = [], [], []
    writer = Writer(folder, SPEC, ACTIONS, images, **limits)
    for i, length in enumerate(lengths):
        facts = {
            "success": True,
            "task": i % 2,
            "instruction": SPEC.tasks[i % 2],
            "attempt": i,
            "seed": 10_000,
            "begin_seed": 77 + i,
            "initial_state": f"state{i}",
            "trimmed": 0,
        }
        episode = make_episode(i, length, stride, facts)
        part = folder.parent / f"{folder.name}_parts" / str(i)
        write_part(part, facts, episode, images, 20)
        read = Part.read(part)
        columns.append(writer.add(read, SPEC.tasks[i % 2]))
        all_facts.append({key: value for key, value in read.facts.items() if key not in ("histograms", "sizes")})
        episodes.append(episode)
    attempts = [
        {"task": task, "instruction": name, "attempts": 4, "successes": 2, "success_rate": 0.5}
        for task, name in enumerate(SPEC.tasks)
    ]
    contract = Contract.of(SPEC)
    own = {
        "version": 1,
        "env": SPEC.name,
        "contract": contract.document(),
        "actions": {name: replace(contract, action=spec).document()["action"] for name, spec in ACTIONS.items()},
        "attempts": attempts,
        "episodes": all_facts,
        "report": report.build(columns, all_facts, attempts, STATE, ACTIONS),
    }
    writer.finish(plain(own))
    return SimpleNamespace(folder=folder, episodes=episodes, spec=SPEC, actions=ACTIONS, schema=schema)


@pytest.fixture
def factory():
    """`make_set(folder, images, lengths, stride, **limits)`."""
    return make_set


@pytest.fixture(scope="session")
def embedded(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("sets") / "embedded")


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("sets") / "video", images="video")
