"""A policy in a process of its own: while it thinks, the loop has this process, and a core, to itself.

It wears the Policy protocol, so that whatever asks policies can ask it; the answers are the policy's own. A process
that dies is an error where its answer would have been. It knows no particular policy.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from vla_runtime.control.planner import forget
from vla_runtime.interfaces import Policy, Session
from vla_runtime.machine import one_core_left
from vla_runtime.types import ActionChunk, Float, Observation, PolicySpec

_log = logging.getLogger(__name__)

# Loading weights may take a while; dying after being told to must not.
_BUILD_TIMEOUT = 300.0
_END_TIMEOUT = 5.0


class Isolated:
    """The Policy that `build(*arguments)`, a module-level function, makes in a new process. One session at a time.

    What `build` raises is raised here; RuntimeError when the process dies or is not ready in time.
    """

    def __init__(self, build: Callable[..., Policy], arguments: tuple[Any, ...]):
        self._build, self._arguments = build, arguments
        self._sessions = 0
        # Whether a question is under way, in whatever thread.
        self._asked = False
        self._lock = threading.Lock()
        self._start()

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self._process.pid

    def begin(self, seed: int) -> Session:
        """A fresh session; one begun before is over.

        A process that died, or still thinks about a question of before, is replaced: its answer is nobody's.
        """
        if self._asked or not self._process.is_alive():
            _log.warning("the policy's process %s and is started anew", "still thinks" if self._asked else "has died")
            self.close()
            self._start()
        # The process begins it with its first question.
        self._sessions += 1
        return _Session(self, self._sessions, seed)

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def ask(self, session: int, seed: int, anew: bool, *question: Any) -> ActionChunk:
        """The answer of a session of the process, which begins it where it is new. RuntimeError without one.

        anew: let it forget what it said before.
        """
        if session != self._sessions:
            raise RuntimeError("the policy's process: expected the newest session, got one that is over")
        with self._lock:
            connection, process, self._asked = self._connection, self._process, True
            try:
                try:
                    connection.send((session, seed, anew, question))
                except OSError as error:
                    raise _dead(process) from error
                # Outside: what the policy raises may be an OSError, too.
                chunk: ActionChunk = self._receive(connection, process)
            finally:
                if process is self._process:
                    self._asked = False
        return chunk

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._build, self._arguments), daemon=True)
        with one_core_left():
            self._process.start()
        theirs.close()
        self._asked, self._lock = False, threading.Lock()
        try:
            if not self._connection.poll(_BUILD_TIMEOUT):
                raise RuntimeError(f"the policy's process: expected a policy within {_BUILD_TIMEOUT:g} s, got none")
            self._spec: PolicySpec = self._receive(self._connection, self._process)
        except BaseException:
            self.close()
            raise

    def _receive(self, connection: Connection, process: Any) -> Any:
        try:
            kind, value = connection.recv()
        except (EOFError, OSError) as error:
            raise _dead(process) from error
        if kind == "error":
            raise value
        return value


def _dead(process: Any) -> RuntimeError:
    process.join(_END_TIMEOUT)
    return RuntimeError(f"the policy's process died (exit code {process.exitcode}): expected an answer, got none")


class _Session:
    def __init__(self, policy: Isolated, number: int, seed: int):
        self._policy, self._number, self._seed, self._anew = policy, number, seed, False

    def predict(
        self, observations: Sequence[Observation], committed: Float | None = None, deadline: float | None = None
    ) -> ActionChunk:
        anew, self._anew = self._anew, False
        return self._policy.ask(self._number, self._seed, anew, tuple(observations), committed, deadline)

    def forget(self) -> None:
        """Motion begins anew: the session in the process is told so before the next question."""
        self._anew = True


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
            number, seed, anew, question = connection.recv()
            try:
                if number != current or session is None:
                    current, session = number, policy.begin(seed)
                if anew:
                    forget(session)
                answer = ("answer", session.predict(*question))
            except BaseException as problem:
                tell(connection, problem)
                continue
            connection.send(answer)


def tell(connection: Connection, problem: BaseException) -> None:
    """Send ("error", problem) to the other end; what cannot be pickled, or read again, is told by its text."""
    try:
        pickle.loads(pickle.dumps(problem))
    except Exception:
        problem = RuntimeError(f"{type(problem).__name__}: {problem}")
    connection.send(("error", problem))
