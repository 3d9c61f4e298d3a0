"""What an operator does with ROS's own tools: transitions of a lifecycle node, its parameters, its diagnostics.

Usage: managing.py NODE, with a transition a line on stdin; says JSON a line.
"""

from __future__ import annotations

import json
import sys

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters


def main(name):
    rclpy.init()
    node = rclpy.create_node("operator")
    heard = []
    node.create_subscription(DiagnosticArray, "/diagnostics", heard.append, 10)

    def ask(kind, service, **fields):
        client = node.create_client(kind, f"/{name}/{service}")
        assert client.wait_for_service(10.0), service
        future = client.call_async(kind.Request(**fields))
        rclpy.spin_until_future_complete(node, future, timeout_sec=3.0)
        return future.result()

    for line in sys.stdin:
        before = ask(GetState, "get_state").current_state.label
        number = getattr(Transition, f"TRANSITION_{line.strip().upper()}")
        done = ask(ChangeState, "change_state", transition=Transition(id=number))
        after = ask(GetState, "get_state").current_state.label
        values = ask(GetParameters, "get_parameters", names=["expiry", "policy"]).values
        heard.clear()
        while not heard and transition_told(node):
            rclpy.spin_once(node, timeout_sec=5.0)
        status = heard[-1].status[0] if heard else None
        said = {
            "states": [before, after],
            "done": None if done is None else done.success,
            "expiry": values[0].double_value,
            "policy": values[1].string_value,
            "name": None if status is None else status.name,
        }
        print(json.dumps(said), flush=True)


def transition_told(node):
    """Whether anybody says diagnostics."""
    return node.count_publishers("/diagnostics") > 0


if __name__ == "__main__":
    main(*sys.argv[1:])
