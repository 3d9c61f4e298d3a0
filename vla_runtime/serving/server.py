"""A policy behind a websocket, for our own clients and for openpi's.

The thread that talks never thinks: sessions live in a pool of one thread, so that N clients share the weights and get
the answers they would get alone; where a batch is allowed, questions that wait are answered in one pass. A client that
sends nonsense gets a text frame and stays connected; one that is silent for too long, too large or not allowed in is
turned away. It knows the Policy protocol and no policy.
"""

from __future__ import annotations

import asyncio
import hmac
import http
import logging
import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from vla_runtime.control.clock import Clock, SystemClock
from vla_runtime.control.planner import forget, warm_up
from vla_runtime.interfaces import Policy, Session
from vla_runtime.messages import chunk_document, read_observation
from vla_runtime.serving.protocol import OURS, VERSION, Keys, check_kind, metadata, read_openpi
from vla_runtime.types import ActionChunk, Float, Observation
from vla_runtime.wire import pack, unpack

_KINDS = ("begin", "forget", "predict")
# Bytes of a message that is read at once, and seconds for those who wait for an answer when the server is told to end.
_BRIEF, _DRAIN = 2**22, 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Access:
    """Who may come in, and how much of the server one may use.

    token: what clients must show as `Authorization: Api-Key <token>`, None for anybody. connections: most at once.
    largest: bytes of a message. idle: seconds of silence after which a client is let go. ValueError for a number
    that is not above 0 and for an empty token.
    """

    token: str | None = None
    connections: int = 64
    largest: int = 32 * 1024 * 1024
    idle: float = 300.0

    def __post_init__(self) -> None:
        for name in ("connections", "largest", "idle"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if self.token is not None and not self.token:
            raise ValueError("token: expected some text, got none")


class _Metrics:
    """What /metrics tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "vla_requests", "Requests answered, by how they ended", ["outcome"], registry=self.registry
        )
        self.connections = Gauge("vla_connections", "Clients connected", registry=self.registry)
        self.refused = Counter("vla_refused", "Connections turned away", ["reason"], registry=self.registry)
        buckets = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
        self.infer = Histogram("vla_infer_seconds", "Time the policy took", buckets=buckets, registry=self.registry)
        self.request = Histogram(
            "vla_request_seconds", "Time from a request to its answer", buckets=buckets, registry=self.registry
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)


class PolicyServer:
    """Serves `policy` until told to stop. seed: of the sessions that answer openpi clients, a fresh one a request.

    batch: questions that may be answered in one pass; answers are then equal to 1e-5. ValueError for more than one
    where the policy cannot.
    """

    def __init__(
        self, policy: Policy, access: Access | None = None, keys: Keys | None = None, seed: int = 0,
        clock: Clock | None = None, batch: int = 1,
    ):  # fmt: skip
        if batch < 1:
            raise ValueError(f"batch: expected at least 1, got {batch}")
        self._together: Any = None
        if batch > 1:
            together = getattr(policy, "together", None)
            if together is None:
                raise ValueError(
                    f"batch: expected a policy that answers several sessions in one pass, got {policy.spec.name}; "
                    "take batch=1"
                )
            self._together = together()
        self._batch = batch
        self._asked: list[_Asked] = []
        self._answering: asyncio.Task[None] | None = None
        self._policy, self._access, self._seed = policy, access or Access(), seed
        self._keys = keys or Keys.of(policy.spec)
        if len(policy.spec.observation_offsets) > 1:
            _log.warning(
                "%s sees several moments (%s periods before now), openpi's clients show one: they will be refused",
                policy.spec.name, list(policy.spec.observation_offsets),
            )  # fmt: skip
        self._clock = clock or SystemClock()
        self._metadata = pack(metadata(policy.spec, self._keys))
        self._thinking = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._metrics = _Metrics()
        self._open = 0
        self._in_flight = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._draining = False

    async def serve(
        self,
        host: str,
        port: int,
        stop: asyncio.Event,
        ready: Callable[[int], None] = lambda port: None,
        tls: ssl.SSLContext | None = None,
    ) -> bool:
        """Serve at host:port (0: a free one, told to `ready`) until `stop` is set; then answer what was asked. False
        for a policy that did not answer in time.
        """
        server: Server = await serve(
            self._talk, host, port, process_request=self._admit, max_size=self._access.largest, compression=None,
            ssl=tls, open_timeout=10, close_timeout=2,
            # Whoever asks again before there is an answer waits where it is.
            max_queue=1,
        )  # fmt: skip
        async with server:
            ready(server.sockets[0].getsockname()[1])
            await stop.wait()
            # No new questions; whoever waits for an answer gets it.
            self._draining = True
            try:
                await asyncio.wait_for(self._quiet.wait(), _DRAIN)
            except TimeoutError:
                _log.error("expected the policy to answer within %g s of the end, got nothing", _DRAIN)
                self._thinking.shutdown(wait=False, cancel_futures=True)
                # Whoever still waits is told nothing.
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    task.cancel()
                return False
        self._thinking.shutdown()
        return True

    async def warm_up(self) -> None:
        """Let the policy answer a question once, whatever it says, so that nobody waits for what its first takes."""
        await asyncio.get_running_loop().run_in_executor(self._thinking, warm_up, self._policy, self._seed)

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if request.path == "/metrics":
            return connection.respond(http.HTTPStatus.OK, self._metrics.text().decode())
        token = self._access.token
        if token is not None:
            shown = request.headers.get("Authorization", "")
            if not hmac.compare_digest(shown.encode(), f"Api-Key {token}".encode()):
                return self._turned_away(
                    connection, http.HTTPStatus.UNAUTHORIZED, "token", "expected a token, got none\n"
                )
        if self._open >= self._access.connections or self._draining:
            return self._turned_away(
                connection, http.HTTPStatus.SERVICE_UNAVAILABLE, "full",
                f"expected at most {self._access.connections} clients; try again later\n",
            )  # fmt: skip
        return None

    def _turned_away(self, connection: ServerConnection, status: http.HTTPStatus, reason: str, text: str) -> Response:
        self._metrics.refused.labels(reason).inc()
        return connection.respond(status, text)

    async def _talk(self, connection: ServerConnection) -> None:
        self._open += 1
        self._metrics.connections.set(self._open)
        client = _Client(self)
        try:
            await connection.send(self._metadata)
            while not self._draining:
                frame = await asyncio.wait_for(connection.recv(), self._access.idle)
                await self._answered(connection, client, frame)
        except TimeoutError:
            goodbye = f"expected a message within {self._access.idle:g} s, got none; goodbye"
            with suppress(ConnectionClosed, TimeoutError):
                await asyncio.wait_for(connection.send(goodbye), self._access.idle)
        except ConnectionClosed:
            pass
        finally:
            self._open -= 1
            self._metrics.connections.set(self._open)

    async def _answered(self, connection: ServerConnection, client: _Client, frame: str | bytes) -> None:
        began = self._clock.now()
        self._in_flight += 1
        self._quiet.clear()
        try:
            answer: str | bytes = await client.answer(frame, began)
            outcome = "answered"
        except ValueError as error:
            answer, outcome = str(error), "refused"
        except Exception:
            # What went wrong in here is ours to read, not the client's.
            _log.exception("a request failed")
            answer, outcome = "internal error; the server's log says more", "failed"
        try:
            # One who asks and does not listen must not keep a server from ending.
            await asyncio.wait_for(connection.send(answer), self._access.idle)
        finally:
            self._metrics.requests.labels(outcome).inc()
            self._metrics.request.observe(self._clock.now() - began)
            self._in_flight -= 1
            if not self._in_flight:
                self._quiet.set()

    async def think(self, call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
        """The result of a call in the policy's thread, and the seconds it took there."""

        def timed() -> tuple[Any, float]:
            began = self._clock.now()
            result = call(*arguments)
            return result, self._clock.now() - began

        found, seconds = await asyncio.get_running_loop().run_in_executor(self._thinking, timed)
        self._metrics.infer.observe(seconds)
        return found, seconds

    async def predict(
        self, session: Callable[[], Session], seen: list[Observation], committed: Float | None, deadline: float | None
    ) -> tuple[ActionChunk, float]:
        """A session's chunk and the seconds it took, alone or with those that wait, too."""
        latest = None if deadline is None else self._clock.now() + deadline
        asked = _Asked(session, seen, committed, latest, asyncio.get_running_loop().create_future())
        # Whoever can be brief is asked alone where there is a deadline: a pass of several takes as long as its slowest.
        if self._together is None or (latest is not None and "rounds" in self._policy.spec.decode):
            found: tuple[ActionChunk, float] = await self.think(asked.alone, self._clock)
            return found
        self._asked.append(asked)
        if self._answering is None:
            self._answering = asyncio.create_task(self._answer())
        answer: tuple[ActionChunk, float] = await asked.answer
        return answer

    async def _answer(self) -> None:
        """Answer all that wait, as many at a time as are allowed."""
        try:
            while self._asked:
                some, self._asked = self._asked[: self._batch], self._asked[self._batch :]
                for one, found in zip(some, await self._answers(some), strict=True):
                    # Whoever has gone meanwhile needs none.
                    if not one.answer.done():
                        one.answer.set_exception(found) if isinstance(found, Exception) else one.answer.set_result(
                            found
                        )
        finally:
            self._answering = None

    async def _answers(self, some: list[_Asked]) -> list[Any]:
        if len(some) > 1:
            try:
                chunks, seconds = await self.think(self._in_one_pass, some)
                return [(chunk, seconds) for chunk in chunks]
            except Exception as error:
                # Somebody's question is wrong: each is asked alone, so that it spoils nobody's answer.
                _log.info("%d questions are answered one by one: %s", len(some), error)
        answers: list[Any] = []
        for one in some:
            try:
                answers.append(await self.think(one.alone, self._clock))
            except Exception as error:
                answers.append(error)
        return answers

    def _in_one_pass(self, some: list[_Asked]) -> list[ActionChunk]:
        for one in some:
            one.begin()
        sessions, seen = [one.begun for one in some], [one.seen for one in some]
        found: list[ActionChunk] = self._together(sessions, seen, [one.committed for one in some])
        if len(found) != len(some):
            raise RuntimeError(f"together: expected {len(some)} chunks, got {len(found)}")
        return found

    @property
    def policy(self) -> Policy:
        return self._policy

    def read_openpi(self, message: Mapping[str, Any], time: float) -> Any:
        return read_openpi(message, self._policy.spec, self._keys, time)

    def fresh(self) -> Session:
        """A session for one question of an openpi client."""
        return self._policy.begin(self._seed)

    def since(self, began: float) -> float:
        return self._clock.now() - began


@dataclass(slots=True, eq=False)
class _Asked:
    """A question that waits. session: makes or gives the session that is asked; latest: when an answer is late."""

    session: Callable[[], Session]
    seen: list[Observation]
    committed: Float | None
    latest: float | None
    answer: asyncio.Future[tuple[ActionChunk, float]]
    begun: Session | None = None

    def begin(self) -> Session:
        """The session; made once, in the policy's thread."""
        self.begun = self.begun or self.session()
        return self.begun

    def alone(self, clock: Clock) -> ActionChunk:
        """Its own answer. What it waited for others is part of its time."""
        left = None if self.latest is None else self.latest - clock.now()
        return self.begin().predict(self.seen, self.committed, left)


class _Client:
    """One connection: at most one session of ours."""

    def __init__(self, server: PolicyServer):
        self._server = server
        self._session: Session | None = None

    async def answer(self, frame: str | bytes, began: float) -> bytes:
        if isinstance(frame, str):
            raise ValueError("message: expected a binary frame, got text")
        # What takes its time is done beside the loop that listens to everybody.
        message = unpack(frame) if len(frame) < _BRIEF else await asyncio.to_thread(unpack, frame)
        kind = check_kind(message, _KINDS)
        if kind is None:
            return await self._openpi(message, began)
        if kind == "begin":
            seed = message.get("seed")
            if not isinstance(seed, int) or seed < 0:
                raise ValueError(f"begin: expected a seed from 0 on, got {seed!r}")
            self._session, _ = await self._server.think(self._server.policy.begin, seed)
            return pack({OURS: VERSION, "kind": "begun"})
        if kind == "forget":
            if self._session is None:
                raise ValueError("forget: expected a session, got none; send begin first")
            await self._server.think(forget, self._session)
            return pack({OURS: VERSION, "kind": "forgotten"})
        return await self._predict(message, began)

    async def _predict(self, message: Mapping[str, Any], began: float) -> bytes:
        session = self._session
        if session is None:
            raise ValueError("predict: expected a session, got none; send begin first")
        seen = message.get("observations")
        if not isinstance(seen, list) or not seen:
            raise ValueError("predict: expected a list of observations, oldest first, got none")
        cameras = self._server.policy.spec.cameras
        observations = await asyncio.to_thread(lambda: [read_observation(one, cameras) for one in seen])
        committed, deadline = message.get("committed"), message.get("deadline")
        if committed is not None and not isinstance(committed, np.ndarray):
            raise ValueError(f"predict: expected committed rows as an array, got {type(committed).__name__}")
        if deadline is not None and (isinstance(deadline, bool) or not isinstance(deadline, int | float)):
            raise ValueError(f"predict: expected a deadline in seconds or none, got {type(deadline).__name__}")
        chunk, seconds = await self._server.predict(lambda: session, observations, committed, deadline)
        answer = {OURS: VERSION, "kind": "chunk", "chunk": chunk_document(chunk)}
        return pack({**answer, "server_timing": self._timing(seconds, began)})

    async def _openpi(self, message: Mapping[str, Any], began: float) -> bytes:
        observation = await asyncio.to_thread(self._server.read_openpi, message, 0.0)
        chunk, seconds = await self._server.predict(self._server.fresh, [observation], None, None)
        facts = {name: float(value) for name, value in chunk.facts.items()}
        # Every array with the rows first: chunk brokers cut all of them alike.
        return pack({"actions": chunk.actions, "facts": facts, "server_timing": self._timing(seconds, began)})

    def _timing(self, seconds: float, began: float) -> dict[str, float]:
        whole = self._server.since(began)
        return {"infer_ms": 1e3 * seconds, "server_ms": 1e3 * whole}
