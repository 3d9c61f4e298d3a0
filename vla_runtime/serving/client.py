"""A policy that lives behind a socket, ours or a stock openpi server's, worn as a Policy.

Importing it needs the light core only. Every wait has an end; a connection that breaks is made anew for the next
question, but no question is asked twice and no old answer is taken for a new one. Clocks of two machines are never
compared: a server answers about observations by the time they were given.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any
from weakref import WeakSet

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidProxy, InvalidURI
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

from vla_runtime.contract import Contract
from vla_runtime.interfaces import Session
from vla_runtime.messages import ENCODINGS, encode_image, observation_document, read_chunk, read_policy
from vla_runtime.serving.protocol import OURS, VERSION, Keys
from vla_runtime.types import ActionChunk, EnvSpec, Float, Observation, PolicySpec, SpecMismatch
from vla_runtime.wire import bound_sending, encryption, pack, proxy_of, through, unpack

_log = logging.getLogger(__name__)

# Answers are chunks of some kilobytes; metadata name the initial states a policy was trained on.
_LARGEST = 64 * 1024 * 1024


class RemoteError(RuntimeError):
    """The server is not there, does not answer in time, or says that something is wrong."""


class RemotePolicy:
    """The Policy served at `address` (ws://host:port or wss://).

    encoding: how images travel: raw, png or jpeg. timeout: seconds for an answer, and for a connection. token: shown as
    an openpi server's API key. contract: what a server that is not ours serves, as a document or a YAML file; keys:
    how it wants things named, as `vla_runtime.serving.protocol.Keys`. ca: a PEM file of who vouches for a wss://
    server, None for whom the system trusts. proxy: http://host:port or the like that connections go through, None for
    none, whatever the environment says. RemoteError when there is no server, SpecMismatch when it serves another
    contract than `contract`.
    """

    def __init__(
        self,
        address: str,
        encoding: str = "raw",
        timeout: float = 10.0,
        token: str | None = None,
        contract: Mapping[str, Any] | str | None = None,
        keys: Mapping[str, Any] | None = None,
        ca: str | None = None,
        proxy: str | None = None,
    ):
        if encoding not in ENCODINGS:
            raise ValueError(f"policy.encoding: expected one of {', '.join(ENCODINGS)}, got {encoding!r}")
        if not timeout > 0:
            raise ValueError(f"policy.timeout: expected more than 0 seconds, got {timeout}")
        self.address, self.encoding, self._token, self._timeout = address, encoding, token, timeout
        try:
            self._tls, self._proxy = encryption(address, ca), proxy_of(proxy)
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"policy.{error}") from error
        # Whoever still has a session keeps its line; a session that is gone takes its line along.
        self._lines: WeakSet[_Line] = WeakSet()
        line = self._line()
        metadata = line.connect()
        line.drop()
        self.ours = isinstance(metadata, dict) and metadata.get(OURS) == VERSION
        if self.ours:
            if contract is not None or keys is not None:
                raise ValueError(
                    "policy.contract, policy.keys: expected none, since this server states its own, got some"
                )
            self._spec, self._stated = read_policy(metadata["policy"]), metadata["policy"]
        else:
            if encoding != "raw":
                raise ValueError(
                    f"policy.encoding: expected raw for a server that is not ours and takes arrays only, got {encoding}"
                )
            self._spec = _stock_spec(address, contract)
            self._keys = Keys.of(self._spec, **(keys or {}))

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    def begin(self, seed: int) -> Session:
        """A fresh session, with a connection of its own."""
        return _RemoteSession(self, self._line(), seed)

    def close(self) -> None:
        """Close all connections."""
        for line in list(self._lines):
            line.drop()

    def connect(self, line: _Line) -> None:
        """Connect once more. RemoteError for a server of another policy than at first: nobody compared its contract."""
        metadata = line.connect()
        ours = isinstance(metadata, dict) and metadata.get(OURS) == VERSION
        if ours != self.ours or (ours and metadata["policy"] != self._stated):
            line.drop()
            name = metadata["policy"].get("name") if ours else "a server that is not ours"
            weights = metadata["policy"].get("weights") if ours else None
            raise RemoteError(
                f"{self.address}: expected the policy {self._spec.name} (weights {self._spec.weights}) that was there "
                f"at first, got {name} (weights {weights}), or the same otherwise; start anew"
            )

    def message(self, observations: Sequence[Observation], committed: Float | None, deadline: float | None) -> Any:
        """What this server is to be asked with."""
        if self.ours:
            seen = [observation_document(one, self.encoding) for one in observations]
            asked = {"observations": seen, "committed": committed, "deadline": deadline}
            return {OURS: VERSION, "kind": "predict", **asked}
        newest, keys = observations[-1], self._keys
        images = {key: encode_image(newest.images[name], "raw") for name, key in keys.cameras.items()}
        return {**images, keys.state: newest.state, keys.prompt: newest.instruction}

    def _line(self) -> _Line:
        line = _Line(self.address, self._token, self._timeout, self._tls, self._proxy)
        self._lines.add(line)
        return line


class _Line:
    """One connection, made when it is needed and given up when anything goes wrong on it."""

    def __init__(
        self, address: str, token: str | None, timeout: float, tls: ssl.SSLContext | None = None,
        proxy: str | None = None,
    ):  # fmt: skip
        self._address, self._token, self._timeout, self._tls, self._proxy = address, token, timeout, tls, proxy
        self._connection: ClientConnection | None = None
        self._open = ExitStack()

    def __del__(self) -> None:
        self.drop()

    @property
    def is_open(self) -> bool:
        """Whether the server listens; one that has hung up since (it does so after a long silence) does not."""
        return self._connection is not None and self._connection.protocol.state is State.OPEN

    def connect(self) -> Any:
        """Connect; the server's metadata."""
        headers = None if self._token is None else {"Authorization": f"Api-Key {self._token}"}
        try:
            self._connection = self._open.enter_context(
                connect(
                    self._address, open_timeout=self._timeout, close_timeout=1, max_size=_LARGEST, compression=None,
                    additional_headers=headers, ssl=self._tls, proxy=self._proxy,
                )
            )  # fmt: skip
            bound_sending(self._connection.socket, self._timeout)
            return self._received()
        except (OSError, InvalidHandshake, InvalidProxy, InvalidURI, TimeoutError, ConnectionClosed) as error:
            self.drop()
            raise RemoteError(
                f"{self._address}: expected a policy server{through(self._proxy)}, got {type(error).__name__}: {error}"
            ) from error

    def exchange(self, message: Mapping[str, Any]) -> Any:
        """The answer to a message. RemoteError without one; the connection is then given up."""
        try:
            assert self._connection is not None
            self._connection.send(pack(message))
            return self._received()
        except (ConnectionClosed, OSError) as error:
            self.drop()
            raise RemoteError(f"{self._address}: expected a connection that takes what is sent, got {error}") from error
        except BaseException:
            # An answer may still come: nobody may take it for that to another question.
            self.drop()
            raise

    def drop(self) -> None:
        """Close."""
        self._connection = None
        self._open.close()

    def _received(self) -> Any:
        assert self._connection is not None
        try:
            frame = self._connection.recv(self._timeout)
        except TimeoutError as error:
            raise RemoteError(f"{self._address}: expected an answer within {self._timeout:g} s, got none") from error
        except ConnectionClosed as error:
            raise RemoteError(f"{self._address}: expected an answer, got {error}") from error
        if isinstance(frame, str):
            raise RemoteError(f"{self._address}: the server says: {frame}")
        try:
            return unpack(frame)
        except ValueError as error:
            raise RemoteError(f"{self._address}: {error}") from error


class _RemoteSession:
    def __init__(self, policy: RemotePolicy, line: _Line, seed: int):
        self._policy, self._line, self._seed = policy, line, seed
        self._anew = False

    def forget(self) -> None:
        """Motion begins anew: the server's session is told so before the next question."""
        self._anew = True

    def predict(
        self, observations: Sequence[Observation], committed: Float | None = None, deadline: float | None = None
    ) -> ActionChunk:
        policy, line = self._policy, self._line
        if not line.is_open:
            line.drop()
            policy.connect(line)
            if policy.ours:
                line.exchange({OURS: VERSION, "kind": "begin", "seed": self._seed})
        if self._anew and policy.ours:
            line.exchange({OURS: VERSION, "kind": "forget"})
        self._anew = False
        answer = line.exchange(policy.message(observations, committed, deadline))
        time, period = observations[-1].time, policy.spec.period
        if not policy.ours:
            return ActionChunk(_stock_rows(answer, policy.spec), time, period, time)
        try:
            chunk = read_chunk(answer["chunk"])
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteError(f"{policy.address}: expected a chunk, got {error}") from error
        if chunk.observed != time:
            raise RemoteError(
                f"{policy.address}: expected an answer to the observation of {time:.6f} s, got one to "
                f"{chunk.observed:.6f} s"
            )
        return chunk


def _stock_spec(address: str, contract: Mapping[str, Any] | str | None) -> PolicySpec:
    """The spec of a server that states no contract. ValueError where nobody does."""
    if contract is None:
        raise ValueError(
            f"policy.contract: expected what {address} serves, which states no contract of its own, got none; give a "
            "YAML file with one (horizon included)"
        )
    found = Contract.load(contract) if isinstance(contract, str) else Contract.read(contract)
    if found.horizon is None:
        raise SpecMismatch("policy.contract: expected a horizon, got none")
    return PolicySpec(
        "remote", found.cameras, found.state, found.action, 1.0 / found.rate_hz, found.horizon,
        statistics=found.statistics,
    )  # fmt: skip


def _stock_rows(answer: Any, spec: PolicySpec) -> Float:
    rows = answer.get("actions") if isinstance(answer, Mapping) else None
    if not isinstance(rows, np.ndarray) or rows.shape != (spec.horizon, spec.action.size):
        got = list(rows.shape) if isinstance(rows, np.ndarray) else type(rows).__name__
        raise SpecMismatch(f"actions: expected [{spec.horizon}, {spec.action.size}], got {got}")
    return rows.astype(np.float32)


def remote(
    env: EnvSpec,
    address: str | None,
    encoding: str = "raw",
    timeout: float = 10.0,
    token: str | None = None,
    contract: str | None = None,
    keys: Mapping[str, Any] | None = None,
    ca: str | None = None,
    proxy: str | None = None,
) -> RemotePolicy:
    """As `rollout` builds it; the runner compares its contract with the environment's."""
    if not address:
        raise ValueError("policy.address: expected ws://host:port, got none")
    return RemotePolicy(address, encoding, timeout, token, contract, keys, ca, proxy)
