"""A bag of a robot that moves as told, written tick by tick."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
from robots import reach_robot

from vla_runtime.robot_side import TRAJECTORY, Topic
from vla_runtime.ros.bags import BagWriter
from vla_runtime.ros.messages import command_message, encode, image_message, state_message, text, trajectory

STRING = "std_msgs/msg/String"


class Bag:
    """A bag of a reach arm that moves as told; its stamps are 500 seconds behind the bag's, less what is `ahead`."""

    def __init__(self, path, **side):
        self.contract, self._bag = reach_robot(**side), BagWriter(path)
        self.ahead = 0.0

    def tick(self, time, step, cameras=("overhead", "hand"), command="gated", stamped=True, state=True):
        robot = self.contract.robot
        recorded, time = time, time + self.ahead
        values = {"hand.y": 0.0, "j2": step / 200, "j1": step / 100, "hand.x": 0.0}
        stream = robot.state["joints"]
        if state:
            self.say(stream.topic, stream.type, state_message(values, stream, time, ""), recorded)
        for name in cameras:
            camera = robot.cameras[name]
            picture = np.full((16, 16, 3), step, np.uint8)
            self.say(camera.topic, camera.type, image_message(picture, camera, time, ""), recorded + 0.002)
        if command == "gated":
            goal = {"j1": (step + 1) / 100, "j2": (step + 1) / 200}
            self.say(
                "/arm/command/gated",
                TRAJECTORY,
                trajectory(goal, False, time + 0.01, f"a:{step}", 0.05),
                recorded + 0.01,
            )
        elif command:
            # As whoever teleoperates says it to the controllers.
            goal, stream = (
                {"j1": (step + 3) / 100, "j2": (step + 3) / 200},
                replace(robot.action["joints"], type=command),
            )
            message = command_message(goal, stream, False, time + 0.01 if stamped else 0.0, 0.05)
            self.say("/arm/command", command, message, recorded + 0.01)

    def end(self, time, success=True):
        said = json.dumps({"success": success, "reason": "said"})
        self.say("/vla/outcome", STRING, text(said), time)

    def say(self, name, kind, message, time):
        self._bag.write(Topic(name, kind), encode(message), time + 500.0)

    def garble(self, name, kind, time):
        """A message without a byte, as a sender that breaks down leaves it."""
        self._bag.write(Topic(name, kind), b"", time + 500.0)

    def close(self):
        self._bag.close()
