"""`python -m vla_runtime.serve`: a policy behind a websocket.

    python -m vla_runtime.serve policy=nano_lift_beast

openpi's WebsocketClientPolicy and ActionChunkBroker work against it unchanged, and so does `policy=remote` of our own.
It says where on stderr when it is ready, answers what was asked when it is told to stop (SIGTERM, Ctrl-C), and ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
from typing import Any

from vla_runtime.compose import BadArguments, Config, Result, build, main
from vla_runtime.contract import Contract, at_rate, require_match
from vla_runtime.interfaces import Policy
from vla_runtime.seeds import check_seed
from vla_runtime.serving.protocol import Keys
from vla_runtime.serving.server import Access, PolicyServer

_log = logging.getLogger(__name__)


def serve(config: Config) -> Result:
    """Serve until told to stop; the last line and the exit code. BadArguments for options that cannot be."""
    values = dict(config["policy"])
    values.pop("seed")
    if values["_target_"] == "expert" or "folder" not in values:
        raise BadArguments(f"policy: expected a trained policy, got {config['choices']['policy']}")
    try:
        access = Access(config["token"], config["connections"], config["largest"], config["idle"])
        tls = _tls(config["certificate"], config["key"])
        check_seed("seed", config["seed"])
    except (ValueError, OSError) as error:
        raise BadArguments(str(error)) from error
    if not isinstance(config["port"], int) or not 0 <= config["port"] < 65536:
        raise BadArguments(f"port: expected 0 to 65535, got {config['port']!r}")
    if config["host"] not in ("127.0.0.1", "::1", "localhost") and access.token is None:
        _log.warning("host=%s without token=: whoever reaches this machine can ask this policy", config["host"])
    # A served policy has no environment yet: its contract is told to clients, who compare.
    policy: Policy = build({**values, "env": None})
    if config["contract"] is not None:
        robot = Contract.load(config["contract"])
        wanted = at_rate(Contract.of(policy.spec), robot.rate_hz)
        require_match(robot, wanted, f"contract {config['contract']}", policy.spec.name)
    try:
        keys = Keys.of(policy.spec, **(config["keys"] or {}))
    except (TypeError, ValueError) as error:
        raise BadArguments(f"keys: {error}") from error
    address: dict[str, Any] = {}
    if not asyncio.run(_until_told(policy, access, keys, config, tls, address)):
        # It would be waited for.
        os._exit(1)
    policy.close()
    return {"address": address["address"], "policy": policy.spec.name}, 0


async def _until_told(
    policy: Policy, access: Access, keys: Keys, config: Config, tls: ssl.SSLContext | None, address: dict[str, Any]
) -> bool:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    def ready(port: int) -> None:
        address["address"] = f"{'ws' if tls is None else 'wss'}://{config['host']}:{port}"
        _log.info("serving %s at %s", policy.spec.name, address["address"])

    server = PolicyServer(policy, access, keys, config["seed"], batch=config["batch"])
    await server.warm_up()
    return await server.serve(config["host"], config["port"], stop, ready, tls)


def _tls(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ValueError("certificate, key: expected both or neither, got one")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Nobody takes up a session again; and a client's reading thread would be busy with them while another writes.
    context.num_tickets = 0
    context.load_cert_chain(certificate, key)
    return context


if __name__ == "__main__":
    main("serve", serve)
