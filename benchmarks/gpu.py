"""All that only a GPU can show, in one prepared call: launch costs, tests, graphs against eager, goals, training.

    python benchmarks/gpu.py OUT [--seconds 430] [--only env,tests]
    python benchmarks/gpu.py --dry-run

Each part (benchmarks/gpu_parts.py) runs in a process of its own with a limit of its own, most telling first, so that a
part that fails, hangs or breaks the CUDA context ends alone. OUT/gpu.json is replaced as a whole after each. --dry-run
goes through all parts on the CPU with presets a few thousand weights large. benchmarks/prepare_gpu.py makes what has to
be taken along. The last line is JSON; the exit code is 1 if a part failed or found no time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vla_runtime.control.clock import SystemClock  # noqa: E402
from vla_runtime.disk import write_json  # noqa: E402
from vla_runtime.machine import hardware  # noqa: E402

# Parts and the seconds each may take, in order; what is left of --seconds may be less.
LIMITS = {
    "env": 40, "tests": 100, "shipped": 60, "dp_t": 80, "beast_f": 60, "dd_vla_7b": 110, "profile": 60, "fp8": 60,
    "compiled": 120, "train": 45, "pi0": 60,
}  # fmt: skip
# A part is not begun with less; a dry run is on whatever machine there is.
LEAST, DRY_LIMIT = 20, 900
BAC, EXACT = "bac 10, 5 bubbled + exact", "exact savings"


def goals(parts: dict[str, Any]) -> list[dict[str, Any]]:
    """What is aimed at, what came, and whether it is reached; got is None where it was not measured."""
    rows = {name: {row["variant"]: row for row in found.get("rows", [])} for name, found in parts.items()}

    def value(part: str, variant: str, field: str) -> float | None:
        row = rows.get(part, {}).get(variant)
        return None if row is None else row[field]

    def ratio(part: str, first: tuple[str, str], second: tuple[str, str]) -> float | None:
        above, below = value(part, *first), value(part, *second)
        return None if above is None or below is None else round(above / below, 2)

    bac = f"{BAC}, captured"
    judged = [
        ("dp_t: BAC, eager, over plain, eager", value("dp_t", BAC, "speedup"), "at least", 6.0),
        ("dp_t: BAC, captured, over plain, eager", value("dp_t", bac, "speedup"), "at least", 15.0),
        ("dp_t: BAC, captured, over all steps in full, captured",
         ratio("dp_t", (f"{EXACT}, captured", "p50_ms"), (bac, "p50_ms")), "at least", 4.0),
        ("dd_vla_7b: 12 rounds, p50 ms", value("dd_vla_7b", "12 rounds, captured", "p50_ms"), "at most", 60.0),
        ("dd_vla_7b: 4 rounds, p50 ms", value("dd_vla_7b", "4 rounds, captured", "p50_ms"), "at most", 27.0),
        ("dd_vla_7b: 12 rounds in fp8, p50 ms", value("fp8", "12 rounds, captured", "p50_ms"), "at most", 35.0),
        ("beast_f: p50 ms", value("beast_f", "captured", "p50_ms"), "at most", 4.0),
        ("beast_f: p99 over p50", ratio("beast_f", ("captured", "p99_ms"), ("captured", "p50_ms")), "at most", 1.1),
    ]  # fmt: skip
    return [
        {
            "goal": name, "wanted": f"{how} {bound:g}", "got": got,
            "reached": got is not None and (got >= bound if how == "at least" else got <= bound),
        }
        for name, got, how, bound in judged
    ]  # fmt: skip


def machine(device: str) -> dict[str, Any]:
    """The hardware and the versions that figures belong to."""
    versions = {}
    for package in ("torch", "transformers", "diffusers", "triton", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    gpu: dict[str, Any] = {"gpu": None, "driver": None}
    if device != "cpu":
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        told = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().splitlines()
        names = [part.strip() for part in told[0].split(",")] if told else []
        gpu = dict(zip(gpu, names, strict=False)) if names else gpu
    return {**gpu, "cpu": hardware(), "python": platform.python_version(), **versions}


def run_part(name: str, out: Path, device: str, dry: bool, limit: float) -> dict[str, Any]:
    """One part in a process of its own; what it returned, or {error}. All that it started is ended at the limit."""
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder) / "answer.json", Path(folder) / "log"
        command = [sys.executable, __file__, str(out), "--device", device, "--part", name, "--answer", str(answer)]
        with log.open("w") as file:
            process = subprocess.Popen(
                command + ["--dry-run"] * dry, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                # Whatever it started, its tests say, ends with it.
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        printed = log.read_text(errors="replace")[-3000:]
        if code is None:
            return {"error": f"expected to end within {limit:.0f} s", "printed": printed}
        if code != 0 or not answer.is_file():
            return {"error": f"exit code {code}", "printed": printed}
        found: dict[str, Any] = json.loads(answer.read_text())
        return found


def carry_out(part: str, out: Path, device: str, dry: bool, answer: Path) -> None:
    """Inside a part's process."""
    import gpu_parts
    import torch

    found = gpu_parts.PARTS[part](torch.empty(0, device=device).device, out, dry)
    write_json(answer, json.loads(json.dumps(found, default=float)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="folder of gpu.json and what lies beside it")
    parser.add_argument("--device", help="default: cuda, or cpu with --dry-run")
    parser.add_argument("--seconds", type=float, help="of all parts together; default 430, or no limit with --dry-run")
    parser.add_argument("--only", help=f"some of {','.join(LIMITS)}")
    parser.add_argument("--dry-run", action="store_true", help="all parts, small, on the CPU")
    parser.add_argument("--part", choices=LIMITS, help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    device = asked.device or ("cpu" if asked.dry_run else "cuda")
    if asked.part:
        carry_out(asked.part, asked.out, device, asked.dry_run, asked.answer)
        return 0
    chosen = list(LIMITS) if asked.only is None else asked.only.split(",")
    for name in chosen:
        if name not in LIMITS:
            parser.error(f"--only: expected some of {', '.join(LIMITS)}, got {name!r}")
    if asked.out is None and not asked.dry_run:
        parser.error("OUT: expected a folder for gpu.json, got none")
    out = Path(asked.out or tempfile.mkdtemp(prefix="gpu_dry_run_")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    seconds = asked.seconds or (float("inf") if asked.dry_run else 430.0)
    clock, parts = SystemClock(), {}
    began = clock.now()
    document = {"machine": machine(device), "dry_run": asked.dry_run, "parts": parts, "goals": goals(parts)}
    for name in chosen:
        left, start = seconds - (clock.now() - began), clock.now()
        if left < LEAST:
            parts[name] = {"error": f"skipped: {left:.0f} s left, at least {LEAST} needed"}
        else:
            limit = min(DRY_LIMIT if asked.dry_run else LIMITS[name], left - 5)
            parts[name] = run_part(name, out, device, asked.dry_run, limit)
        parts[name]["took_s"] = round(clock.now() - start, 1)
        document["goals"] = goals(parts)
        write_json(out / "gpu.json", document)
        state = parts[name].get("error", "ok")
        print(f"{name:10} {parts[name]['took_s']:6.1f} s  {state}", flush=True)
        if state != "ok":
            print("\n".join(parts[name].get("printed", "").splitlines()[-8:]), flush=True)
    for goal in document["goals"]:
        came = (
            "not measured" if goal["got"] is None else f"{goal['got']:g} ({'reached' if goal['reached'] else 'missed'})"
        )
        print(f"{goal['goal']:56} {goal['wanted']:14} {came}")
    failed = [name for name, part in parts.items() if "error" in part]
    last = {"ok": not failed, "failed": failed, "machine": document["machine"], "goals": document["goals"]}
    print(json.dumps({**last, "out": str(out)}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
