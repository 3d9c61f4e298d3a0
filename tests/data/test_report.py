from html.parser import HTMLParser

import numpy as np
import pytest

from vla_runtime.data.idle import idle_rows, stretches
from vla_runtime.data.page import page
from vla_runtime.data.report import build, report
from vla_runtime.types import ActionSpec, Group, StateSpec

STATE = StateSpec((Group("fingers", ("left",), "measured", "m", (0.0,), (0.04,)),))
GRIPPER = Group("gripper", ("command",), "binary", "1", (-1.0,), (1.0,), open=-1.0, close=1.0)
DELTA = ActionSpec((Group("position", ("x",), "delta", "1", (-1.0,), (1.0,), dead_band=0.01), GRIPPER))
ABSOLUTE = ActionSpec((Group("position", ("x",), "absolute", "m", (-1.0,), (1.0,)), GRIPPER))


def columns(arm, gripper, fingers):
    return {
        "action": np.stack([arm, gripper], axis=1).astype(np.float32),
        "observation.state": np.array(fingers, np.float32)[:, None],
    }


def test_idle_needs_a_still_arm_and_a_still_gripper():
    made = columns(
        arm=[0.0, 0.0, 0.5, 0.005, 0.0, 0.0, 0.0, 0.0],
        gripper=[1, 1, 1, 1, 1, -1, -1, -1],
        fingers=[0, 0, 0, 0, 0, 0, 0.02, 0.02],
    )
    # Row 0 has no past; 2 moves the arm; 5 switches the gripper, whose fingers move until row 6.
    assert idle_rows(made, STATE, {"action": DELTA}).tolist() == [False, True, False, True, True, False, False, True]


def test_an_absolute_goal_said_again_is_idle():
    made = columns(arm=[0.1, 0.1, 0.2, 0.2], gripper=[1, 1, 1, 1], fingers=[0, 0, 0, 0])
    assert idle_rows(made, STATE, {"action": ABSOLUTE}).tolist() == [False, True, False, True]


def test_the_recorded_delta_is_judged_where_there_is_one():
    made = columns(arm=[0.1, 0.10001, 0.2], gripper=[1, 1, 1], fingers=[0, 0, 0])
    made["action.delta"] = np.array([[0.5, 1], [0.0, 1], [0.5, 1]], np.float32)
    assert idle_rows(made, STATE, {"action": ABSOLUTE, "action.delta": DELTA}).tolist() == [False, True, False]


def test_stretches():
    assert stretches(np.array([0, 1, 1, 0, 1], bool)) == [(1, 2), (4, 1)]
    assert stretches(np.zeros(3, bool)) == []


def test_numbers():
    first = columns(arm=[0.5, 0.0, 0.0, 0.2], gripper=[1, 1, 1, -1], fingers=[0, 0, 0, 0])
    second = columns(arm=[-0.5, 0.4], gripper=[-1, -1], fingers=[0, 0])
    facts = [{"task": 0, "trimmed": 2}, {"task": 1, "trimmed": 0}]
    attempts = [
        {"task": 0, "instruction": "a", "attempts": 2, "successes": 1, "success_rate": 0.5},
        {"task": 1, "instruction": "a", "attempts": 1, "successes": 1, "success_rate": 1.0},
    ]
    found = build([first, second], facts, attempts, STATE, {"action": DELTA})
    assert found["frames"] == 6
    assert found["length"] == {"min": 2, "median": 3.0, "max": 4}
    assert [task["episodes"] for task in found["tasks"]] == [1, 1]
    assert found["tasks"][0]["length"] == {"min": 4, "median": 4.0, "max": 4}
    assert found["idle"] == {
        "rows": 2,
        "share": pytest.approx(1 / 3),
        "stretches": 1,
        "longest": 2,
        "rows_if_trimmed": 4,
        "rows_already_trimmed": 2,
        "by_episode": [[[1, 2]], []],
    }
    arm = found["actions"]["action"][0]
    values = np.array([0.5, 0, 0, 0.2, -0.5, 0.4], np.float32).astype(np.float64)
    assert arm["name"] == "position.x"
    assert (arm["min"], arm["max"]) == (-0.5, 0.5)
    assert arm["q99"] == pytest.approx(np.quantile(values, 0.99))
    assert found["gripper_switches"] == {"min": 0, "median": 0.5, "max": 1, "by_episode": [1, 0]}


def test_report_of_a_set_and_its_page(embedded):
    found = report(embedded.folder)
    assert found["lengths"] == [7, 5, 6]
    text = page("Demonstrations of <tiny>", found, {"style": "uni"})

    class Checker(HTMLParser):
        def __init__(self):
            super().__init__()
            self.tags, self.outside = [], []

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)
            self.outside += [value for key, value in attrs if key in ("src", "href")]

    checker = Checker()
    checker.feed(text)
    assert "script" not in checker.tags
    assert checker.outside == []
    assert checker.tags.count("svg") >= 4
    assert "Demonstrations of &lt;tiny&gt;" in text
    assert "lift the cube" in text
    assert "50.0%" in text
