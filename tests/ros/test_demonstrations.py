"""A recorded robot becomes a data set: aligned in time, with what succeeded and who moved it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from robots import reach_robot
from staged import Stage

from vla_runtime.bridge import RobotClock
from vla_runtime.collect import collect
from vla_runtime.compose import BadArguments, load
from vla_runtime.control.recorder import Recording
from vla_runtime.data.reader import Dataset
from vla_runtime.robot_side import ARRAY, TRAJECTORY, Topic
from vla_runtime.ros.bags import BagWriter, Recorded
from vla_runtime.ros.demonstrations import demonstrations
from vla_runtime.ros.messages import command_message, encode, flag, image_message, state_message, text, trajectory

STRING, BOOL = "std_msgs/msg/String", "std_msgs/msg/Bool"
GATED = TRAJECTORY


class Bag:
    """A bag of a reach arm that moves as told; its stamps are 500 seconds behind the bag's."""

    def __init__(self, path, **side):
        self.contract, self._bag = reach_robot(**side), BagWriter(path)

    def tick(self, time, step, cameras=("overhead", "hand"), command="gated", stamped=True):
        robot = self.contract.robot
        values = {"hand.y": 0.0, "j2": step / 200, "j1": step / 100, "hand.x": 0.0}
        stream = robot.state["joints"]
        self.say(stream.topic, stream.type, state_message(values, stream, time, ""), time)
        for name in cameras:
            camera = robot.cameras[name]
            picture = np.full((16, 16, 3), step, np.uint8)
            self.say(camera.topic, camera.type, image_message(picture, camera, time, ""), time + 0.002)
        if command == "gated":
            goal = {"j1": (step + 1) / 100, "j2": (step + 1) / 200}
            self.say("/arm/command/gated", GATED, trajectory(goal, False, time + 0.01, f"a:{step}", 0.05), time + 0.01)
        elif command:
            # As whoever teleoperates says it to the controllers.
            goal, stream = (
                {"j1": (step + 3) / 100, "j2": (step + 3) / 200},
                replace(robot.action["joints"], type=command),
            )
            message = command_message(goal, stream, False, time + 0.01 if stamped else 0.0, 0.05)
            self.say("/arm/command", command, message, time + 0.01)

    def end(self, time, success=True):
        said = json.dumps({"success": success, "reason": "said"})
        self.say("/vla/outcome", STRING, text(said), time)

    def say(self, name, kind, message, time):
        self._bag.write(Topic(name, kind), encode(message), time + 500.0)

    def close(self):
        self._bag.close()


def read(bag, tmp_path, instruction="touch", succeeded=False):
    bag.close()
    return list(demonstrations(tmp_path / "bag", bag.contract, instruction, succeeded))


