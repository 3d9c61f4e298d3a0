"""What robots and bridges report as texts: how an episode ended, whether a bridge may move the robot.

JSON of strangers, read strictly: a text is never taken for a truth value.
"""

from __future__ import annotations

import json
from typing import Any

from vla_runtime.types import Outcome, SpecMismatch

STRING, BOOL = "std_msgs/msg/String", "std_msgs/msg/Bool"


def read_outcome(message: Any) -> Outcome:
    """How an episode ended, of a String such as {"success": true, "reason": "said"}. SpecMismatch for another."""
    document = _document(message, "outcome", '{"success": true or false, "reason": a text}')
    success, reason = document.get("success"), document.get("reason")
    if not isinstance(success, bool) or not isinstance(reason, str):
        raise SpecMismatch(
            f'outcome: expected {{"success": true or false, "reason": a text}} in JSON, got {_short(message.data)}'
        )
    return Outcome(success, reason)


def read_allowed(message: Any) -> bool:
    """Whether a bridge may move the robot, of its status. SpecMismatch for another message."""
    allowed = _document(message, "status", '"allowed": true or false').get("allowed")
    if not isinstance(allowed, bool):
        raise SpecMismatch(f'status: expected "allowed": true or false in JSON, got {_short(message.data)}')
    return allowed


def read_flag(message: Any) -> bool:
    """The value of a Bool. SpecMismatch for another message."""
    return bool(_typed(message, BOOL).data)


def read_text(message: Any) -> str:
    """The value of a String. SpecMismatch for another message."""
    return str(_typed(message, STRING).data)


def _document(message: Any, what: str, expected: str) -> dict[str, Any]:
    said = read_text(message)
    try:
        document = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise SpecMismatch(f"{what}: expected {expected} in JSON, got {_short(said)}") from error
    if not isinstance(document, dict):
        raise SpecMismatch(f"{what}: expected {expected} in JSON, got {_short(said)}")
    return document


def _typed(message: Any, kind: str) -> Any:
    if message.__msgtype__ != kind:
        raise SpecMismatch(f"expected a message of type {kind}, got {message.__msgtype__}")
    return message


def _short(said: str) -> str:
    return repr(said if len(said) <= 80 else f"{said[:80]}...")
