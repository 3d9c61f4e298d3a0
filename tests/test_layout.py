"""The shape of the repository: who imports whom, what an import loads, what the wheel holds, that configs fit."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
ROOMS = ("vla_runtime", "policies", "envs")
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""


def modules(room):
    return [(path, set(imports(path))) for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize(
    ("room", "banned"),
    [("vla_runtime", {"policies", "envs"}), ("policies", {"envs"}), ("envs", {"policies"})],
)
def test_arrows_point_one_way(room, banned):
    assert modules(room)
    for path, names in modules(room):
        assert not {name.split(".")[0] for name in names} & banned, path


def test_hydra_lives_in_compose_alone():
    for room in ROOMS:
        for path, names in modules(room):
            if {"hydra", "omegaconf"} & {name.split(".")[0] for name in names}:
                assert path == ROOT / "vla_runtime" / "compose.py"


def test_importing_the_runtime_loads_numpy_only():
    script = "import sys, vla_runtime; print(sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{script}"],
                          capture_output=True, text=True, check=True, cwd="/")  # fmt: skip
    loaded = set(ast.literal_eval(done.stdout))
    third_party = {name for name in packages_distributions() if not name.startswith("_")}
    assert loaded & third_party <= {"vla_runtime", "numpy"}


LIGHT_CORE = {"numpy", "PIL", "yaml", "rich", "hydra", "omegaconf", "antlr4", "msgpack", "websockets", *ROOMS}
LIGHT_CORE |= {"pygments", "markdown_it", "mdurl", "packaging"}  # what these need themselves


def test_the_light_core_runs_reach(tmp_path):
    """In an interpreter that sees the core's packages alone, workers included."""
    site = tmp_path / "site"
    site.mkdir()
    for name in LIGHT_CORE - set(ROOMS):
        (origin,) = importlib.util.find_spec(name).submodule_search_locations
        (site / name).symlink_to(origin)
    environment = {**os.environ, "PYTHONPATH": f"{site}:{ROOT}"}
    probe = subprocess.run(
        [sys.executable, "-S", "-c", "import scipy"], capture_output=True, text=True, env=environment
    )
    assert "No module named 'scipy'" in probe.stderr, "the test itself must hide other packages"
    command = [sys.executable, "-S", "-m", "vla_runtime.rollout", "env=reach", "policy=expert", "episodes=2"]
    done = subprocess.run(
        [*command, f"out={tmp_path / 'run'}"], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["successes"] == 4
    asked = subprocess.run(
        [*command, "video=all", f"out={tmp_path / 'video'}"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert asked.returncode == 1
    assert "vla_runtime[data]" in json.loads(asked.stdout)["error"]


def test_the_wheel_holds_our_packages_and_no_others(tmp_path):
    shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".*", "runs", "build", "*.egg-info"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "--no-build-isolation",
         "-w", str(tmp_path), str(tmp_path / "source")],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(ROOMS)
    files = {path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    files |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "policies" / "shipped").glob("*/*.*")}
    files |= {f"vla_runtime/{path.relative_to(ROOT).as_posix()}" for path in CONFIGS}
    assert files <= set(names), sorted(files - set(names))


def test_no_other_package_has_overwritten_ours():
    owners = packages_distributions()
    for room in ROOMS:
        assert set(owners.get(room, ["vla_runtime"])) == {"vla_runtime"}


def parameters_of(function):
    """Its parameters; for a class that hands **options on to its parent, the parent's too."""
    found = dict(inspect.signature(function).parameters)
    rest = [name for name, parameter in found.items() if parameter.kind is inspect.Parameter.VAR_KEYWORD]
    for name in rest:
        del found[name]
        found = {**parameters_of(function.__mro__[1]), **found}
    return found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT / "configs").as_posix())
def test_every_config_fits_what_it_builds(path):
    """Values that their target has no parameter for, or needs but does not get, are found here."""
    text = path.read_text()
    values = yaml.safe_load(text) or {}
    if text.startswith("# @package _global_"):
        values = values[path.parent.name]
    target = values.get("_target_")
    if target is None or "." not in target:
        return
    module, _, name = target.rpartition(".")
    function = getattr(importlib.import_module(module), name)
    given = set(values) - {"_target_", "tasks", "seed"}
    parameters = parameters_of(function)
    if path.parent.name == "policy":
        assert parameters.pop("env", None) is not None, f"{target}: a policy is built for an EnvSpec, argument env"
    assert given <= set(parameters), f"{target} has no {sorted(given - set(parameters))}"
    needed = {key for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    assert needed <= given, f"{target} needs {sorted(needed - given)}"
