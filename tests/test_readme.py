"""What the README shows runs, and what it and the other pages name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vla_runtime.compose import load, options

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "policies").rglob("README.md")])
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
LINES = re.findall(r"^    python -m vla_runtime\.(rollout|collect|calibrate)((?: .*)?)$", README, re.M)


@pytest.mark.parametrize("code", [code for code in PYTHON if "print(" in code], ids=lambda code: code.split("\n")[1])
def test_its_python_runs(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def heading(text):
    """As GitHub names a heading in a link."""
    return re.sub(r"[^a-z0-9 -]", "", text.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_policies_and_links_of_a_page_exist(page):
    text = page.read_text()
    assert set(re.findall(r"\bnano_[a-z_]+[a-z]\b", text)) <= set(options("policy"))
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, part = link.partition("#")
        file = page if not path else page.parent / path
        assert file.exists(), link
        if part:
            assert part in map(heading, re.findall(r"^#+ (.*)$", file.read_text(), re.M)), link


def test_the_readme_names_policies():
    assert len(set(re.findall(r"\bnano_[a-z_]+\b", README))) > 4


@pytest.mark.parametrize(("command", "rest"), LINES)
def test_its_commands_compose(command, rest):
    words = [word for word in rest.split("#")[0].replace("'", "").split() if "=" in word and "{" not in word]
    known = [word for word in words if not word.startswith(("env=slider", "policy=nudge", "policy=checkpoints/"))]
    load(command, known)
