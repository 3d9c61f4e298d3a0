"""One message of every type that robots and bridges exchange."""

from __future__ import annotations

import numpy as np

from vla_runtime.robot_side import ARRAY, TWIST, CameraStream, CommandStream, StateStream
from vla_runtime.ros.messages import (
    command_message,
    diagnostics,
    empty,
    flag,
    image_message,
    state_message,
    text,
    trajectory,
)

PICTURE = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
NUMBERS = CommandStream("/c", ("j1",), "hold", ARRAY)
COMPRESSED = image_message(PICTURE, CameraStream("/a"), 12.25, "a")
MESSAGES = [
    empty(),
    flag(True),
    text("touch the disc"),
    COMPRESSED,
    image_message(PICTURE, CameraStream("/a", "sensor_msgs/msg/Image"), 12.25, "a"),
    state_message({"j1": 0.5, "j2": -1.0}, StateStream("/s", ("j1", "j2")), 3.5, "s"),
    trajectory({"j1": 0.5, "j2": -1.0}, False, 3.5, "s", 0.05),
    command_message({"j1": 0.5}, NUMBERS, False, 1.0, 0.1),
    command_message({"linear.x": 0.5}, CommandStream("/c", ("linear.x",), "zero", TWIST), True, 1.0, 0.1),
    diagnostics("bridge", ["/arm: nobody listens"], None, {"tick": 3}, 2.5),
]
