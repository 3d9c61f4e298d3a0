"""What an operator does with ROS's own tools: transitions of a lifecycle node, its parameters, its diagnostics.

Usage: managing.py NODE TRANSITION; says JSON.
"""

from __future__ import annotations

import json
import sys

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters


def main(name, transition):
    rclpy.init()
    node = rclpy.create_node("operator")
    heard = []
    node.create_subscription(DiagnosticArray, "/diagnostics", heard.append, 10)

    def ask(kind, service, **fields):
        client = node.create_client(kind, f"/{name}/{service}")
        assert client.wait_for_service(10.0), service
        future = client.call_async(kind.Request(**fields))
        rclpy.spin_until_future_complete(node, future, timeout_sec=10.0)
        return future.result()

    before = ask(GetState, "get_state").current_state.label
    number = getattr(Transition, f"TRANSITION_{transition.upper()}")
    done = ask(ChangeState, "change_state", transition=Transition(id=number)).success
    after = ask(GetState, "get_state").current_state.label
    values = ask(GetParameters, "get_parameters", names=["expiry", "policy"]).values
    while not heard:
        rclpy.spin_once(node, timeout_sec=5.0)
    status = heard[-1].status[0]
    said = {"states": [before, after], "done": done, "expiry": values[0].double_value, "policy": values[1].string_value}
    print(json.dumps({**said, "level": status.level[0], "name": status.name, "message": status.message}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
