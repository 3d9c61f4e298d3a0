"""`python -m vla_runtime.limits`: limits for a robot from a data set of good motion.

    python -m vla_runtime.limits data=data/lift control=absolute out=limits.yaml
    python -m vla_runtime.rollout env=lift limits.groups=limits.yaml

Most episodes say how fast and how far; the others, which are never looked at before, say how often that would have
been a false alarm. Rows that something pushed are no good motion and end a stretch of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from vla_runtime.compose import BadArguments, Config, Result, main
from vla_runtime.control.measured_limits import Stretch, false_alarms, measure_limits
from vla_runtime.control.standing import standing
from vla_runtime.data import schema
from vla_runtime.data.reader import Dataset
from vla_runtime.disk import write_text
from vla_runtime.evaluation.statistics import wilson_interval
from vla_runtime.types import EnvSpec, Observation


def limits(config: Config) -> Result:
    """Measure, judge, write; the last line and the exit code. BadArguments for options that cannot be."""
    if not config["data"] or not config["out"]:
        raise BadArguments("limits: expected data=<a data set> and out=<a file>, got none")
    if not 0 < config["held_out"] < 1:
        raise BadArguments(f"held_out: expected a share between 0 and 1, got {config['held_out']}")
    if not config["margin"] >= 1:
        raise BadArguments(f"margin: expected at least 1, got {config['margin']}")
    dataset = Dataset(config["data"], 1, control=config["control"])
    count = len(dataset.episodes)
    held = max(1, round(config["held_out"] * count))
    if held >= count:
        raise ValueError(f"data: expected more episodes than the {held} that are held out, got {count}")
    order = np.random.default_rng(config["seed"]).permutation(count)
    learned = [stretch for index in sorted(order[held:]) for stretch in _undisturbed(dataset, int(index))]
    judged = [_undisturbed(dataset, int(index)) for index in sorted(order[:held])]
    groups = measure_limits(dataset.action, learned, dataset.period, config["margin"])
    # An episode is alarmed when any stretch of it is.
    told = [false_alarms(dataset.action, stretches, dataset.period, groups) for stretches in judged]
    alarmed = sum(bool(one["alarmed"]) for one in told)
    ticks, alarms = (sum(one[name] for one in told) for name in ("ticks", "alarms"))
    text = f"# Of {count - held} episodes of {dataset.name}, with a margin of {config['margin']}.\n"
    write_text(Path(config["out"]), text + yaml.safe_dump(groups, sort_keys=False, default_flow_style=None))
    low, high = wilson_interval(alarmed, held)
    found = {
        "groups": groups,
        "learned_from": count - held,
        "held_out": held,
        "false_alarms": {
            "episodes": alarmed,
            "rate": round(alarmed / held, 6),
            "ci95": [round(low, 6), round(high, 6)],
            "ticks": alarms,
            "of_ticks": ticks,
        },
        "out": str(config["out"]),
    }
    return found, 0


def _undisturbed(dataset: Dataset, index: int) -> list[Stretch]:
    """Stretches of an episode in which nothing pushed; its beginning is from rest, as a run's is."""
    columns = dataset.episode(index)
    rows, disturbed = columns[dataset.feature], columns[schema.DISTURBED].astype(bool)
    stretches = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(disturbed.astype(int))) + 1)
    known = dataset.contract
    spec = EnvSpec(dataset.name, known.cameras, known.state, dataset.action, dataset.period, ("",), len(rows))
    still = standing(spec, Observation(columns[schema.STATE][0], {}, "", 0.0))
    return [
        Stretch(rows[part], None if part[0] else still) for part in stretches if len(part) and not disturbed[part[0]]
    ]


if __name__ == "__main__":
    main("limits", limits)
