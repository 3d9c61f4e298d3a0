"""What is said in JSON is read as it is meant, or refused; a text is no truth value."""

from __future__ import annotations

import pytest

from vla_runtime.ros.messages import flag, text
from vla_runtime.ros.reports import read_allowed, read_flag, read_outcome, read_text
from vla_runtime.types import SpecMismatch


def test_what_is_meant():
    outcome = read_outcome(text('{"success": true, "reason": "said", "more": 1}'))
    assert (outcome.success, outcome.reason) == (True, "said")
    assert read_allowed(text('{"allowed": false}')) is False
    assert read_flag(flag(True)) is True
    assert read_text(text("lift")) == "lift"


@pytest.mark.parametrize(
    "said",
    ['{"success": "false", "reason": "said"}', '{"success": 0, "reason": "said"}', '{"success": null, "reason": "x"}',
     '{"reason": "said"}', '{"success": true}', '{"success": true, "reason": null}', '"ok"', "success", "[]",
     "[" * 9999],
)  # fmt: skip
def test_outcomes_that_cannot_be_read(said):
    with pytest.raises(
        SpecMismatch, match=r'outcome: expected \{"success": true or false, "reason": a text\} in JSON, got'
    ):
        read_outcome(text(said))


def test_messages_of_another_type():
    for read, message in ((read_flag, text("false")), (read_outcome, flag(True)), (read_text, flag(True))):
        with pytest.raises(SpecMismatch, match="expected a message of type std_msgs/msg/"):
            read(message)
    for said in ('{"allowed": "no"}', "{}", "3"):
        with pytest.raises(SpecMismatch, match='status: expected "allowed": true or false'):
            read_allowed(text(said))
