"""The protocols that environments and policies wear; `vla_runtime.testing` checks a class against them.

A class needs no base: it fits when it has these members. Nothing here knows torch or a simulator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from vla_runtime.types import ActionChunk, Command, EnvSpec, Float, Observation, Outcome, PolicySpec


@runtime_checkable
class Session(Protocol):
    """One episode's worth of policy state; nothing survives it.

    One that uses what it said before (a warm start, guidance) also has `forget()`, called when motion begins anew.
    """

    def predict(
        self, observations: Sequence[Observation], committed: Float | None = None, deadline: float | None = None
    ) -> ActionChunk:
        """A chunk with start = observed = the newest observation's time.

        observations: oldest first, one per offset of the PolicySpec. committed: float32 [c, A], rows that
        will be executed anyhow. deadline: seconds from the call on within which an
        answer is useful, None: any time; one that can be brief then is, and `facts` say so.
        """


@runtime_checkable
class Policy(Protocol):
    """Something that predicts. Weights live here, per-episode state in the Session.

    One that answers several sessions in one pass also has `together()`, which gives (sessions, what each
    has seen, committed rows or None) -> chunks, equal up to rounding to what each session would say alone.
    """

    @property
    def spec(self) -> PolicySpec: ...

    def begin(self, seed: int) -> Session:
        """A fresh session; equal seeds give equal sessions."""

    def close(self) -> None: ...


@runtime_checkable
class Env(Protocol):
    """A world that can be observed and acted on, in simulation or not."""

    @property
    def spec(self) -> EnvSpec: ...

    def reset(self, seed: int, task: int, episode: int) -> Mapping[str, object]:
        """Begin an episode; equal arguments give an equal world, whatever ran before.

        Returns facts that go into the episode's row: JSON values, among them "initial_state", a hash
        of everything the episode starts from.
        """

    def observe(self, cameras: Sequence[str] = ()) -> Observation:
        """The state now, and the named cameras rendered now. Changes nothing."""

    def apply(self, command: Command) -> None:
        """Carry out one action for one control period. A velocity is not kept up beyond it: nobody takes it back."""

    def outcome(self) -> Outcome | None:
        """None while the episode runs. Reaching max_steps is the loop's business, not the environment's."""

    def expert(self, seed: int, style: str = "uni") -> Policy:
        """A scripted policy that reads privileged state; UnsupportedTask where there is none.

        style: "uni" solves a task one way, "multi" in several.
        """

    def close(self) -> None: ...
