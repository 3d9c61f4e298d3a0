"""The page holds what the run's files say, escaped, and asks nothing of the network."""

from __future__ import annotations

import json
import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vla_runtime.evaluation.charts import histogram, interval_bar
from vla_runtime.evaluation.report import write_report
from vla_runtime.evaluation.statistics import wilson_interval

VOID = {"meta", "img", "br", "rect", "line", "circle"}


class Balance(HTMLParser):
    """Fails on a closing tag that does not close the newest open one; collects what the page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def parse(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def row(task: int, episode: int, *, success: bool = True, **changes: Any) -> dict[str, Any]:
    return {
        "env": "libero_object",
        "task": task,
        "task_name": f"put the <soup> & spoon {task} away",
        "episode": episode,
        "seed": 0,
        "policy": "expert",
        "policy_seed": 0,
        "statistics": None,
        "control": "delta",
        "initial_state": f"abc{task}{episode}",
        "init_seen": None,
        "success": success,
        "reason": "success" if success else "time",
        "progress": 1.0 if success else 0.5,
        "steps": 57 + episode,
        "plans": 8,
        "clamped": 0,
        "held": 0,
        "error": None,
        "facts": {"premise": True},
        "versions": {"mujoco": "3.3.7"},
        "loop": {"mode": "sync", "latency": 0.0, "replan": 8, "rate_hz": 20.0},
        "decode": {},
        "video": None,
        "timing": {"wall_s": 1.2, "latencies_ms": [1.5, 2.5, 3.0], "host": "robot", "cpu": "x86"},
        **changes,
    }


def folder(path: Path, rows: list[dict[str, Any]], **summary: Any) -> Path:
    successes = sum(row["success"] for row in rows)
    text = {
        "env": "libero_object",
        "policy": "expert",
        "episodes": len(rows),
        "successes": successes,
        "errors": sum(row["error"] is not None for row in rows),
        "ci95": list(wilson_interval(successes, summary.get("episodes", len(rows)))) if rows else None,
        "latency_ms": {"p50": 2.5, "p95": 3.0, "p99": 3.0},
        "control": {"rate_hz": 20.0, "overruns": 0},
        "complete": True,
        **summary,
    }
    (path / "summary.json").write_text(json.dumps(text))
    (path / "config.yaml").write_text("env:\n  name: <lift> & more\n")
    (path / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_how_the_loop_went_is_told_and_drawn(tmp_path: Path) -> None:
    went = {
        "delay": 0.15,
        "late": 1,
        "smoothness": {"position": {"seam_jump": 0.02, "seam_velocity_jump": 0.4, "jerk": 7.0, "lag": None}},
        "limits": {"position speed": 3},
        "safety": [[1.25, "stopped", "plan: <none> came"]],
        "plan_age": {"p50": 0.2, "p95": 0.41, "p99": 0.45},
        "timeline": {
            "held": [[0, 2]],
            "safety": [[7, 8]],
            "limits": [[9, 9]],
            "seams": [[5, 5]],
            "chunks": [[3, 3], [5, 5]],
        },
    }
    page = write_report(folder(tmp_path, [row(0, 0, **went), row(0, 1)])).read_text()
    assert "Control" in page
    assert "150 ms" in page
    assert "position: seam jump" in page
    assert "limit broken: position speed" in page
    assert "3 ticks" in page
    assert "stopped at 1.25 s" in page
    assert "plan: &lt;none&gt; came" in page
    assert "position: lag" not in page
    assert page.count('class="held"') == page.count('class="safety"') == 1
    assert "age of the plan, p95" in page
    assert "410 ms" in page
    assert page.count('class="chunks"') == 2
    assert "held, tick 0 to 2" in page
    assert "limits, tick 9<" in page


def test_each_latency_is_told_for_itself(tmp_path: Path) -> None:
    rows = [row(0, 0, delay=0.1, loop={"latency": 0.0}), row(0, 1, delay=0.3, loop={"latency": 0.2})]
    page = write_report(folder(tmp_path, rows)).read_text()
    assert [page.count(f"Control, latency {one}s") for one in ("0", "0.2")] == [1, 1]
    assert "100 ms" in page
    assert "300 ms" in page
    assert "200 ms" not in page


def test_latencies_come_in_their_order_and_films_say_theirs(tmp_path: Path) -> None:
    rows = [
        row(0, 0, success=False, video=f"videos/{late}.mp4", loop={"latency": late}) for late in (0.0, 0.2, 1.0, 0.05)
    ]
    page = write_report(folder(tmp_path, rows)).read_text()
    tasks, films = (page.split(part)[1].split("<h2>")[0] for part in ("Success per task", "Videos (4)"))
    name = escape(rows[0]["task_name"])
    places = [tasks.index(f"{name}, latency {late}s<") for late in ("0", "0.05", "0.2", "1")]
    assert places == sorted(places)
    assert [films.count(f"{name}, latency {late}s <span") for late in ("0", "0.05", "0.2", "1")] == [0, 1, 1, 1]


def test_success_against_latency_is_drawn(tmp_path: Path) -> None:
    points = [
        {"latency": latency, "delay": delay, "episodes": 20, "successes": n, "success_rate": n / 20}
        | {"ci95": [n / 25, min(1.0, n / 18)], "per_minute": n / 2}
        for latency, delay, n in ((0.0, 0.0, 19), (0.2, 0.2, 12), ("logs/<robot>.json", 0.31, 4))
    ]
    rows = [row(0, 0), row(0, 1)]
    page = write_report(folder(tmp_path, rows, by_latency=points)).read_text()
    assert "Success against latency" in page
    assert "&lt;robot&gt;" in page
    assert "<robot>" not in page
    assert page.count('class="whisker"') == 3
    assert page.count("<polyline") == 2
    assert "19 / 20" in page
    assert "successes per minute" in page
    assert "against latency" not in write_report(folder(tmp_path, rows)).read_text()


def test_a_run_as_a_page(tmp_path: Path) -> None:
    lost = {"wall_s": None, "latencies_ms": [], "overruns": 0}
    rows = [
        row(0, 0),
        row(0, 1, success=False, video="videos/task00_episode001.mp4"),
        row(1, 0, facts={"premise": False, "term": "on bowl <ramekin>"}, init_seen=True),
        row(1, 1, facts={"premise": True, "mujoco_override": True}, versions={"mujoco": "3.4.0"}),
        row(1, 2, success=False, reason="error", error="ValueError: <b>", facts={}, initial_state=None, timing=lost),
    ]
    (tmp_path / "videos").mkdir()
    Image.fromarray(np.zeros((12, 72, 3), np.uint8)).save(tmp_path / "videos/task00_episode001.jpg")
    path = write_report(folder(tmp_path, rows, complete=False, episodes=8))
    assert path == tmp_path / "report.html"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.yaml",
        "episodes.jsonl",
        "report.html",
        "summary.json",
        "videos",
    ], "no unfinished file is left"
    page = path.read_text()
    parser = parse(page)
    for text in (
        "37.5%",  # 3 of the 8 asked for, not of the 5 finished
        "95 % 13.7% to 69.4%",
        "put the &lt;soup&gt; &amp; spoon 1 away",
        "ValueError: &lt;b&gt;",
        "5 of 8 episodes are finished",
        "In 1 of 5 episodes the premise of the task was broken",
        "on bowl &lt;ramekin&gt;",
        "Override in 1 of 5 episodes: mujoco_override true",
        "In 1 of 5 episodes the initial state was part of the training data",
        "3.3.7, 3.4.0",
        "name: &lt;lift&gt; &amp; more",
        "Planning latency",
        "Steps to success",
    ):
        assert text in page, text
    assert "<soup>" not in page
    assert "<b>ValueError" not in page
    strips = [source for source in parser.sources if source.startswith("data:image/jpeg;base64,")]
    others = [source for source in parser.sources if not source.startswith("data:")]
    assert len(strips) == 1
    assert set(others) == {"videos/task00_episode001.mp4"}
    assert 'preload="none"' in page
    assert "script" not in parser.tags
    assert not re.search(r"https?://|@import|url\(", page), "nothing is loaded from elsewhere"


def test_a_run_without_episodes_is_a_page(tmp_path: Path) -> None:
    page = write_report(folder(tmp_path, [], episodes=20, successes=0)).read_text()
    parse(page)
    assert "0 / 20" in page


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    write_report(folder(tmp_path, [row(0, 0)]))
    page = write_report(folder(tmp_path, [row(0, 0, success=False)])).read_text()
    assert "0 / 1" in page


def test_a_video_without_strip_is_linked(tmp_path: Path) -> None:
    page = write_report(folder(tmp_path, [row(0, 0, video="videos/task00_episode000.mp4")])).read_text()
    assert "img" not in parse(page).tags
    assert 'src="videos/task00_episode000.mp4"' in page


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected the folder of a run"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    "values", [[0.0], [5.0, 5.0], [1.0, 2.0, 3.0], [1e-4, 2e-4], [100.0] * 99 + [90000.0], [-1.0, 4.0]]
)
def test_a_histogram_counts_everything_once(values: list[float]) -> None:
    chart = histogram(values, "a < b")
    parse(chart)
    assert "a &lt; b" in chart
    assert sum(int(n) for n in re.findall(r"<title>[^<]*: (\d+)</title>", chart)) == len(values)


def test_a_far_outlier_shares_the_last_bin() -> None:
    chart = histogram([100.0] * 99 + [90000.0], "ms")
    assert "200+" in chart
    assert "and above: 1<" in chart
    with pytest.raises(ValueError, match="at least one"):
        histogram([], "ms")


@pytest.mark.parametrize(("rate", "interval"), [(0.0, (0.0, 0.1)), (1.0, (0.9, 1.0)), (0.5, (0.4, 0.6))])
def test_an_interval_bar_is_drawn_inside(rate: float, interval: tuple[float, float]) -> None:
    bar = interval_bar(rate, interval, width=200)
    parse(bar)
    x, width = map(float, re.search(r'class="interval" x="([\d.]+)" width="([\d.]+)"', bar).groups())  # type: ignore[union-attr]
    assert 0 <= x <= x + width <= 200


def test_what_chunks_say_of_their_decoding_is_shown(tmp_path: Path) -> None:
    timings = [{**row(0, index)["timing"], "chunks": {"cache_gap": 0.01 * index}} for index in range(5)]
    rows = [row(0, index, timing=timing) for index, timing in enumerate(timings)]
    write_report(folder(tmp_path, [*rows, row(0, 5)]))
    page = (tmp_path / "report.html").read_text()
    parse(page)
    assert "Decoding: cache gap" in page
    assert "median of 5 episodes 0.02" in page


def test_the_same_episodes_with_several_latencies_are_no_more_episodes(tmp_path: Path) -> None:
    """An interval of 80 where 20 were played four times would be half as wide as it may be."""
    loop = {"mode": "async", "rate_hz": 20.0}
    rows = [row(0, k, success=k < 9, loop={**loop, "latency": late}) for k in range(20) for late in (0.0, 0.2)]
    page = write_report(folder(tmp_path, rows, ci95=None)).read_text()
    assert "success, 95 %" not in page
    assert page.count(">9 / 20<") == 2
    assert "latency 0.2s" in page
    assert ">18 / 40<" not in page.split("Success per task")[1].split("</table>")[0]
    once = write_report(folder(tmp_path, rows[::2], ci95=[0.2582, 0.6579])).read_text()
    assert "success, 95 % 25.8% to 65.8%" in once
