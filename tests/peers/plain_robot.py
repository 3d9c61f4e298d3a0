"""A robot of nobody's making: a node with two cameras, a joint state in an order of its own, and ears.

Usage: plain_robot.py COMMAND_TYPE. Says everything 20 times a second and does on stdin what it is told, a word a line:
nan, freeze (stamps), blind (no cameras), well; stop, reset (on the desk), whisper (a stop, of best effort); twist (a
command as a bridge would send it); told: a line of JSON of all it said and heard.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import threading

import rclpy
from geometry_msgs.msg import Twist
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Empty, Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

SIZE, RATE = 16, 20
KINDS = {"trajectory": JointTrajectory, "array": Float64MultiArray, "twist": Twist}
BEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


class Robot:
    def __init__(self, kind):
        self.node = rclpy.create_node("plain_robot")
        self.cameras = {
            name: self.node.create_publisher(Image, f"/cameras/{name}", BEST) for name in ("overhead", "hand")
        }
        self.joints = self.node.create_publisher(JointState, "/joint_states", BEST)
        self.desk = {word: self.node.create_publisher(Empty, f"/vla/{word}", 1) for word in ("stop", "reset")}
        self.desk["whisper"] = self.node.create_publisher(Empty, "/vla/stop", BEST)
        self.gated = self.node.create_publisher(JointTrajectory, "/arm/command/gated", 1)
        self.said, self.images, self.heard, self.done = {}, [], [], []
        self.count, self.mood, self.frozen, self.sequence = 0, "well", None, 0
        self.node.create_subscription(JointTrajectory, "/arm/command/gated", self.hear, 10)
        self.node.create_subscription(KINDS[kind], "/arm/command", self.act, 10)
        self.node.create_timer(1 / RATE, self.speak)

    def stamp(self):
        now = self.node.get_clock().now().to_msg()
        self.frozen = (self.frozen or now) if self.mood == "freeze" else None
        return self.frozen or now

    def speak(self):
        self.count += 1
        stamp = self.stamp()
        for name, publisher in self.cameras.items():
            if self.mood == "blind":
                break
            data = bytes((7 * place + self.count + len(name)) % 256 for place in range(SIZE * SIZE * 3))
            self.images.append(hashlib.sha256(data).hexdigest())
            image = Image(height=SIZE, width=SIZE, encoding="rgb8", step=3 * SIZE, data=data)
            image.header.stamp = stamp
            publisher.publish(image)
        values = {"j1": 0.1 + self.count / 1000, "j2": 0.2 - self.count / 2000, "hand.x": 0.3, "hand.y": 0.4}
        self.said[stamp.sec + stamp.nanosec * 1e-9] = [values["j1"], values["j2"], 0.3, 0.4]
        if self.mood == "nan":
            values["j1"] = math.nan
        order = ("hand.y", "j2", "gripper", "hand.x", "j1")
        message = JointState(name=list(order), position=[values.get(name, 9.9) for name in order])
        message.header.stamp = stamp
        self.joints.publish(message)

    def hear(self, message):
        point = message.points[0]
        values = dict(zip(message.joint_names, point.positions or point.velocities, strict=True))
        self.heard.append([values.get("j1"), values.get("j2")])

    def act(self, message):
        if isinstance(message, Twist):
            self.done.append([message.linear.x, message.angular.z])
        elif isinstance(message, Float64MultiArray):
            self.done.append(list(message.data))
        else:
            self.done.append(list(message.points[0].positions))

    def command(self):
        """As a bridge would: a velocity of the body, numbered and stamped."""
        self.sequence += 1
        point = JointTrajectoryPoint(velocities=[0.5, -0.25])
        message = JointTrajectory(joint_names=["linear.x", "angular.z"], points=[point])
        message.header.stamp = self.node.get_clock().now().to_msg()
        message.header.frame_id = f"somebody:{self.sequence}"
        self.gated.publish(message)

    def told(self):
        return {"said": self.said, "images": self.images, "heard": self.heard, "done": self.done}


def main(kind):
    rclpy.init()
    robot = Robot(kind)
    threading.Thread(target=rclpy.spin, args=(robot.node,), daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        word = line.strip()
        if word == "told":
            print(json.dumps(robot.told()), flush=True)
        elif word == "twist":
            robot.command()
        elif word in robot.desk:
            robot.desk[word].publish(Empty())
        else:
            robot.mood = word


if __name__ == "__main__":
    main(*sys.argv[1:])
