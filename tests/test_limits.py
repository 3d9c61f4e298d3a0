"""Limits from demonstrations: what they never exceeded, on episodes that were not looked at."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from playing import runner

from envs.osc_arm import ABSOLUTE
from vla_runtime import collect
from vla_runtime.compose import BadArguments, load
from vla_runtime.control.limits import motion
from vla_runtime.control.measured_limits import Stretch, false_alarms, measure_limits
from vla_runtime.data.reader import Dataset
from vla_runtime.evaluation.folder import Job
from vla_runtime.limits import limits


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    out = tmp_path_factory.mktemp("limits") / "reach"
    wanted = ["env=reach", "env.size=16", "env.control=absolute", "episodes=6", "workers=1", "recover=true"]
    collect.collect(load("collect", [*wanted, f"out={out}"]))
    return out


def measured(recorded, out, *options):
    return limits(load("limits", [f"data={recorded}", f"out={out}", *options]))


def test_limits_are_taken_judged_and_used(recorded, tmp_path):
    path = tmp_path / "limits.yaml"
    found, code = measured(recorded, path, "margin=1.5")
    assert code == 0
    assert json.loads(json.dumps(found)) == found
    assert (found["learned_from"], found["held_out"]) == (8, 4)
    assert found["false_alarms"]["of_ticks"] > 50
    assert yaml.safe_load(path.read_text()) == found["groups"]
    dataset = Dataset(recorded, 1)
    rows = dataset.episode(0)[dataset.feature]
    speeds, _ = motion(dataset.action, "joints", rows, dataset.period)
    np.testing.assert_allclose(speeds, np.linalg.norm(np.diff(rows, axis=0), axis=1) / dataset.period, rtol=1e-4)
    row = runner("env=reach", "env.size=16", "env.control=absolute", "policy=expert", f"limits.groups={path}")(
        Job(0, 0)
    )
    assert row["success"]
    assert row["loop"]["limits"]["groups"] == found["groups"]
    assert row["limits"] == {}


def test_too_narrow_a_margin_is_told_by_its_false_alarms(recorded, tmp_path):
    dataset = Dataset(recorded, 1)
    whole = (dataset.episode(index)[dataset.feature] for index in range(len(dataset.episodes)))
    episodes = [Stretch(rows) for rows in whole if len(rows) > 5]
    slow = min(episodes, key=lambda one: motion(dataset.action, "joints", one.rows, dataset.period)[0].max())
    groups = measure_limits(dataset.action, [slow], dataset.period, 1.0)
    assert false_alarms(dataset.action, [slow], dataset.period, groups)["alarms"] == 0
    told = false_alarms(dataset.action, episodes, dataset.period, groups)
    assert told["alarmed"] == len(episodes) - 1
    assert told["alarms"] >= told["alarmed"]
    assert set(told["limits"]) <= {"joints speed", "joints acceleration", "joints workspace"}


def test_the_first_step_from_rest_counts():
    """As in a run, whose robot stands where it was seen: a goal ahead of it is a jump."""
    rows = np.tile(ABSOLUTE.example(), (6, 1))
    rows[:, 3:9] = [1, 0, 0, 0, 1, 0]
    still = rows[0].copy()
    still[0] -= 0.02
    groups = measure_limits(ABSOLUTE, [Stretch(rows, still)], 0.1, 1.0)
    assert groups["position"]["speed"] == pytest.approx(0.2, rel=1e-4)
    assert groups["position"]["acceleration"] == pytest.approx(2.0, rel=1e-4)
    blind = measure_limits(ABSOLUTE, [Stretch(rows)], 0.1, 1.0)
    assert false_alarms(ABSOLUTE, [Stretch(rows, still)], 0.1, groups)["alarms"] == 0
    assert false_alarms(ABSOLUTE, [Stretch(rows, still)], 0.1, blind)["alarms"] > 0


def test_rotations_have_speeds_but_no_workspace():
    rows = np.tile(ABSOLUTE.example(), (6, 1))
    rows[:, 0], rows[:, 3:9] = np.linspace(0, 0.1, 6), [1, 0, 0, 0, 1, 0]
    groups = measure_limits(ABSOLUTE, [Stretch(rows)], 0.1, 1.0)
    assert set(groups) == {"position", "rotation"}
    assert groups["position"]["speed"] == pytest.approx(0.2, rel=1e-5)
    assert groups["position"]["high"][0] == pytest.approx(0.1, abs=2e-6)
    assert set(groups["rotation"]) == {"speed", "acceleration"}


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (["margin=0.5"], BadArguments, "margin: expected at least 1"),
        (["held_out=1"], BadArguments, "held_out: expected a share"),
        (["out=null"], BadArguments, "expected data="),
        (["held_out=0.99"], ValueError, "expected more episodes than the 12 that are held out"),
    ],
)
def test_what_cannot_be_measured_is_refused(recorded, tmp_path, options, kind, message):
    with pytest.raises(kind, match=message):
        measured(recorded, tmp_path / "limits.yaml", *options)
    with pytest.raises(ValueError, match="expected episodes of more than 2 rows"):
        measure_limits(ABSOLUTE, [Stretch(ABSOLUTE.example()[None])], 0.1, 1.0)


def test_a_file_that_holds_no_limits_is_refused(tmp_path):
    path = tmp_path / "limits.yaml"
    path.write_text("- 1\n")
    for wrong in (path, tmp_path / "none.yaml"):
        with pytest.raises(BadArguments, match=r"limits\.groups: expected (limits by group|a YAML file)"):
            runner("env=reach", "policy=expert", f"limits.groups={wrong}")
