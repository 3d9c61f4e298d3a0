"""Compares action heads fairly.

    python benchmarks/heads.py --env lift --data data/lift --trunk checkpoints/lift_trunk --out runs/heads

Every head is trained on the same data, on the same frozen trunk, from the same decoder weights and for the same
number of updates, its checkpoint chosen by held-out decoded L1, and then evaluated on the same initial
states, none of which was seen in training. Both steps are ordinary commands of the package, so what was
finished is not done again, and heads may be done in several calls, also side by side. Writes
benchmarks/heads_<table>.json and the rows beside it, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from commands import command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vla_runtime.disk import write_json, write_text
from vla_runtime.machine import hardware

HEADS = {
    "beast": ["tokenizer=bspline"],
    "discrete_diffusion": ["tokenizer=bspline"],
    "autoregressive": ["tokenizer=bspline"],
    "diffusion": ["tokenizer=none", "head.denoising.predicts=velocity"],
    "flow": ["tokenizer=none"],
    "regression": ["tokenizer=none"],
}
HERE = Path(__file__).parent


def training_minutes(folder):
    """All updates at the pace of the median one, validation not counted; so a run may have been killed and gone on."""
    events = EventAccumulator(f"{folder}.curves", size_guidance={"scalars": 0})
    events.Reload()
    times = np.array([event.wall_time for event in events.Scalars("loss")])
    return round(float(np.median(np.diff(times))) * len(times) / 60, 1)


def trained(arguments, head):
    """Train a head, or go on with it; what the command said, and how long training took."""
    folder = arguments.out / f"nano_{arguments.table}_{head}"
    known = folder.with_name(f"{folder.name}.json")
    if known.is_file():
        return folder, json.loads(known.read_text())
    place = "resume" if folder.with_name(f"{folder.name}.training.pt").is_file() else "out"
    line = command(
        "finetune", f"data={arguments.data}", "control=absolute", f"head={head}", *HEADS[head], f"{place}={folder}",
        f"init.folder={arguments.trunk}", "init.parts=backbone", "freeze_trunk=true", f"steps={arguments.steps}",
        f"batch_size={arguments.batch_size}", "precision=bf16", "learning_rate=0.0005", "warmup=100", "ema=0.995",
        "validate_every=250", "save_every=250", f"features={arguments.out / 'features'}",
    )  # fmt: skip
    line["training_minutes"] = training_minutes(folder)
    known.write_text(json.dumps(line))
    return folder, line


def evaluated(arguments, folder):
    """The summary and the rows of a head's episodes.

    With --batch questions of several episodes are answered in one pass, by a server of its own (answers equal to 1e-5);
    how long one takes alone is then told by a few episodes without it.
    """
    run = folder.with_name(f"{folder.name}_run")
    common = (f"env={arguments.env}", "env.control=absolute", "video=none")

    def rows_of(run):
        # By its name: where the folder lay is nobody's business.
        return [json.loads(row) | {"policy": folder.name} for row in (run / "episodes.jsonl").read_text().splitlines()]

    if arguments.batch == 1:
        said = command(
            "rollout", *common, f"policy={folder}", f"out={run}", f"episodes={arguments.episodes}",
            f"workers={arguments.workers}",
        )  # fmt: skip
        return said, rows_of(run)
    together = folder.with_name(f"{folder.name}_run_together")
    with server(folder, arguments.batch) as address:
        said = command(
            "rollout", *common, "policy=remote", f"policy.address={address}", "policy.timeout=120", f"out={together}",
            f"episodes={arguments.episodes}", f"workers={arguments.batch}",
        )  # fmt: skip
    alone = command("rollout", *common, f"policy={folder}", f"out={run}_alone", "episodes=1")
    return said | {"latency_ms": alone["latency_ms"]}, rows_of(together)


@contextmanager
def server(folder, batch):
    """A server for a policy while the block runs; its address."""
    with subprocess.Popen(
        [sys.executable, "-m", "vla_runtime.serve", f"policy={folder}", "port=0", f"batch={batch}"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            said = next((line for line in process.stderr if " at ws://" in line), None)
            if said is None:
                sys.exit(f"serve {folder}: expected an address, got none")
            # Nobody reads further: a full pipe would stop it.
            threading.Thread(target=lambda: deque(process.stderr, 0), daemon=True).start()
            yield said.split()[-1]
        finally:
            process.terminate()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", required=True, help="lift, can, libero_object")
    parser.add_argument("--data", required=True, help="a folder, or several as [a,b]")
    parser.add_argument("--trunk", required=True, type=Path, help="a checkpoint trained on the same data")
    parser.add_argument("--out", required=True, type=Path, help="where checkpoints and runs go")
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--table", help="what the files are called after, if not after the environment")
    parser.add_argument("--steps", type=int, default=2000, help="updates a head")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--episodes", type=int, default=100, help="per task")
    parser.add_argument(
        "--batch", type=int, default=1, help="episodes at once whose questions are answered in one pass"
    )
    parser.add_argument("--workers", type=int, default=2, help="of the evaluation; OMP_NUM_THREADS limits training")
    arguments = parser.parse_args()
    arguments.table = arguments.table or arguments.env
    rows = HERE / "rows"
    rows.mkdir(exist_ok=True)
    path = HERE / f"heads_{arguments.table}.json"
    for head in arguments.heads:
        folder, line = trained(arguments, head)
        said, found = evaluated(arguments, folder)
        text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in found)
        write_text(rows / f"{arguments.table}_{head}.jsonl", text)
        # Read again: another call may have added its heads.
        table = json.loads(path.read_text()) if path.is_file() else {}
        table[head] = {
            **{key: said[key] for key in ("episodes", "successes", "errors", "success_rate", "ci95", "latency_ms")},
            **{key: line[key] for key in ("l1", "parameters", "steps", "training_minutes")},
            "batch_size": arguments.batch_size,
            "training_threads": torch.get_num_threads(),
            "hardware": hardware(),
        }
        write_json(path, table)
    print("| head | success | interval | held-out L1 | chunk p50 ms | parameters | training min |")
    print("|---|---|---|---|---|---|---|")
    for head, row in table.items():
        low, high = row["ci95"]
        print(
            f"| {head} | {row['successes']} of {row['episodes']} | {100 * low:.1f} to {100 * high:.1f} % "
            f"| {row['l1']:.4f} | {row['latency_ms']['p50']:.1f} | {row['parameters'] / 1e6:.2f} M "
            f"| {row['training_minutes']} |"
        )


if __name__ == "__main__":
    main()
