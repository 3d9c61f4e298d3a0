"""A policy in a process of its own: while it thinks, the loop has this process to itself.

It wears the Policy protocol, so that whatever asks policies can ask it; the answers are the policy's own. A process
that dies is an error where its answer would have been. It knows no particular policy.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pickle import PicklingError
from typing import Any

from vla_runtime.interfaces import Policy, Session
from vla_runtime.types import ActionChunk, Float, Observation, PolicySpec

# Loading weights may take a while; dying after being told to must not.
_BUILD_TIMEOUT = 300.0
_END_TIMEOUT = 5.0


class Isolated:
    """The Policy that `build(*arguments)`, a module-level function, makes in a new process. One session at a time.

    What `build` raises is raised here; RuntimeError when the process dies or is not ready in time.
    """

    def __init__(self, build: Callable[..., Policy], arguments: tuple[Any, ...]):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._sessions = 0
        if not self._connection.poll(_BUILD_TIMEOUT):
            self.close()
            raise RuntimeError(f"the policy's process: expected a policy within {_BUILD_TIMEOUT:g} s, got none")
        try:
            self._spec: PolicySpec = self._receive()
        except BaseException:
            self.close()
            raise

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self._process.pid

    def begin(self, seed: int) -> Session:
        """A fresh session; one begun before is over."""
        self._sessions += 1
        return _Session(self, self._sessions, seed)

    def close(self) -> None:
        """End the process, whatever it does."""
        self._connection.close()
        self._process.join(_END_TIMEOUT)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def ask(self, session: int, seed: int, *question: Any) -> ActionChunk:
        """The answer of a session of the process, which begins it where it is new."""
        if session != self._sessions:
            raise RuntimeError("the policy's process: expected the newest session, got one that is over")
        try:
            self._connection.send((session, seed, question))
        except (BrokenPipeError, OSError) as error:
            raise self._dead() from error
        chunk: ActionChunk = self._receive()
        return chunk

    def _receive(self) -> Any:
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._dead() from error
        if kind == "error":
            raise value
        return value

    def _dead(self) -> RuntimeError:
        self._process.join(_END_TIMEOUT)
        return RuntimeError(
            f"the policy's process died (exit code {self._process.exitcode}): expected an answer, got none"
        )


class _Session:
    def __init__(self, policy: Isolated, number: int, seed: int):
        self._policy, self._number, self._seed = policy, number, seed

    def predict(
        self, observations: Sequence[Observation], committed: Float | None = None, deadline: float | None = None
    ) -> ActionChunk:
        return self._policy.ask(self._number, self._seed, tuple(observations), committed, deadline)


def _serve(connection: Connection, build: Callable[..., Policy], arguments: tuple[Any, ...]) -> None:
    # Ctrl-C reaches the whole group: the parent decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, BrokenPipeError):
        try:
            policy = build(*arguments)
        except BaseException as problem:
            tell(connection, problem)
            return
        connection.send(("ready", policy.spec))
        current, session = 0, None
        while True:
            number, seed, question = connection.recv()
            try:
                if number != current or session is None:
                    current, session = number, policy.begin(seed)
                answer = ("answer", session.predict(*question))
            except BaseException as problem:
                tell(connection, problem)
                continue
            connection.send(answer)


def tell(connection: Connection, problem: BaseException) -> None:
    """Send ("error", problem) to the other end; what cannot be pickled is told by its text."""
    try:
        connection.send(("error", problem))
    except (PicklingError, TypeError, AttributeError):
        connection.send(("error", RuntimeError(f"{type(problem).__name__}: {problem}")))
