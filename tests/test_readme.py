"""What the README shows runs, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vla_runtime.compose import load, options

README = (Path(__file__).parent.parent / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
LINES = re.findall(r"^    python -m vla_runtime\.(rollout|collect|calibrate)((?: .*)?)$", README, re.M)


@pytest.mark.parametrize("code", [code for code in PYTHON if "print(" in code], ids=lambda code: code.split("\n")[1])
def test_its_python_runs(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_its_policies_are_in_the_box():
    named = set(re.findall(r"\bnano_[a-z_]+\b", README))
    assert named
    assert named <= set(options("policy"))


@pytest.mark.parametrize(("command", "rest"), LINES)
def test_its_commands_compose(command, rest):
    words = [word for word in rest.split("#")[0].replace("'", "").split() if "=" in word and "{" not in word]
    known = [word for word in words if not word.startswith(("env=slider", "policy=nudge", "policy=checkpoints/"))]
    load(command, known)
