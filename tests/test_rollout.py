"""The command from the outside: rows that repeat, survive kill -9, and add up from shards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vla_runtime.control.clock import SystemClock
from vla_runtime.control.recorder import Recording

REACH = ["env=reach", "policy=expert", "style=multi"]


def command(*arguments, module="rollout", **options):
    return subprocess.run(
        [sys.executable, "-m", f"vla_runtime.{module}", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def rollout(*arguments):
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def rows(folder):
    """Rows in order, outside `timing`."""
    lines = (Path(folder) / "episodes.jsonl").read_text().splitlines()
    read = [{key: value for key, value in json.loads(line).items() if key != "timing"} for line in lines]
    return sorted(read, key=lambda row: (row["task"], row["episode"]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    summary = rollout(*REACH, "episodes=30", "video=none", f"out={folder}")
    return folder, summary


def test_summary_and_rows(whole):
    folder, summary = whole
    assert (summary["episodes"], summary["successes"], summary["errors"]) == (60, 60, 0)
    assert summary["success_rate"] == 1.0
    assert summary["ci95"][0] == pytest.approx(0.9398, abs=1e-3)
    assert summary["complete"]
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "episodes.jsonl", "summary.json", "report.html"}
    assert [(row["task"], row["episode"]) for row in rows(folder)] == [(t, e) for t in (0, 1) for e in range(30)]
    assert len({row["initial_state"] for row in rows(folder)}) == 60
    for line in (folder / "episodes.jsonl").read_text().splitlines():
        timing = json.loads(line)["timing"]
        assert timing["wall_s"] > 0
        assert len(timing["latencies_ms"]) == json.loads(line)["plans"]


def test_workers_and_repetition_change_nothing(whole, tmp_path):
    rollout(*REACH, "episodes=30", "video=none", "workers=2", f"out={tmp_path}")
    assert rows(tmp_path) == rows(whole[0])


def test_shards_add_up(whole, tmp_path):
    parts = [tmp_path / str(index) for index in (0, 1)]
    for index, part in enumerate(parts):
        rollout(*REACH, "episodes=30", "video=none", f"shard={index}/2", f"out={part}")
        assert len(rows(part)) == 30
    merged = tmp_path / "merged"
    summary = rollout(*REACH, f"merge=[{parts[0]},{parts[1]}]", f"out={merged}")
    assert rows(merged) == rows(whole[0])
    assert {**summary, "out": 0, "latency_ms": 0} == {**whole[1], "out": 0, "latency_ms": 0}
    one = command(*REACH, f"merge=[{parts[0]}]", f"out={tmp_path / 'x'}")
    assert one.returncode == 1
    assert "all shards" in one.stderr
    twice = command(*REACH, f"merge=[{parts[0]},{parts[0]}]", f"out={tmp_path / 'x'}")
    assert twice.returncode == 1
    assert "more than one" in twice.stderr


@pytest.mark.parametrize("kill", [os.killpg, os.kill])
def test_kill_loses_at_most_the_running_episodes(tmp_path, kill):
    """SIGKILL in the middle to the whole command, or to its first process alone; then the same command again."""
    folder = tmp_path / "run"
    arguments = [*REACH, "episodes=6", "video=all", "workers=2", f"out={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vla_runtime.rollout", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    clock, path = SystemClock(), folder / "episodes.jsonl"
    deadline = clock.now() + 60
    while clock.now() < deadline and not (path.exists() and path.read_text().count("\n") >= 3):
        clock.sleep_until(clock.now() + 0.02)
    kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = path.read_text().count("\n")
    assert 3 <= finished < 12
    with path.open("a") as file:
        file.write('{"task": 1, "episo')  # what a power cut leaves
    summary = rollout(*arguments)
    assert summary["complete"]
    again = tmp_path / "again"
    rollout(*arguments[:-1], f"out={again}")
    assert rows(folder) == rows(again)
    names = sorted(path.name for path in (folder / "videos").iterdir() if not path.name.startswith("."))
    assert names == sorted(path.name for path in (again / "videos").iterdir())
    assert len(names) == 24
    # Also where processes of the first command lived on for a while.
    for one in (folder / "recordings").iterdir():
        assert Recording(one).end is not None


def test_rows_of_another_policy_under_the_same_name_are_not_gone_on_with(tmp_path):
    folder = tmp_path / "run"
    rollout("env=reach", "policy=expert", "episodes=2", "video=none", f"out={folder}")
    path = folder / "episodes.jsonl"
    first = path.read_text().splitlines()[0]
    path.write_text(json.dumps({**json.loads(first), "weights": "of before"}) + "\n")
    done = command("env=reach", "policy=expert", "episodes=2", "video=none", f"out={folder}")
    assert done.returncode == 1
    assert "something was trained, calibrated, recorded or installed again" in json.loads(done.stdout)["error"]
    assert path.read_text().count("\n") == 1


def test_interrupt_finishes_the_files(tmp_path):
    folder = tmp_path / "run"
    arguments = [*REACH, "episodes=4000", "video=none", f"out={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vla_runtime.rollout", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    clock, path = SystemClock(), folder / "episodes.jsonl"
    deadline = clock.now() + 60
    while clock.now() < deadline and not (path.exists() and path.read_text().count("\n") >= 3):
        clock.sleep_until(clock.now() + 0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted" in json.loads(out.splitlines()[-1])["error"]
    summary = json.loads((folder / "summary.json").read_text())
    assert not summary["complete"]
    assert summary["episodes"] == 8000
    assert (folder / "report.html").exists()


def test_require_decides_the_exit_code(tmp_path):
    done = command("env=reach", "policy=hold", "episodes=1", "video=none", "require=0.5", f"out={tmp_path / 'a'}")
    assert done.returncode == 1
    assert json.loads(done.stdout)["success_rate"] == 0.0
    rollout("env=reach", "policy=expert", "episodes=1", "video=none", "require=0.5", f"out={tmp_path / 'b'}")


def test_bad_input_is_named_and_exits_2(tmp_path):
    cases = {
        "env=reech": "nearest: reach",
        "policy=exprt": "nearest: expert",
        "epsodes=3": "nearest: episodes",
        "env.contrl=absolute": "nearest: env.control",
        "env.control=sideways": "velocity",
        "env.tasks=[7]": "0 to 1",
        "env.tasks=touch the reed disc": "touch the red disc",
        "loop.replan=9": "1 to 1",
        "episodes=few": "whole number",
        "seed=1180591620717411303424": "seed: expected a whole number >= 0 and below 2**63",
        "policy.seed=-1": "policy.seed: expected a whole number",
        "shard=2/2": "0 <= i < n",
        "video=some": "all",
        "whatever": "option=value",
    }
    # One process for all: what differs is only the text of an override.
    script = (
        "import json, subprocess, sys\n"
        "from vla_runtime import compose, rollout\n"
        "for text in json.loads(sys.argv[1]):\n"
        "    sys.argv[1:] = ['env=reach', 'policy=expert', 'episodes=1', 'video=none', f'out={sys.argv[-1]}', text]\n"
        "    out = sys.argv[5]\n"
        "    try: compose.main('rollout', rollout.rollout)\n"
        "    except SystemExit as end: print(end.code)\n"
        "    sys.argv = ['x', out.removeprefix('out=')]\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "if __name__ == '__main__':\n" + "".join(f"  {line}\n" for line in script.splitlines()),
            json.dumps(list(cases)),
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(cases), done.stderr
    for (text, told), answer, code in zip(cases.items(), lines[::2], lines[1::2], strict=True):
        assert code == "2", (text, answer)
        assert told in json.loads(answer)["error"], text
    assert not (tmp_path / "out").exists(), "bad arguments leave nothing behind"


def test_the_same_folder_with_another_config_is_refused(whole):
    done = command(*REACH, "episodes=31", "video=none", f"out={whole[0]}")
    assert done.returncode == 1
    assert "episodes: 30 there, 31 asked for" in json.loads(done.stdout)["error"]


def test_help_lists_options_and_values():
    done = command("--help")
    assert done.returncode == 0
    for word in ("episodes: null", "env=   one of:", "env.control=velocity", "loop.replan", "merge"):
        assert word in done.stdout


def test_shards_keep_an_episode_with_all_its_latencies(tmp_path):
    asked = ["env=reach", "policy=expert", "loop=async", "loop.latency=[0,0.1,0.3]", "episodes=2", "video=none"]
    whole = rollout(*asked, f"out={tmp_path / 'whole'}")
    parts = [rollout(*asked, f"shard={index}/3", f"out={tmp_path / str(index)}") for index in range(3)]
    assert [part["episodes"] for part in parts] == [6, 3, 3]
    assert all([one["episodes"] for one in part["by_latency"]] == [part["episodes"] // 3] * 3 for part in parts)
    merged = rollout(
        "merge=[" + ",".join(str(tmp_path / str(index)) for index in range(3)) + "]", f"out={tmp_path / 'm'}"
    )
    assert merged["by_latency"] == whole["by_latency"]
    assert merged["ci95"] is None
    assert rows(tmp_path / "m") == rows(tmp_path / "whole")
    assert len(list((tmp_path / "m" / "recordings").iterdir())) == 12


def test_what_only_a_replay_has_is_refused_without_one(tmp_path):
    done = command("env=reach", "policy=expert", "explain=3", f"out={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "explain: expected replay=" in json.loads(done.stdout.splitlines()[-1])["error"]
    assert not (tmp_path / "run").exists()
