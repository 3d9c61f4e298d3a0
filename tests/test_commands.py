"""However a command ends, stdout ends with one line of JSON and the exit code says how."""

from __future__ import annotations

import json
import sys

import pytest

from vla_runtime import compose


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (KeyError("features"), "KeyError: 'features'"),
        (AttributeError("no such thing"), "AttributeError: no such thing"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (EOFError("Ran out of input"), "EOFError: Ran out of input"),
        (SystemExit(0), "SystemExit: 0"),
    ],
)
def test_what_nobody_foresaw_ends_with_the_line_and_a_traceback(monkeypatch, capsys, caplog, problem, said):
    def run(config):
        raise problem

    monkeypatch.setattr(sys, "argv", ["x", "only=[disk]"])
    with pytest.raises(SystemExit) as ended:
        compose.main("doctor", run)
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert json.loads(out) == {"error": said}
    assert out.count("\n") == 1
    assert "Traceback" in caplog.text


def test_what_was_foreseen_needs_no_traceback(monkeypatch, capsys, caplog):
    def run(config):
        raise ValueError("expected this, got that")

    monkeypatch.setattr(sys, "argv", ["x", "only=[disk]"])
    with pytest.raises(SystemExit):
        compose.main("doctor", run)
    assert json.loads(capsys.readouterr().out) == {"error": "ValueError: expected this, got that"}
    assert "Traceback" not in caplog.text
