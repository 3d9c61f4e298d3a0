"""The command that trains or fine-tunes a policy on a recorded data set.

    python -m vla_runtime.finetune data=data/lift head=beast tokenizer=bspline out=checkpoints/lift

It composes and shows progress; what training is lies behind `trainer` in its config. It knows no network.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vla_runtime.compose import BadArguments, Config, Result, build, main
from vla_runtime.control.clock import SystemClock
from vla_runtime.disk import locked


def finetune(config: Config) -> Result:
    """Train what `config` says; the last line and the exit code. BadArguments for options that cannot be."""
    if config["data"] is None:
        raise BadArguments("data: expected a folder written by vla_runtime.collect, got none")
    if (config["out"] is None) == (config["resume"] is None):
        raise BadArguments("out, resume: expected one of them, out= for a new checkpoint or resume= to go on with one")
    out = Path(config["resume"] or config["out"])
    if config["resume"] is None and out.exists():
        raise BadArguments(
            f"out={out}: expected a new folder, got one that exists; choose another, or go on with resume={out}"
        )
    rate = TextColumn("{task.fields[rate]:.2f} steps/s")
    columns = (TextColumn("loss {task.fields[loss]:.4f}"), BarColumn(), MofNCompleteColumn(), rate)
    clock = SystemClock()
    began: tuple[int, float] | None = None
    console = Console(stderr=True)
    with (
        locked(out.with_name(f".{out.name}.lock")),
        Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not sys.stderr.isatty()
        ) as bar,
    ):
        shown = bar.add_task("steps", total=config["steps"], loss=float("nan"), rate=float("nan"))

        def on_step(step: int, loss: float) -> None:
            nonlocal began
            if began is None:
                # A resumed run begins in the middle: its time left follows from its own steps.
                began = step, clock.now()
                bar.reset(shown, total=config["steps"], completed=step + 1, loss=loss, rate=float("nan"))
                return
            speed = (step - began[0]) / max(clock.now() - began[1], 1e-9)
            bar.update(shown, completed=step + 1, loss=loss, rate=speed)

        try:
            answer: dict[str, Any] = build({**config["trainer"], "_partial_": True})(config, on_step)
        except KeyboardInterrupt as error:
            # Before the trainer could say what was saved.
            raise RuntimeError("interrupted before training began; run the same command again") from error
    return answer, 0


if __name__ == "__main__":
    main("finetune", finetune)
