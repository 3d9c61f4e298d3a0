"""Several sets read as one: every sample is one of theirs, and statistics are those of all rows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vla_runtime.data.joined import Joined
from vla_runtime.data.reader import Dataset
from vla_runtime.types import SpecMismatch


@pytest.fixture
def sets(factory, tmp_path):
    return [factory(tmp_path / name, lengths=lengths).folder for name, lengths in (("a", (7, 5)), ("b", (6, 4, 9)))]


def test_samples_follow_one_another(sets):
    one, two = (Dataset(folder, horizon=3) for folder in sets)
    joined = Joined.of(sets, 3, None)
    assert len(joined) == len(one) + len(two)
    episodes = [joined.episode_of(i) for i in range(len(joined))]
    assert episodes == sorted(episodes)
    assert set(episodes) == set(range(5)) == set(range(len(joined.episodes)))
    for i in (0, len(one) - 1, len(one), len(joined) - 1):
        source, inner = (one, i) if i < len(one) else (two, i - len(one))
        (observation, chunk), (expected, answer) = joined[i], source[inner]
        assert np.array_equal(observation.state, expected.state)
        assert np.array_equal(observation.images["front"], expected.images["front"])
        assert np.array_equal(chunk.actions, answer.actions)
        assert np.array_equal(joined.answer(i).actions, answer.actions)
        assert joined.foreseeable(i) == source.foreseeable(inner)
    with pytest.raises(IndexError):
        joined[len(joined)]


def test_statistics_are_those_of_all_rows(sets):
    joined = Joined.of(sets, 3, "absolute")
    rows = np.concatenate([Dataset(folder, 1).column("action.absolute") for folder in sets])
    found = joined.statistics()["action.absolute"]
    assert np.allclose(found["min"], rows.min(0))
    assert np.allclose(found["q99"], np.quantile(rows.astype(float), 0.99, axis=0))
    assert joined.statistics_id() not in {Dataset(folder, 1).statistics_id() for folder in sets}
    assert joined.statistics_id() == Joined.of(sets, 3, None).statistics_id()


def test_one_folder_is_the_set_itself(sets):
    assert isinstance(Joined.of(sets[0], 3, None), Dataset)
    with pytest.raises(ValueError, match="at least one"):
        Joined([])


def test_sets_that_mean_something_else_are_refused(sets):
    path = sets[1] / "meta/vla_runtime.json"
    own = json.loads(path.read_text())
    own["contract"]["state"][0]["units"] = "inch"
    path.write_text(json.dumps(own))
    with pytest.raises(SpecMismatch, match="units: expected m, got inch"):
        Joined.of(sets, 3, None)
