"""A policy without weights that plays recorded actions: it proves the line before a model is blamed.

An episode is found by the seed that its session began with, so a rollout with the environment, seed and
policy.seed of the recording meets the same initial states and gets the actions recorded there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_runtime.data.reader import Dataset
from vla_runtime.types import ActionChunk, EnvSpec, Float, Observation, PolicySpec


class Replay:
    """Policy: the recorded answers, `horizon` rows a chunk.

    data: a folder written by vla_runtime.collect. ValueError for a set recorded with recover=true: there
    the recorded action is the expert's answer and not what was executed, so playing it goes elsewhere.
    """

    def __init__(self, env: EnvSpec, data: str, horizon: int = 8):
        dataset = Dataset(data, horizon, cameras=())
        if dataset.own["recover"]:
            raise ValueError(
                f"policy.data={data}: expected a set recorded with recover=false, got recover=true; "
                "its actions answer pushes that a replay does not repeat"
            )
        self._episodes = {record.begin_seed: index for index, record in enumerate(dataset.episodes)}
        self._dataset = dataset
        self._spec = PolicySpec(
            name="replay",
            cameras=(),
            state=dataset.contract.state,
            action=dataset.contract.action,
            period=1.0 / dataset.contract.rate_hz,
            horizon=horizon,
            seen=dataset.initial_states,
        )

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    def begin(self, seed: int) -> ReplaySession:
        """The recorded episode that began with `seed`; ValueError when there is none."""
        if seed not in self._episodes:
            raise ValueError(
                f"{self._dataset.folder}: expected an episode that began with seed {seed}, got none among "
                f"{len(self._episodes)}; use the env, seed= and policy.seed= of the recording and its episodes"
            )
        actions = self._dataset.episode(self._episodes[seed])["action"]
        return ReplaySession(np.asarray(actions, np.float32), self._spec)

    def close(self) -> None:
        self._dataset.close()


class ReplaySession:
    """One recorded episode, played by the time of the observations."""

    def __init__(self, actions: Float, spec: PolicySpec):
        self._actions = actions
        self._spec = spec
        self._began: float | None = None

    def predict(
        self, observations: Sequence[Observation], committed: Float | None = None, deadline: float | None = None
    ) -> ActionChunk:
        time = observations[-1].time
        self._began = time if self._began is None else self._began
        first = round((time - self._began) / self._spec.period)
        rows = self._actions[first : first + self._spec.horizon]
        # Past its end the recording holds still in the way its own groups define it.
        still = self._spec.action.hold(self._actions[-1])
        missing = self._spec.horizon - len(rows)
        return ActionChunk(np.concatenate([rows, np.tile(still, (missing, 1))]), time, self._spec.period, time)
