"""Robot, bridge and policy on both sides of a transport, in real time: what arrives, what stops, what is refused."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from robots import Aiming
from staged import COMMANDS, Stage

from envs.reach import Reach
from vla_runtime.bridge import RobotClock
from vla_runtime.compose import BadArguments
from vla_runtime.control.clock import SystemClock, VirtualClock
from vla_runtime.control.recorder import Recording
from vla_runtime.control.safety import Safety
from vla_runtime.robot_side import Desk, Topic
from vla_runtime.ros.messages import empty, flag, stamp, text, trajectory
from vla_runtime.ros.robot import GATED, RosRobot
from vla_runtime.ros.simulated import SimulatedRobot
from vla_runtime.types import Command, SpecMismatch


def test_episodes_over_a_transport_end_as_they_should(tmp_path):
    limits = tmp_path / "limits.yaml"
    limits.write_text("joints: {speed: 50.0}\n")
    with Stage(tmp_path, episodes=2).playing() as stage:
        line, code = stage.bridge("episodes=2", f"limits.groups={limits}")
    assert code == 0
    assert [one.success for one in stage.outcomes] == [True, True], stage.problem
    assert (line["episodes"], line["successes"], line["faults"]) == (2, 2, {})
    assert not stage.robot.refused
    assert {one.instruction for one in stage.policy.seen} == {"touch the disc"}
    # What was decided is what was sent, number by number.
    recordings = [Recording(path) for path in sorted(stage.out.glob("recordings/*"))]
    # The limits themselves: the file they came from may be another by the time this is decided again.
    assert all(one.header["config"]["limits"]["groups"] == {"joints": {"speed": 50.0}} for one in recordings)
    recorded = [tick for one in recordings for tick in one.ticks]
    numbers = [int(frame.partition(":")[2]) for _, _, frame in stage.commands()]
    assert numbers == list(range(len(recorded)))
    sent = np.array([[values["j1"], values["j2"]] for values, _, _ in stage.commands()])
    assert np.allclose(sent, [tick["command"] for tick in recorded], atol=1e-6)
    assert json.loads((stage.out / "summary.json").read_text())["ticks"] == line["ticks"]
    # What a simulation is told of this robot's latency.
    delays = json.loads((stage.out / "latencies.json").read_text())
    assert len(delays) == sum(tick["answer"] is not None for tick in recorded)
    assert {"overruns", "missed"} <= line.keys()


def test_nothing_moves_before_somebody_arms_it(tmp_path):
    with Stage(tmp_path, max_steps=80).playing() as stage:
        stage.when(10, lambda: stage.tell("/vla/reset", "Empty", empty()))
        line, _ = stage.bridge(arm=False)
    assert stage.outcomes[0].success, stage.problem
    assert [what for what, _ in line["events"]] == ["stopped", "reset"]
    first = stage.air.messages("/joint_states", "sensor_msgs/msg/JointState")[0].position[:2]
    unarmed = [values for values, _, _ in stage.commands()][:8]
    assert all(abs(one["j1"] - first[0]) < 1e-6 and abs(one["j2"] - first[1]) < 1e-6 for one in unarmed)


def test_a_stop_stops_until_it_is_reset(tmp_path):
    with Stage(tmp_path, max_steps=80).playing() as stage:
        stage.when(
            4,
            lambda: stage.tell("/vla/stop", "Empty", empty()),
            lambda: stage.tell("/vla/reset", "Empty", empty()),
        )
        line, _ = stage.bridge()
    assert stage.outcomes[0].success, stage.problem
    assert [what for what, _ in line["events"]] == ["stopped", "reset"]
    places = [(values["j1"], values["j2"]) for values, _, _ in stage.commands()]
    same = [a == b for a, b in pairwise(places)]
    assert sum(same) >= 3, "it stood meanwhile"


def test_a_human_takes_over_and_gives_back(tmp_path):
    with Stage(tmp_path, max_steps=80).playing() as stage:
        stage.when(
            4,
            lambda: stage.tell("/vla/takeover", "Bool", flag(True)),
            lambda: stage.tell("/vla/takeover", "Bool", flag(False)),
        )
        line, _ = stage.bridge()
    assert stage.outcomes[0].success, stage.problem
    assert [what for what, _ in line["events"]] == ["taken over", "given back"]


def test_cameras_that_fall_silent_stop_it(tmp_path):
    stage = Stage(tmp_path, max_steps=40)
    say = stage.robot._publish

    def deaf(stream, message):
        if stream.topic != "/cameras/hand" or len(stage.policy.seen) < 2:
            say(stream, message)

    stage.robot._publish = deaf
    with stage.playing():
        line, _ = stage.bridge()
    assert not stage.outcomes[0].success
    assert line["events"][0][0] == "stopped"
    assert "hand" in line["events"][0][1] or "observation" in line["events"][0][1]


def test_a_line_that_is_cut_leaves_the_robot_standing(tmp_path):
    stage = Stage(tmp_path, max_steps=80, expiry=0.2)

    def cut():
        stage.air.cut = True

    def mend():
        stage.air.cut = False

    with stage.playing():
        stage.when(4, cut, mend)
        line, _ = stage.bridge()
    assert line["faults"]["commands that could not be sent"] > 2
    assert stage.robot.faults["periods without a fresh command"] > 2
    # What could not be sent was not kept for later.
    numbers = [int(frame.partition(":")[2]) for _, _, frame in stage.commands()]
    assert numbers != list(range(len(numbers)))
    assert sorted(set(numbers)) == numbers


def test_instructions_can_change(tmp_path):
    with Stage(tmp_path, max_steps=40).playing() as stage:
        stage.when(4, lambda: stage.tell("/vla/instruction", "String", text("touch another")))
        stage.bridge()
    assert {one.instruction for one in stage.policy.seen} == {"touch the disc", "touch another"}


def test_it_says_how_it_is(tmp_path):
    with Stage(tmp_path).playing() as stage:
        stage.bridge()
    said = stage.said()
    assert {"tick", "allowed", "stopped", "human", "held", "ages", "faults", "health", "gate"} == set(said[0])
    assert set(said[0]["ages"]) == {"camera overhead", "camera hand", "state joints", "state position"}


def test_streams_that_do_not_come_are_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"expected all streams within 0\.3 s, got none of camera overhead"):
        Stage(tmp_path).bridge("patience=0.3")


def test_a_wrong_name_is_said_when_the_bridge_gives_up(tmp_path):
    stage = Stage(tmp_path)
    streams = {**stage.contract.robot.state}
    streams["joints"] = replace(streams["joints"], names=("j1", "j3"))
    contract = replace(stage.contract, robot=replace(stage.contract.robot, state=streams))
    robot = RosRobot(contract, stage.air.transport(), SystemClock(), Safety(), "touch", patience=0.5)
    threading.Timer(0.1, lambda: stage.robot._say(stage.env.observe(("overhead", "hand")))).start()
    words = r"got none of state joints \(1 message left out.*expected values named \['j3'\], got 4 values for \['j1'"
    with pytest.raises(RuntimeError, match=words) as caught:
        robot.reset(0, 0, 0)
    assert "state position" not in str(caught.value)
    assert "the transport reports no problem" in str(caught.value)


def test_a_robot_that_nobody_commands_does_not_wait_for_ever(tmp_path):
    stage = Stage(tmp_path)
    with pytest.raises(RuntimeError, match=r"expected a command within 0\.2 s, got none on /arm/command/gated"):
        stage.robot.play(0, 0, 0, 0.2)


def test_old_commands_do_not_move_it(tmp_path):
    stage = Stage(tmp_path, max_steps=10)
    start = []

    def shout():
        # Once the robot has spoken; a second old, as after an outage.
        joints = stage.air.messages("/joint_states", "sensor_msgs/msg/JointState")[-1].position[:2]
        start.append(joints)
        for number in range(5):
            old = trajectory({"j1": 3.0, "j2": 3.0}, False, RobotClock().now() - 1.0, f"ghost:{number}", 0.05)
            stage.air.say(Topic(COMMANDS, GATED), old)

    threading.Timer(0.2, shout).start()
    words = r"expected a command within 0.6 s, got 5 on /arm/command/gated that were refused, .* of the last 0\.5 s"
    with pytest.raises(RuntimeError, match=words):
        stage.robot.play(0, 0, 0, 0.6)
    assert stage.robot.refused == {"old": 5}
    now = stage.env.observe(()).state[:2]
    assert np.allclose(now, start[0], atol=1e-6)


def test_a_robot_faster_than_its_policy_gets_goals_between_rows(tmp_path):
    with Stage(tmp_path, period=0.025, max_steps=200).playing() as stage:
        line, _ = stage.bridge()
    assert line["successes"] == 1, stage.problem
    ticks = Recording(next(stage.out.glob("recordings/*"))).ticks
    assert np.median(np.diff([tick["wall"] for tick in ticks])) == pytest.approx(0.025, abs=0.005)
    goals = np.array([tick["command"] for tick in ticks[4:-1]])
    # In even steps: neither the same goal twice nor a jump at every second.
    steps = np.abs(np.diff(goals, axis=0)).max(1)
    moving = steps[steps > 1e-6]
    assert len(moving) > 0.9 * len(steps[:-4])
    assert np.percentile(moving, 90) < 1.5 * np.median(moving)


def test_a_robot_of_a_rate_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(SpecMismatch, match=r"rate_hz: expected 20\.0, got 30\.0"):
        Stage(tmp_path, period=1 / 30).bridge()


def test_what_was_decided_long_ago_says_so(tmp_path):
    """A bridge that was suspended between deciding and sending: the stamp is of what it had heard."""
    stage = Stage(tmp_path)
    clock, safety = VirtualClock(5.0), Safety()
    robot = RosRobot(stage.contract, stage.air.transport(), clock, safety, "touch")
    stage.robot._say(stage.env.observe(("overhead", "hand")))
    heard = stage.air.messages("/joint_states", "sensor_msgs/msg/JointState")[-1]
    clock.sleep_until(50.0)
    robot.apply(Command(np.zeros(2, np.float32), 5.0))
    assert stage.commands()[-1][1] == pytest.approx(stamp(heard), abs=1e-6)


def test_an_outcome_of_the_episode_before_does_not_end_the_next(tmp_path):
    stage = Stage(tmp_path)
    robot = RosRobot(stage.contract, stage.air.transport(), SystemClock(), Safety(), "touch")

    def speak():
        stage.tell("/vla/outcome", "String", text('{"success": false, "reason": "time"}'))
        stage.robot._say(stage.env.observe(("overhead", "hand")))

    threading.Timer(0.2, speak).start()
    robot.reset(0, 0, 0)
    assert robot.outcome() is None


def test_an_outcome_that_cannot_be_read_is_counted_and_ends_nothing(tmp_path):
    stage = Stage(tmp_path)
    robot = RosRobot(stage.contract, stage.air.transport(), SystemClock(), Safety(), "touch")
    stage.tell("/vla/outcome", "String", text('{"success": "false", "reason": "time"}'))
    assert robot.outcome() is None
    assert robot.faults == {"outcomes that cannot be read": 1}
    stage.tell("/vla/outcome", "String", text('{"success": false, "reason": "time"}'))
    assert robot.outcome().success is False


def test_a_stopped_robot_is_no_success(tmp_path):
    with Stage(tmp_path, max_steps=20).playing() as stage:
        line, code = stage.bridge(arm=False)
    assert code == 1
    assert "not armed yet" in line["error"]


def test_both_sides_end_when_they_are_told_to(tmp_path):
    stage = Stage(tmp_path)
    outcome, _ = stage.robot.play(0, 0, 0, 30.0, lambda: True)
    assert outcome.reason == "stopped"
    robot = RosRobot(stage.contract, stage.air.transport(), SystemClock(), Safety(), "touch", told_to_end=lambda: True)
    with pytest.raises(RuntimeError, match="told to stop before everything was seen"):
        robot.reset(0, 0, 0)


def test_a_desk_must_have_what_is_waited_for(tmp_path):
    with pytest.raises(BadArguments, match=r"arm=false: expected robot\.desk\.reset"):
        Stage(tmp_path, desk=Desk(reset=None)).bridge(arm=False)
    # A heartbeat that nobody heeds is as dangerous as one that nobody gives.
    for desk, seconds in ((Desk(), 0.5), (Desk(heartbeat="/vla/heartbeat"), "null")):
        with pytest.raises(BadArguments, match=r"safety\.heartbeat: expected seconds where the contract has"):
            Stage(tmp_path, desk=desk).bridge(f"safety.heartbeat={seconds}")


def test_contracts_are_compared_before_anything_moves(tmp_path):
    stage = Stage(tmp_path)
    other = Reach(control="velocity", size=16)
    stage.policy = Aiming(other)
    with pytest.raises(SpecMismatch, match="robot reach_arm does not fulfil the contract of aiming"):
        stage.bridge()
    assert stage.commands() == []
    with pytest.raises(SpecMismatch, match="reach does not fulfil the contract of the robot's contract"):
        SimulatedRobot(other, stage.contract, stage.air.transport(), SystemClock(), RobotClock())


def test_what_a_contract_states_of_a_policy_is_compared(tmp_path):
    stage = Stage(tmp_path)
    stage.policy.spec = replace(stage.policy.spec, statistics="bbbb")
    replace(stage.contract, statistics="aaaa", horizon=99).save(stage.path)
    with pytest.raises(SpecMismatch, match=r"(?s)2 differences.*horizon.*statistics: expected 'bbbb', got 'aaaa'"):
        stage.bridge()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["contract=null"], "contract: expected a YAML file"),
        (["side=both"], "side: expected one of policy, robot, gate"),
        (["episodes=0"], "episodes: expected at least 1, got 0"),
        (["arm=no"], "arm: expected true or false, got 'no'"),
        (["loop.planner=process"], "loop.planner: expected thread, got process"),
        (["side=robot", "env=reach", "env.tasks=[0,1]"], "env.tasks: expected one"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, words):
    stage = Stage(tmp_path)
    with pytest.raises(BadArguments, match=words):
        stage.bridge(*options)


class Set(datetime):
    """A time of day that was set back by a minute."""

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) - timedelta(seconds=60)


def test_a_robots_clock_goes_on_evenly_and_follows_a_time_of_day_that_is_set(monkeypatch):
    clock = RobotClock()
    assert abs(clock.now() - datetime.now().timestamp()) < 0.02
    assert clock.follow() == 0
    before = clock.now()
    monkeypatch.setattr("vla_runtime.bridge.datetime", Set)
    assert clock.now() >= before
    assert clock.follow() == pytest.approx(-60.0, abs=0.02)
    assert clock.now() == pytest.approx(before - 60.0, abs=5.0)
    assert clock.follow() == 0


def test_a_policy_without_weights_knows_the_robot_it_is_for(tmp_path):
    with Stage(tmp_path, max_steps=12).playing() as stage:
        line, code = stage.bridge("policy=hold", own_policy=False)
    assert (code, line["policy"], line["episodes"], line["successes"]) == (0, "hold", 1, 0), stage.problem
    places = np.array([[values["j1"], values["j2"]] for values, _, _ in stage.commands()])
    assert len(places) >= 12
    assert np.abs(places - places[0]).max() < 1e-4


def test_a_robot_has_no_expert(tmp_path):
    with pytest.raises(BadArguments, match="got expert, which sees the state of a simulator; take remote"):
        Stage(tmp_path).bridge("policy=expert", own_policy=False)
    with pytest.raises(BadArguments, match=r"decode\.mode=plain: expected a learned policy, got policy=hold"):
        Stage(tmp_path).bridge("policy=hold", "decode=plain", own_policy=False)
