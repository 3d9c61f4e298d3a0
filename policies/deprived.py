"""A policy from which something is kept: what it does without tells whether it ever looked.

A control for evaluations. It wears the Policy protocol around a checkpoint's policy and hands on black
images, a state of zeros, or another instruction; it knows neither networks nor environments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from policies.checkpoint import pretrained
from vla_runtime.control.planner import forget
from vla_runtime.interfaces import Policy, Session
from vla_runtime.types import ActionChunk, EnvSpec, Float, Observation, PolicySpec

WITHOUT = ("images", "state", "instruction")


class Deprived:
    """Policy around `policy`. without: images (black), state (zeros) or instruction (the text `instead`).

    ValueError for anything else, for `instruction` without a text, and for a text without `instruction`.
    """

    def __init__(self, policy: Policy, without: str, instead: str | None = None):
        if without not in WITHOUT:
            raise ValueError(f"policy.without: expected one of {', '.join(WITHOUT)}, got {without!r}")
        if (without == "instruction") != (instead is not None):
            raise ValueError(
                f"policy.instead: expected a text with policy.without=instruction and none otherwise, got {instead!r}"
            )
        self._policy, self._without, self._instead = policy, without, instead

    @property
    def spec(self) -> PolicySpec:
        return self._policy.spec

    def begin(self, seed: int) -> DeprivedSession:
        """A session of the policy's own, deprived."""
        return DeprivedSession(self, self._policy.begin(seed))

    def close(self) -> None:
        self._policy.close()

    def deprived(self, observation: Observation) -> Observation:
        """What is left of an observation."""
        if self._without == "images":
            black = {name: np.zeros_like(image) for name, image in observation.images.items()}
            return replace(observation, images=black)
        if self._without == "state":
            return replace(observation, state=np.zeros_like(observation.state))
        return replace(observation, instruction=str(self._instead))


class DeprivedSession:
    """Session around a policy's own."""

    def __init__(self, policy: Deprived, session: Session):
        self._policy, self._session = policy, session

    def forget(self) -> None:
        """As the policy's own session does."""
        forget(self._session)

    def predict(
        self, observations: Sequence[Observation], committed: Float | None = None, deadline: float | None = None
    ) -> ActionChunk:
        return self._session.predict([self._policy.deprived(one) for one in observations], committed, deadline)


def deprived(
    env: EnvSpec,
    of: str,
    without: str,
    instead: str | None = None,
    device: str = "cpu",
    decode: Mapping[str, Any] | None = None,
) -> Deprived:
    """The policy of the checkpoint `of` (a folder, or a shipped policy's name), deprived; as `rollout` builds it."""
    return Deprived(pretrained(env, of, device=device, decode=decode), without, instead)
