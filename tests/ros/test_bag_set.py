"""Bags of robots become a data set like any other."""

from __future__ import annotations

import numpy as np
import pytest
from bagged import Bag
from staged import Stage

from vla_runtime.bridge import RobotClock
from vla_runtime.collect import collect
from vla_runtime.compose import BadArguments, load
from vla_runtime.control.recorder import Recording
from vla_runtime.data.reader import Dataset
from vla_runtime.ros.bags import Recorded


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
    bag.contract.save(contract)
    asked = [f"bag={tmp_path / 'bag'}", f"contract={contract}", f"out={tmp_path / 'data'}", "images=embedded"]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vla_runtime.ros.bag_set.assemble", killed)
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
    bag.contract.save(contract)
    asked = [f"bag={tmp_path / 'bag'}", f"contract={contract}", f"out={tmp_path / 'data'}", "images=embedded"]
    line, _ = collect(load("collect", [*asked, "instruction=touch"]))
    assert (line["episodes"], line["attempts"], line["expert_success_rate"]) == (1, 3, 0.3333)
    with pytest.raises(BadArguments, match="contract: expected a YAML file"):
        collect(load("collect", [asked[0], f"out={tmp_path / 'other'}"]))


def test_one_bag_that_cannot_be_read_is_named_and_the_others_with_it(tmp_path):
    for name in ("a", "b", "c"):
        bag = Bag(tmp_path / name)
        for step in range(12):
            bag.tick(1000 + step * 0.05, step)
        if name != "b":
            bag.end(1000.6)
        if name == "c":
            stream = bag.contract.robot.state["joints"]
            bag.garble(stream.topic, stream.type, 1000.3)
        bag.close()
    contract = tmp_path / "robot.yaml"
    bag.contract.save(contract)
    a, b, c = (tmp_path / name for name in ("a", "b", "c"))
    asked = [f"contract={contract}", f"out={tmp_path / 'data'}", "instruction=touch"]
    expected = rf"got 1 that cannot: {b}: expected an outcome on .*; the others can be read: bag=\[{a},{c}\]"
    with pytest.raises(ValueError, match=expected):
        collect(load("collect", [*asked, f"bag=[{a},{b},{c}]"]))
    line, _ = collect(load("collect", [*asked, f"bag=[{a},{c}]"]))
    assert (line["episodes"], line["left_out"], line["notes"]) == (2, {"/joint_states": 1}, [])
    with pytest.raises(BadArguments, match="succeeded: expected true or false, got 'no'"):
        collect(load("collect", [*asked, f"bag={b}", "succeeded=no"]))
    with pytest.raises(BadArguments, match="bag: expected a bag, or several"):
        collect(load("collect", [*asked, "bag=[]"]))


def test_some_cameras_of_a_robot_are_enough(tmp_path):
    """Of the other one the bag holds nothing."""
    bag = Bag(tmp_path / "bag")
    for step in range(12):
        bag.tick(1000 + step * 0.05, step, ("hand",), "gated")
    bag.end(1000.6)
    bag.close()
    contract = tmp_path / "robot.yaml"
    bag.contract.save(contract)
    asked = [f"bag={tmp_path / 'bag'}", f"contract={contract}", "images=embedded", "instruction=touch"]
    line, _ = collect(load("collect", [*asked, "cameras=[hand]", f"out={tmp_path / 'data'}"]))
    assert line["episodes"] == 1
    assert list(Dataset(tmp_path / "data", 1)[0][0].images) == ["hand"]
    with pytest.raises(ValueError, match=r"expected some of \['overhead', 'hand'\], .*; the contract has these"):
        collect(load("collect", [*asked, "cameras=[wrist]", f"out={tmp_path / 'other'}"]))
