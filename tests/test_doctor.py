"""The shipped checks on this machine, and checks that break in every way a driver can."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from robots import reach_robot

from vla_runtime import checks
from vla_runtime.compose import load
from vla_runtime.control.clock import SystemClock
from vla_runtime.doctor import ask, doctor

BROKEN = """
import os, signal, subprocess, sys, time
def fine(word): print("noise on stdout"); return {"ok": True, "detail": word, "remedy": ""}
def sad(): return {"ok": False, "detail": "no such thing", "remedy": "buy one"}
def raises(): raise OSError("the card is on fire")
def hangs():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with open(os.environ["CHILD"], "w") as file: file.write(str(child.pid))
    time.sleep(60)
def crashes(): os.kill(os.getpid(), signal.SIGSEGV)
def leaves(): os._exit(7)
def quits(): os._exit(0)
def asks(): input("shall I? ")
def mumbles(): return 7
"""


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_checks.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CHILD", str(tmp_path / "child"))


def check(name: str, *, required: bool = True, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"broken_checks.{name}", "required": required, **arguments}


@pytest.mark.usefixtures("broken")
def test_one_broken_check_takes_down_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "timeout": 20,
        "checks": {
            "raises": check("raises"),
            "crashes": check("crashes"),
            "leaves": check("leaves"),
            "quits": check("quits"),
            "asks": check("asks"),
            "mumbles": check("mumbles"),
            "absent": check("nowhere"),
            "sad": check("sad"),
            "fine": check("fine", word="all well"),
        },
    }
    report, code = doctor(config)
    found = {result["name"]: result for result in report["checks"]}
    assert (report["ok"], code) == (False, 1)
    assert list(found) == list(config["checks"])
    assert [name for name, result in found.items() if result["ok"]] == ["fine"]
    for name, text in {
        "raises": "OSError: the card is on fire",
        "crashes": "SIGSEGV",
        "leaves": "exit code 7",
        "quits": "got nothing",
        "asks": "EOFError",
        "mumbles": "got 7",
        "absent": "nowhere",
        "sad": "no such thing",
        "fine": "all well",
    }.items():
        assert text in found[name]["detail"]
    assert found["sad"]["remedy"] == "buy one"
    assert "python -c" in found["crashes"]["remedy"]
    captured = capsys.readouterr()
    assert captured.out == "", "stdout belongs to the command's JSON line"
    assert "FAILED" in captured.err
    assert "buy one" in captured.err
    json.dumps(report)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.usefixtures("broken")
def test_a_check_that_hangs_ends_with_what_it_started(tmp_path: Path) -> None:
    result = ask("slow", "broken_checks.hangs", {}, timeout=5)
    assert not result["ok"]
    assert "no answer within 5 s" in result["detail"]
    child = int((tmp_path / "child").read_text())
    # A killed process may be scheduled once more before it is gone: the kernel says "sent", not "dead".
    clock = SystemClock()
    deadline = clock.now() + 30
    while _runs(child) and clock.now() < deadline:
        clock.sleep_until(clock.now() + 0.01)
    assert not _runs(child)


@pytest.mark.usefixtures("broken")
def test_only_required_checks_decide() -> None:
    report, code = doctor({"timeout": 20, "checks": {"sad": check("sad", required=False)}})
    assert (report["ok"], code) == (True, 0)
    assert report["checks"][0] == {
        "name": "sad",
        "ok": False,
        "detail": "no such thing",
        "remedy": "buy one",
        "required": False,
    }


def test_a_check_without_target_is_refused() -> None:
    with pytest.raises(ValueError, match=r"checks\.gl.*_target_"):
        doctor({"timeout": 1, "checks": {"gl": {"required": True}}})


def test_only_some_checks() -> None:
    config = {"timeout": 20, "checks": {"sad": check("sad"), "disk": check("fine", word="x")}}
    with pytest.raises(ValueError, match="nearest: disk"):
        doctor({**config, "only": ["disc"]})
    assert doctor({**config, "only": []})[0]["checks"] == []


def test_this_machine_runs_the_default_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco", reason="the default rollout needs the sim extra")
    config = load("doctor")
    # Loading torch is most of the time, and nothing the default rollout needs.
    config["checks"] = {name: one for name, one in config["checks"].items() if one["required"]}
    report, code = doctor(config)
    assert (report["ok"], code) == (True, 0), report
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    config["checks"] = {"gl": config["checks"]["gl"]}
    report, code = doctor(config)
    assert (report["ok"], code) == (False, 1)
    assert "nonsense" in report["checks"][0]["detail"]
    assert "unset MUJOCO_GL" in report["checks"][0]["remedy"]


def test_the_command_ends_with_one_line_of_json() -> None:
    command = [sys.executable, "-m", "vla_runtime.doctor", "only=python", "checks.python.minimum='99.0'"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert [result["name"] for result in report["checks"]] == ["python"]
    assert ">= 99.0" in report["checks"][0]["remedy"]


def test_every_shipped_check_exists_and_takes_its_arguments() -> None:
    import importlib
    import inspect

    for name, one in load("doctor")["checks"].items():
        module, _, function = one["_target_"].rpartition(".")
        arguments = {key: value for key, value in one.items() if key not in ("_target_", "required")}
        inspect.signature(getattr(importlib.import_module(module), function)).bind(**arguments)
        assert isinstance(one["required"], bool), name


def test_pins_of_the_config_are_those_of_the_packaging() -> None:
    sim = {requirement.name: requirement.specifier for requirement in checks.own_requirements("sim")}
    config = load("doctor")["checks"]
    for name in ("mujoco", "robosuite"):
        assert SpecifierSet(config[name]["specifier"]) == sim[name]


def test_requirements_name_what_is_missing_and_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"robosuite": "1.5.0", "mujoco": "3.3.7"}
    monkeypatch.setattr(checks, "_version", installed.get)
    finding = checks.requirements("sim")
    assert not finding["ok"]
    assert "missing: gymnasium" in finding["detail"]
    assert "robosuite==1.4.0, got 1.5.0" in finding["detail"]
    assert "pip install 'vla_runtime[sim]'" in finding["remedy"]
    assert {"bddl", "mujoco"} <= {requirement.name for requirement in checks.own_requirements("libero")}
    with pytest.raises(ValueError, match="sim"):
        checks.requirements("simulation")


def test_requirements_are_read_from_a_checkout_or_from_metadata(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(checks.metadata, "distribution", absent)
    checkout = {str(requirement) for requirement in checks.own_requirements("libero")}
    core = {requirement.name for requirement in checks.own_requirements()}
    assert "numpy" in core
    assert "robosuite" not in core
    info = tmp_path / "vla_runtime-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vla_runtime\nVersion: 0.1.0\nRequires-Dist: numpy>=1.26\n"
        'Requires-Dist: robosuite==1.4.0; extra == "sim"\nProvides-Extra: sim\nProvides-Extra: libero\n'
        'Requires-Dist: vla_runtime[sim]; extra == "libero"\nRequires-Dist: bddl==1.0.1; extra == "libero"\n'
    )
    monkeypatch.setattr(checks.metadata, "distribution", lambda name: metadata.PathDistribution(info))
    assert [requirement.name for requirement in checks.own_requirements()] == ["numpy"]
    assert [requirement.name for requirement in checks.own_requirements("libero")] == ["robosuite", "bddl"]
    assert any(text.startswith("robosuite==1.4.0") for text in checkout)


def test_mujoco_outside_its_range_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_version", lambda name: "3.4.0")
    finding = checks.version_in_range("mujoco", ">=3.3,<3.4", "collisions differ")
    assert finding == {
        "ok": False,
        "detail": "expected >=3.3,<3.4, got 3.4.0: collisions differ",
        "remedy": "pip install 'mujoco>=3.3,<3.4'",
    }
    monkeypatch.setattr(checks, "_version", lambda name: None)
    assert checks.version_in_range("mujoco", ">=3.3", "")["detail"] == "not installed"


def test_a_stranger_that_owns_our_package_names_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert checks.package_ownership(["vla_runtime", "envs", "policies"])["ok"]
    owners = {"envs": ["vla_runtime", "envs"], "policies": ["vla-runtime"]}
    monkeypatch.setattr(checks.metadata, "packages_distributions", lambda: owners)
    finding = checks.package_ownership(["envs", "policies"])
    assert finding["detail"] == "envs also belongs to the distribution envs"
    assert finding["remedy"].startswith("pip uninstall envs, then ")
    (tmp_path / "strange_name").mkdir()
    (tmp_path / "strange_name" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "strange_name: expected" in checks.package_ownership(["strange_name"])["detail"]


def test_libero_assets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VLA_LIBERO_ASSETS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assets = tmp_path / "assets"
    for name in checks._ASSETS:
        (assets / name).parent.mkdir(parents=True, exist_ok=True)
        (assets / name).touch()
    assert checks.libero_assets(str(assets)) == {"ok": True, "detail": str(assets), "remedy": ""}
    monkeypatch.setenv("VLA_LIBERO_ASSETS", str(assets))
    assert checks.libero_assets()["ok"]
    shutil.rmtree(assets / "textures")
    finding = checks.libero_assets()
    assert not finding["ok"]
    assert "lacks textures/ceramic.png" in finding["detail"]
    assert "VLA_LIBERO_ASSETS" in finding["remedy"]
    monkeypatch.setenv("VLA_LIBERO_ASSETS", str(tmp_path / "nowhere"))
    assert "nowhere does not exist" in checks.libero_assets()["detail"]


def test_disk(tmp_path: Path) -> None:
    finding = checks.disk(str(tmp_path / "runs" / "new"), 1e-6)
    assert finding["ok"]
    assert str(tmp_path) in finding["detail"]
    assert not checks.disk(str(tmp_path), 1e9)["ok"]
    assert not (tmp_path / "runs").exists()


def test_no_torch_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    finding = checks.torch_device()
    assert finding["ok"]
    assert "pip install" in finding["remedy"]


def test_two_contracts_are_compared(tmp_path: Path) -> None:
    one = reach_robot()
    other = replace(reach_robot(skew=0.2), rate_hz=10.0)
    paths = []
    for name, contract in (("a", one), ("b", other)):
        paths.append(str(tmp_path / f"{name}.yaml"))
        contract.save(paths[-1])
    line, code = doctor({"contract": paths})
    assert (code, line["ok"]) == (1, False)
    assert [check["name"] for check in line["checks"]] == ["rate_hz", "robot.skew"]
    assert line["checks"][0]["detail"] == "expected 10.0, got 20.0"
    assert doctor({"contract": paths[:1]})[1] == 0
    assert doctor({"contract": [paths[0], paths[0]]})[0]["ok"]
    with pytest.raises(ValueError, match="expected one file or"):
        doctor({"contract": paths * 2})
