"""A simulated reach arm that plays in a thread, and the bridge's command in this one, in real time."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

from air import Air
from robots import Aiming, reach_robot, share

from envs.reach import Reach
from vla_runtime.bridge import RobotClock, bridge
from vla_runtime.compose import load
from vla_runtime.control.clock import SystemClock
from vla_runtime.robot_side import Topic
from vla_runtime.ros.messages import read_trajectory
from vla_runtime.ros.robot import GATED
from vla_runtime.ros.simulated import SimulatedRobot

COMMANDS = "/arm/command/gated"


class Stage:
    """A simulated reach arm that plays in a thread, and the bridge's command in this one."""

    def __init__(self, tmp_path, episodes=1, max_steps=120, period=0.05, **side):
        self.air, self.env = Air(), Reach(control="absolute", size=16, max_steps=max_steps)
        self.policy, self.outcomes, self.problem = Aiming(self.env, speed=0.8), [], None
        # A robot may be faster than the policy.
        self.env._spec = replace(self.env.spec, period=period)
        self.contract = replace(reach_robot(**{"expiry": 0.5, **side}), rate_hz=1 / period)
        self.robot = SimulatedRobot(
            self.env, self.contract, self.air.transport(), SystemClock(), RobotClock(), pause=0.2
        )
        self.path, self.out = tmp_path / "robot.yaml", tmp_path / "out"
        self.contract.save(self.path)
        self._episodes = episodes
        self._thread = threading.Thread(target=self._play, daemon=True)

    def _play(self):
        try:
            for episode in range(self._episodes):
                self.outcomes.append(self.robot.play(0, 0, episode, 5.0)[0])
        except Exception as error:
            self.problem = error

    @contextmanager
    def playing(self):
        self._thread.start()
        yield self
        self._thread.join(10)
        assert not self._thread.is_alive()

    def bridge(self, *options, arm=True, own_policy=True):
        """own_policy: the stage's own, whatever the options say."""
        share(transport=self.air.transport(), policy=self.policy)
        config = load("bridge", [f"contract={self.path}", f"out={self.out}", f"arm={str(arm).lower()}", *options])
        config["transport"] = {"_target_": "robots.shared_transport"}
        if own_policy:
            config["policy"] = {"_target_": "robots.shared_policy", "seed": None}
        config["instruction"] = "touch the disc"
        return bridge(config)

    def tell(self, topic, kind, message):
        self.air.say(Topic(topic, f"std_msgs/msg/{kind}"), message)

    def when(self, commands, *calls):
        """Once so many commands were sent, call, a little apart, in a thread of its own."""

        def run():
            while len(self.commands()) < commands:
                time.sleep(0.01)  # noqa: TID251
            for call in calls:
                call()
                time.sleep(0.4)  # noqa: TID251

        threading.Thread(target=run, daemon=True).start()

    def said(self):
        return [json.loads(one.data) for one in self.air.messages("/vla/status", "std_msgs/msg/String")]

    def commands(self):
        return [read_trajectory(one, False) for one in self.air.messages(COMMANDS, GATED)]