def test_rows_hold_what_was_seen_and_what_answered_it(tmp_path):
    bag = Bag(tmp_path / "bag")
    for step in range(40):
        # Cameras at half the rate.
        bag.tick(1000 + step * 0.05, step, ("overhead", "hand") if step % 2 == 0 else ())
    bag.end(1002.0)
    (episode,) = read(bag, tmp_path)
    assert episode.facts["success"]
    assert 37 <= episode.length <= 40
    joints = np.round(episode.columns["observation.state"][:, 0] * 100)
    assert np.array_equal(np.diff(joints), np.ones(len(joints) - 1))
    assert np.allclose(episode.columns["action"][:-1, 0] * 100, joints[:-1] + 1, atol=1e-4)
    shown = np.array([episode.images["hand"][index][0, 0, 0] for index in episode.shown])
    assert np.array_equal(shown, joints // 2 * 2)
    assert not episode.columns["disturbed"].any()
    assert episode.columns["image_fresh"].sum() == len(episode.images["hand"])


def test_episodes_end_where_the_outcome_is_said(tmp_path):
    bag = Bag(tmp_path / "bag")
    bag.say("/vla/instruction", STRING, text("first"), 999.9)
    for step in range(20):
        bag.tick(1000 + step * 0.05, step)
    bag.end(1001.0, success=False)
    bag.say("/vla/instruction", STRING, text("second"), 1001.01)
    bag.say("/vla/takeover", BOOL, flag(True), 1001.6)
    bag.say("/vla/takeover", BOOL, flag(False), 1001.8)
    for step in range(20):
        bag.tick(1001.5 + step * 0.05, step)
    bag.end(1002.5)
    first, second = read(bag, tmp_path, None)
    assert [first.facts["success"], second.facts["success"]] == [False, True]
    assert [first.facts["instruction"], second.facts["instruction"]] == ["first", "second"]
    assert first.facts["reset"]["takeovers"] == []
    # Seconds from the episode's own first row on.
    assert second.facts["reset"]["takeovers"][0] == pytest.approx([0.1, 0.3], abs=0.03)
    assert second.columns["observation.state"][0, 0] == 0


def test_a_hand_that_stays_is_marked_in_every_episode_it_is_in(tmp_path):
    bag = Bag(tmp_path / "bag")
    for step in range(20):
        bag.tick(1000 + step * 0.05, step)
    bag.say("/vla/takeover", BOOL, flag(True), 1000.7)
    bag.end(1001.0)
    for step in range(20):
        bag.tick(1001.5 + step * 0.05, step)
    bag.end(1002.5)
    first, second = read(bag, tmp_path)
    ((begins, ends),) = first.facts["reset"]["takeovers"]
    assert begins == pytest.approx(0.7, abs=0.06)
    assert ends == pytest.approx(first.length * 0.05)
    # Nobody said that it had gone.
    assert second.facts["reset"]["takeovers"] == [[0.0, pytest.approx(second.length * 0.05)]]


def test_a_camera_that_falls_silent_ends_the_episodes_use(tmp_path, caplog):
    bag = Bag(tmp_path / "bag")
    for step in range(60):
        bag.tick(1000 + step * 0.05, step, ("overhead", "hand") if step < 20 else ("overhead",))
    bag.end(1003.0)
    (episode,) = read(bag, tmp_path)
    assert 35 < episode.length < 45
    assert "camera hand fell silent" in caplog.text


def test_rows_without_a_fresh_command_are_marked(tmp_path):
    bag = Bag(tmp_path / "bag")
    for step in range(30):
        bag.tick(1000 + step * 0.05, step, command="gated" if step < 10 else None)
    bag.end(1001.5)
    (episode,) = read(bag, tmp_path)
    assert not episode.columns["disturbed"][:9].any()
    assert episode.columns["disturbed"][-10:].all()


def test_standing_because_it_may_not_move_is_no_demonstration(tmp_path):
    """A bridge says twice a second whether it may; its commands keep the robot where it is meanwhile."""
    bag = Bag(tmp_path / "bag")
    for step in range(40):
        time = 1000 + step * 0.05
        if step % 10 == 0:
            bag.say("/vla/status", STRING, text(json.dumps({"allowed": step >= 20})), time - 0.001)
        bag.tick(time, step)
    bag.end(1002.0)
    (episode,) = read(bag, tmp_path)
    joints = np.round(episode.columns["observation.state"][:, 0] * 100)
    assert episode.columns["disturbed"][joints < 19].all()
    assert not episode.columns["disturbed"][joints > 21].any()


@pytest.mark.parametrize(("kind", "stamped"), [(TRAJECTORY, True), (TRAJECTORY, False), (ARRAY, False)])
def test_what_somebody_told_the_controllers_by_hand_is_a_demonstration(tmp_path, kind, stamped):
    """No bridge was there: a first data set of a robot is teleoperated."""
    bag = Bag(tmp_path / "bag")
    for step in range(30):
        bag.tick(1000 + step * 0.05, step, command=kind, stamped=stamped)
    (episode,) = read(bag, tmp_path, succeeded=True)
    assert episode.facts["success"]
    assert 27 <= episode.length <= 30
    joints = np.round(episode.columns["observation.state"][:, 0] * 100)
    assert np.array_equal(np.diff(joints), np.ones(len(joints) - 1))
    assert np.allclose(episode.columns["action"][:-1, 0] * 100, joints[:-1] + 3, atol=1e-4)
    assert not episode.columns["disturbed"].any()


def test_a_hand_that_takes_over_corrects_and_what_a_gate_passes_on_is_not_taken_twice(tmp_path):
    bag = Bag(tmp_path / "bag")
    for step in range(40):
        time = 1000 + step * 0.05
        if step in (15, 25):
            bag.say("/vla/takeover", BOOL, flag(step == 15), time - 0.01)
        taken = 15 <= step < 25
        bag.tick(time, step, command=TRAJECTORY if taken else "gated")
        if not taken:
            # What the gate made of it: limited, and a little later.
            stream = bag.contract.robot.action["joints"]
            passed = command_message({"j1": 9.0, "j2": 9.0}, stream, False, time + 0.012, 0.05)
            bag.say("/arm/command", TRAJECTORY, passed, time + 0.012)
    bag.end(1002.0)
    (episode,) = read(bag, tmp_path)
    joints = np.round(episode.columns["observation.state"][:, 0] * 100)
    ahead = np.round(episode.columns["action"][:-1, 0] * 100 - joints[:-1])
    assert set(ahead) == {1.0, 3.0}
    assert ahead[15 - int(joints[0]) : 25 - int(joints[0])].tolist() == [3.0] * 10
    assert len(episode.facts["reset"]["takeovers"]) == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [("outcome", "expected an outcome on /vla/outcome, got none; nobody said how it ended. Take succeeded=true"),
     ("command", r"expected the topics \['/arm/command/gated'\], or without /gated what the controllers heard"),
     ("camera", r"expected the topics \['/cameras/hand'\]"),
     ("instruction", "instruction: expected what the robot was to do"), ("size", "messages that can be read of")],
)  # fmt: skip
def test_bags_that_cannot_be_used(tmp_path, fault, words):
    bag = Bag(tmp_path / "bag")
    for step in range(10):
        cameras = ("overhead",) if fault == "camera" else ("overhead", "hand")
        bag.tick(1000 + step * 0.05, step, cameras, None if fault == "command" else "gated")
    if fault != "outcome":
        bag.end(1000.5)
    if fault == "size":
        bag.contract = reach_robot(size=32)
    with pytest.raises(ValueError, match=words):
        read(bag, tmp_path, None if fault == "instruction" else "touch")


