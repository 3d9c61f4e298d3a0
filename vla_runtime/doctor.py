"""Say what works on this machine and how to mend what does not: `python -m vla_runtime.doctor`.

With contract=[a.yaml,b.yaml] it says instead in what a robot's contract and another's differ; with one, whether it is
one.

The questions are named in configs/doctor.yaml, `_target_` and arguments each, and every one is asked in a
process of its own with a time limit: a driver that crashes or hangs takes down its check and nothing else.
This file knows no question.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# stdout is left to whatever a check imports; the finding goes into a file.
_CHILD = """
import importlib, json, sys
target, keywords, path = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
module, _, name = target.rpartition(".")
finding = getattr(importlib.import_module(module), name)(**keywords)
with open(path, "w") as file:
    json.dump(finding, file)
"""


def doctor(config: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Run config["checks"], each at most config["timeout"] seconds; exit code 1 when a required one fails.

    config["contract"]: None, or files to compare instead.

    config["only"]: None, or the names of those to run. ValueError for an unknown name, and when a check is
    not a mapping with `_target_` and `required`.
    """
    if config.get("contract") is not None:
        return _contracts(config["contract"])
    checks = _selected(config["checks"], config.get("only"))
    for name, check in checks.items():
        if not isinstance(check, Mapping) or "." not in str(check.get("_target_")) or "required" not in check:
            raise ValueError(
                f"checks.{name}: expected _target_: package.function, required and arguments, got {check!r}"
            )
    results = []
    for name, check in checks.items():
        arguments = {key: value for key, value in check.items() if key not in ("_target_", "required")}
        result = ask(name, check["_target_"], arguments, config["timeout"])
        results.append({**result, "required": bool(check["required"])})
    ok = all(result["ok"] for result in results if result["required"])
    _show(results)
    return {"ok": ok, "checks": results}, 0 if ok else 1


def _contracts(paths: Sequence[str] | str) -> tuple[dict[str, Any], int]:
    # Late: a machine whose contracts cannot be read is to be looked at, too.
    from vla_runtime.contract import Contract, every_difference

    names = [paths] if isinstance(paths, str) else list(paths)
    if not 1 <= len(names) <= 2:
        raise ValueError(f"contract: expected one file or [a.yaml,b.yaml], got {len(names)}")
    read = [Contract.load(name) for name in names]
    found = every_difference(read[0], read[1]) if len(read) == 2 else []
    results = [
        {"name": what, "ok": False, "detail": detail, "remedy": f"change {' or '.join(names)}", "required": True}
        for what, _, detail in (line.partition(": ") for line in found)
    ] or [
        {"name": name, "ok": True, "detail": f"contract {one.fingerprint()}", "remedy": "", "required": True}
        for name, one in zip(names, read, strict=True)
    ]
    _show(results)
    return {"ok": not found, "checks": results}, 1 if found else 0


def ask(name: str, target: str, arguments: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Call the function `target` with `arguments` in a subprocess: {name, ok, detail, remedy}, whatever happens to it.

    It must return a mapping with ok, detail and remedy. timeout: seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, errors = Path(folder) / "finding.json", Path(folder) / "stderr"
        command = [sys.executable, "-c", _CHILD, target, json.dumps(dict(arguments)), str(path)]
        with errors.open("wb") as file:
            code = _wait(
                # A session of its own, so that the processes a check starts end with it. No stdin: nothing may ask.
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True
                ),
                timeout,
            )
        lines = [line for line in errors.read_text(errors="replace").splitlines() if line.strip()]
        if code == 0:
            try:
                finding = json.loads(path.read_text())
                return {
                    "name": name,
                    "ok": bool(finding["ok"]),
                    "detail": str(finding["detail"]),
                    "remedy": str(finding["remedy"]),
                }
            except (OSError, ValueError, KeyError, TypeError):
                said = path.read_text() if path.is_file() else "nothing"
                lines = [f"expected {target} to return ok, detail and remedy, got {said}"]
    if code is None:
        detail = f"gave no answer within {timeout:g} s"
    elif code < 0:
        detail = f"the process died of {signal.Signals(-code).name}"
    else:
        detail = lines[-1].strip() if lines else f"exit code {code}"
    module, _, function = target.rpartition(".")
    keywords = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    alone = shlex.quote(f"import {module}; print({module}.{function}({keywords}))")
    return {"name": name, "ok": False, "detail": detail, "remedy": f"see it fail alone: python -c {alone}"}


def _selected(checks: Mapping[str, Any], only: Sequence[str] | str | None) -> Mapping[str, Any]:
    if only is None:
        return checks
    names = [only] if isinstance(only, str) else only
    for name in names:
        if name not in checks:
            near = difflib.get_close_matches(str(name), checks, 3, 0.4)
            raise ValueError(
                f"only: expected names among {', '.join(checks)}, got {name!r}"
                + (f"; nearest: {', '.join(near)}" if near else "")
            )
    return {name: checks[name] for name in checks if name in names}


def _wait(process: subprocess.Popen[bytes], timeout: float) -> int | None:
    """The exit code, or None when `timeout` seconds were not enough; then, as after Ctrl-C, all of it is killed."""
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _show(results: Sequence[Mapping[str, Any]]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        # Part of what may be wrong with the machine.
        for result in results:
            logger.info("%s: %s %s %s", result["name"], result["ok"], result["detail"], result["remedy"])
        return
    from rich.text import Text

    table = Table(show_lines=False)
    for column in ("check", "", "found", "remedy"):
        table.add_column(column, overflow="fold")
    for result in results:
        state, style = (
            ("ok", "green") if result["ok"] else ("FAILED", "red") if result["required"] else ("no", "yellow")
        )
        table.add_row(result["name"], Text(state, style=style), Text(result["detail"]), Text(result["remedy"]))
    Console(stderr=True).print(table)


def _without_core(error: ImportError) -> int:
    """What can still be said when not even a config can be read."""
    check = {
        "name": "core",
        "ok": False,
        "detail": f"{type(error).__name__}: {error}",
        "remedy": "pip install vla_runtime (in a checkout: make setup)",
        "required": True,
    }
    logger.error("%s; %s", check["detail"], check["remedy"])
    sys.stdout.write(json.dumps({"ok": False, "checks": [check]}) + "\n")
    return 1


if __name__ == "__main__":
    try:
        from vla_runtime.compose import main
    except ImportError as missing:
        sys.exit(_without_core(missing))
    main("doctor", doctor)
