"""Shards of one run, finished anywhere, become the run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from vla_runtime.compose import Config
from vla_runtime.evaluation.folder import (
    Job,
    Row,
    RowFile,
    check_same_parts,
    claim,
    config_differences,
    identity,
    in_order,
    job_of,
    read_config,
    read_rows,
    read_summary,
    sort_rows,
)
from vla_runtime.evaluation.row_check import check_rows
from vla_runtime.evaluation.summary import finish


def merge(config: Config, parts: list[Path], folder: Path) -> dict[str, Any]:
    """Join finished shards of one run into `folder`."""
    configs = [read_config(part) for part in parts]
    whole = {**configs[0], "shard": None}
    for part, other in zip(parts[1:], configs[1:], strict=True):
        found = config_differences(identity(whole), identity({**other, "shard": None}))
        if found:
            raise ValueError(f"merge: {part} is another run than {parts[0]}:\n  " + "\n  ".join(found))
    rows: dict[Job, Row] = {}
    for part in parts:
        if read_summary(part)["missing"]:
            raise ValueError(f"merge: expected finished shards, {part} is not; run its command again with out={part}")
        held = read_rows(part)
        check_rows(part, held)
        for row in held:
            key = job_of(row)
            if key in rows:
                raise ValueError(f"merge: {key} is in more than one of {[str(p) for p in parts]}")
            rows[key] = row
    ordered = in_order(rows.values())
    profiles = {row["loop"]["latency"]: row["loop"]["profile"] for row in ordered if "profile" in row["loop"]}
    check_same_parts(folder, ordered, ordered[0], profiles, ordered[0]["timing"].get("address"))
    shards = sorted(str(other["shard"]) for other in configs)
    count = int(shards[0].partition("/")[2] or 1)
    if shards != sorted(f"{i}/{count}" for i in range(count)):
        raise ValueError(f"merge: expected all shards of one run, got {shards}")
    for part in parts:
        for row in read_rows(part):
            kept = [row[name] for name in ("video", "recording") if row.get(name)]
            missing = [name for name in kept if not (part / name).is_file()]
            if missing:
                raise ValueError(f"merge: expected {part} to hold what its rows name, got no {missing}")
    if in_order(read_rows(folder)) not in ([], ordered):
        raise ValueError(f"out={folder}: expected an empty folder, got one with other episodes; choose another out=")
    claim(folder, {**whole, "out": config["out"], "merge": None})
    for part in parts:
        for row in read_rows(part):
            if row["video"]:
                (folder / "videos").mkdir(exist_ok=True)
                for source in (part / row["video"], (part / row["video"]).with_suffix(".jpg")):
                    shutil.copyfile(source, folder / "videos" / source.name)
            if row.get("recording"):
                (folder / "recordings").mkdir(exist_ok=True)
                shutil.copyfile(part / row["recording"], folder / row["recording"])
    RowFile(folder, ordered).close()
    return finish(whole, sort_rows(folder), list(rows), folder)
