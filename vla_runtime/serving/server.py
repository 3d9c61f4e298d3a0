"""A policy behind a websocket, for our own clients and for openpi's.

The thread that talks never thinks: sessions live in a thread of their own, so that N clients share the weights and get
the answers they would get alone. A client that sends nonsense gets a text frame and stays connected; one that is silent
for too long, too large or not allowed in is turned away. It knows the Policy protocol and no policy.
"""

from __future__ import annotations

import asyncio
import hmac
import http
import logging
import ssl
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from vla_runtime.control.clock import Clock, SystemClock
from vla_runtime.interfaces import Policy
from vla_runtime.serving.conversation import Conversation
from vla_runtime.serving.protocol import Keys, metadata
from vla_runtime.serving.questions import Questions
from vla_runtime.wire import pack

# Seconds for those who wait for an answer when the server is told to end.
_DRAIN = 10.0
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
        self._policy, self._access, self._seed = policy, access or Access(), seed
        self._keys = keys or Keys.of(policy.spec)
        if len(policy.spec.observation_offsets) > 1:
            _log.warning(
                "%s sees several moments (%s periods before now), openpi's clients show one: they will be refused",
                policy.spec.name, list(policy.spec.observation_offsets),
            )  # fmt: skip
        self._clock = clock or SystemClock()
        self._metadata = pack(metadata(policy.spec, self._keys))
        self._metrics = _Metrics()
        self._questions = Questions(policy, self._clock, batch, self._metrics.infer.observe)
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
                await asyncio.wait_for(self._finished(), _DRAIN)
            except TimeoutError:
                _log.error("expected the policy to answer within %g s of the end, got nothing", _DRAIN)
                self._questions.end(wait=False)
                # Whoever still waits is told nothing.
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    task.cancel()
                return False
        self._questions.end()
        return True

    async def _finished(self) -> None:
        """Everybody who waited has an answer, and the policy thinks about nothing that was abandoned."""
        await self._quiet.wait()
        await self._questions.idle()

    async def warm_up(self) -> None:
        """Let the policy answer a question once, whatever it says, so that nobody waits for what its first takes."""
        await self._questions.warm_up(self._seed)

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
        client = Conversation(self._policy, self._questions, self._keys, self._seed, self._clock)
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

    async def _answered(self, connection: ServerConnection, client: Conversation, frame: str | bytes) -> None:
        began = self._clock.now()
        self._in_flight += 1
        self._quiet.clear()
        try:
            answer: str | bytes = await _while_open(connection, client.answer(frame, began))
            outcome = "answered"
        except _Gone:
            answer, outcome = "", "abandoned"
        except ValueError as error:
            answer, outcome = str(error), "refused"
        except Exception:
            # What went wrong in here is ours to read, not the client's.
            _log.exception("a request failed")
            answer, outcome = "internal error; the server's log says more", "failed"
        try:
            # One who asks and does not listen must not keep a server from ending. To one who is gone this says so.
            await asyncio.wait_for(connection.send(answer), self._access.idle)
        finally:
            self._metrics.requests.labels(outcome).inc()
            self._metrics.request.observe(self._clock.now() - began)
            self._in_flight -= 1
            if not self._in_flight:
                self._quiet.set()


class _Gone(Exception):
    """Nobody waits for this answer any more."""


async def _while_open(connection: ServerConnection, answer: Coroutine[Any, Any, bytes]) -> bytes:
    """The answer to a client's question. _Gone where its connection closes first: a question that still waits for the
    policy is then never asked, so that it delays nobody else.
    """
    asked, closed = asyncio.ensure_future(answer), asyncio.ensure_future(connection.wait_closed())
    try:
        await asyncio.wait((asked, closed), return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise _Gone
        return asked.result()
    finally:
        asked.cancel()
        closed.cancel()