def test_a_bridges_bag_becomes_a_data_set_like_any_other(tmp_path):
    stage = Stage(tmp_path, episodes=2, max_steps=200)
    transport = stage.air.transport
    stage.air.transport = lambda: Recorded(transport(), tmp_path / "bag", RobotClock())
    with stage.playing():
        stage.bridge("episodes=2")
    asked = [f"bag={tmp_path / 'bag'}", f"contract={stage.path}", f"out={tmp_path / 'data'}"]
    line, code = collect(load("collect", [*asked, "instruction=touch"]))
    assert (code, line["episodes"], line["env"]) == (0, 2, "reach_arm")
    data = Dataset(tmp_path / "data", horizon=4)
    live = [tick["state"].tobytes() for one in sorted(stage.out.glob("recordings/*")) for tick in Recording(one).ticks]
    seen = [data[index][0] for index in range(len(data))]
    assert np.mean([one.state.tobytes() in live for one in seen]) > 0.8
    assert {one.instruction for one in seen} == {"touch"}
    assert all(one.images["hand"].shape == (16, 16, 3) for one in seen)
    data.close()
    with pytest.raises(BadArguments, match="expected a new folder, got one with"):
        collect(load("collect", [*asked, "instruction=touch"]))
    # Nor in a folder of anything else, which stays as it was.
    mine = tmp_path / "mine"
    (mine / "data").mkdir(parents=True)
    (mine / "data" / "letter.txt").write_text("mine")
    with pytest.raises(BadArguments, match=r"expected a new folder, got one with \['data'\]"):
        collect(load("collect", [*asked[:2], f"out={mine}", "instruction=touch"]))
    assert (mine / "data" / "letter.txt").read_text() == "mine"


def test_what_an_interrupted_reading_of_bags_left_is_read_again(tmp_path, monkeypatch):
    """With another instruction it is another set."""
    bag = Bag(tmp_path / "bag")
    for step in range(12):
        bag.tick(1000 + step * 0.05, step, ("overhead", "hand"), "gated")
    bag.end(1000.6)
    bag.close()
    contract = tmp_path / "robot.yaml"
    contract.write_text(yaml.safe_dump(json.loads(json.dumps(bag.contract.document()))))
    asked = [f"bag={tmp_path / 'bag'}", f"contract={contract}", f"out={tmp_path / 'data'}", "images=embedded"]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vla_runtime.collect._assemble", killed)
        with pytest.raises(KeyboardInterrupt):
            collect(load("collect", [*asked, "instruction=tuoch"]))
    line, _ = collect(load("collect", [*asked, "instruction=touch"]))
    assert (line["episodes"], line["attempts"]) == (1, 1)
    data = Dataset(tmp_path / "data", horizon=4)
    assert {one.instruction for one in data.episodes} == {"touch"}
    data.close()


def test_failures_after_the_last_success_count(tmp_path):
    """Nobody stopped a robot's bag at the last success, as a collection of an expert's is."""
    bag = Bag(tmp_path / "bag")
    for episode, success in enumerate((True, False, False)):
        for step in range(12):
            bag.tick(1000 + 10 * episode + step * 0.05, step, ("overhead", "hand"), "gated")
        bag.end(1000.6 + 10 * episode, success)
    bag.close()
    contract = tmp_path / "robot.yaml"
    contract.write_text(yaml.safe_dump(json.loads(json.dumps(bag.contract.document()))))
    asked = [f"bag={tmp_path / 'bag'}", f"contract={contract}", f"out={tmp_path / 'data'}", "images=embedded"]
    line, _ = collect(load("collect", [*asked, "instruction=touch"]))
    assert (line["episodes"], line["attempts"], line["expert_success_rate"]) == (1, 3, 0.3333)
    with pytest.raises(BadArguments, match="contract: expected a YAML file"):
        collect(load("collect", [asked[0], f"out={tmp_path / 'other'}"]))
