"""The prepared GPU call: goals judged by what was measured, parts that end alone, a tree that comes back whole."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from vla_runtime.control.clock import SystemClock


def script(name):
    path = Path("benchmarks") / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_goals_are_reached_missed_or_not_measured():
    gpu = script("gpu")
    rows = [
        {"variant": "captured", "p50_ms": 3.0, "p99_ms": 3.6, "speedup": 5.0},
        {"variant": "plain", "p50_ms": 15.0, "p99_ms": 16.0, "speedup": 1.0},
    ]
    by_name = {one["goal"]: one for one in gpu.goals({"beast_f": {"rows": rows}, "dp_t": {"error": "ended"}})}
    assert by_name["beast_f: p50 ms"] == {"goal": "beast_f: p50 ms", "wanted": "at most 4", "got": 3.0, "reached": True}
    assert by_name["beast_f: p99 over p50"]["got"] == 1.2
    assert not by_name["beast_f: p99 over p50"]["reached"]
    assert by_name["dp_t: BAC, captured, over plain, eager"]["got"] is None
    assert not by_name["dp_t: BAC, captured, over plain, eager"]["reached"]


def ended(state):
    """Whether a process is gone, or nothing but a number, soon: a killed one needs a moment."""
    clock = SystemClock()
    limit = clock.now() + 10
    while clock.now() < limit:
        try:
            if state.read_text().split()[2] in ("Z", "X"):
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        clock.sleep_until(clock.now() + 0.02)
    return False


def test_a_part_ends_at_its_limit_with_all_that_it_started(tmp_path, monkeypatch):
    gpu = script("gpu")
    child = tmp_path / "part.py"
    child.write_text(
        "import subprocess, sys, time\n"
        f"other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(other.pid)); print('begun', flush=True); time.sleep(60)\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(child))
    found = gpu.run_part("env", tmp_path, "cpu", True, 2.0)
    assert found["error"] == "expected to end within 2 s"
    assert "begun" in found["printed"]
    assert ended(Path("/proc") / (tmp_path / "pid").read_text() / "stat")
    child.write_text("raise SystemExit(3)")
    assert gpu.run_part("env", tmp_path, "cpu", True, 20.0)["error"] == "exit code 3"


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    prepare = script("prepare_gpu")
    for name in ("benchmarks/rows/a.json", "policies/shipped/nano_x/weights", "policies/shipped/README.md", "b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name * 100)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    for name, value in (("ROOT", tmp_path), ("WHEELS", tmp_path / ".whl"), ("RECORDED", tmp_path / ".gpu")):
        monkeypatch.setattr(prepare, name, value)
    return prepare


def test_large_files_leave_the_tree_and_come_back(prepared, tmp_path, capsys):
    before = prepared.travels()
    assert prepared.prepare(skip_wheels=True, skip_recording=True) == 0
    assert "carrying .whl and .gpu" in capsys.readouterr().out
    assert not (tmp_path / "benchmarks/rows/a.json").exists()
    assert (tmp_path / "policies/shipped/README.md").exists()
    assert prepared.travels() < before
    assert prepared.git("status", "--porcelain") == ""
    # Again, from a tree that is prepared already.
    prepared.prepare(skip_wheels=True, skip_recording=True)
    assert sorted(prepared.restore()) == ["benchmarks/rows/a.json", "policies/shipped/nano_x/weights"]
    assert prepared.travels() == before
    assert prepared.git("status", "--porcelain") == ""


def test_a_change_that_would_be_lost_and_a_tree_that_stays_too_large_are_refused(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "LIMIT", 10)
    with pytest.raises(ValueError, match="expected at most 10 bytes to go along, got"):
        prepared.prepare(skip_wheels=True, skip_recording=True)
    assert (tmp_path / "benchmarks/rows/a.json").exists()
    (tmp_path / "benchmarks/rows/a.json").write_text("other")
    with pytest.raises(ValueError, match=r"benchmarks/rows/a.json: expected no changes that are not committed"):
        prepared.prepare(skip_wheels=True, skip_recording=True)
    assert (tmp_path / "benchmarks/rows/a.json").read_text() == "other"


def test_a_wrong_part_is_named():
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "out", "--only", "dpt"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--only: expected some of env, tests, shipped" in done.stderr
