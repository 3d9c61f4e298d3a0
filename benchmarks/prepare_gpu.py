"""Prepare this checkout for a machine with a GPU that takes 64 MiB and has no network; and put it back.

    python benchmarks/prepare_gpu.py            # prepare; prints what to run there
    python benchmarks/prepare_gpu.py --restore  # put the working tree back

Preparing takes large tracked files out of the working tree (git keeps them), downloads wheels that a usual image with
torch and transformers lacks into .whl/, records observations of env=lift into .gpu/, and fails if all is too large.
Both folders are ignored by git and have to be carried along by name. Python there: 3.12 on x86_64 Linux.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
WHEELS, RECORDED = ROOT / ".whl", ROOT / ".gpu"
LIMIT = 64 * 2**20
# Large files that no part of benchmarks/gpu.py reads.
LARGE = ("benchmarks/rows/", "policies/shipped/nano_")
LARGE_PATHS = ("--", "benchmarks/rows", "policies/shipped")
# Of those, kept where they fit, in this order.
KEPT = ("policies/shipped/nano_lift_diffusion/", "policies/shipped/nano_lift_beast/")
# Beside torch, transformers, accelerate, peft, numpy, pyarrow, msgpack, rich, zipp and what tests and plots need.
NEEDED = ("diffusers", "torchao", "websockets", "hydra-core", "omegaconf<2.4", "importlib_metadata")
# Published as source only.
BUILT = "antlr4-python3-runtime==4.9.3"
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
FRAMES = 12
# Of the command there: parts of benchmarks/gpu.py end before it.
TIMEOUT, SECONDS = 480, 430
COMMAND = (
    "python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade "
    "--target /tmp/site .whl/*.whl && export PYTHONPATH=/tmp/site:$PWD HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 "
    "TOKENIZERS_PARALLELISM=false || exit; "
    f"python3 benchmarks/gpu.py $OUT --seconds {SECONDS}"
)


def git(*arguments: str, given: str | None = None) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, input=given, check=False
    )
    if done.returncode:
        raise RuntimeError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def large(kept: tuple[str, ...]) -> list[str]:
    """Tracked files to be taken out of the working tree."""
    tracked = git("ls-files", "-z").split("\0")
    return [name for name in tracked if name.startswith(LARGE) and not name.startswith(kept)]


def restore() -> list[str]:
    """Bring back whatever was taken out; the names."""
    names = [line[2:] for line in git("ls-files", "-v", "-z", *LARGE_PATHS).split("\0") if line.startswith("S ")]
    if names:
        git("update-index", "-z", "--no-skip-worktree", "--stdin", given="\0".join(names))
        git("checkout-index", "-z", "--stdin", given="\0".join(names))
    return names


def take_out(names: list[str]) -> None:
    """Take tracked files out of the working tree. ValueError for some that were changed: they would be lost."""
    changed = git("status", "--porcelain", "-z", "--untracked-files=no", *LARGE_PATHS).split("\0")
    lost = sorted({entry[3:] for entry in changed if entry[3:] in set(names)})
    if lost:
        raise ValueError(f"{lost[0]}: expected no changes that are not committed, got some; commit or undo them")
    git("update-index", "-z", "--skip-worktree", "--stdin", given="\0".join(names))
    for name in names:
        (ROOT / name).unlink(missing_ok=True)


def download() -> None:
    """Wheels into .whl/, in the versions of constraints.txt, one of each."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    known = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    wanted = []
    for name in NEEDED:
        # One without a pin may have a bound of its own: hydra-core's, for omegaconf.
        version = known.get(re.sub(r"[-_.]+", "-", name).lower())
        wanted.append(f"{name}=={version}" if version else name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    WHEELS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WHEELS) as folder:
        platforms = [option for name in PLATFORMS for option in ("--platform", f"{name}_x86_64")]
        python = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
        subprocess.run([*pip, "download", *python, *platforms, "-d", folder, *wanted], check=True)
        subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, BUILT], check=True)
        # Two versions of one package would stop the installation there.
        for old in WHEELS.glob("*.whl"):
            old.unlink()
        for new in Path(folder).glob("*.whl"):
            new.rename(WHEELS / new.name)


def recorded() -> None:
    """Observations of env=lift's expert, spread over its episodes, into .gpu/lift.npz."""
    from vla_runtime import collect
    from vla_runtime.compose import load
    from vla_runtime.data.reader import Dataset

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "lift"
        collect.collect(load("collect", ["env=lift", "episodes=2", "workers=1", f"out={data}"]))
        dataset = Dataset(data, horizon=1, control="absolute")
        shown = [dataset[int(index)][0] for index in np.linspace(0, len(dataset) - 1, FRAMES)]
        columns = {name: np.stack([one.images[name] for one in shown]) for name in shown[0].images}
        columns["state"] = np.stack([one.state for one in shown])
        columns["time"] = np.array([one.time for one in shown])
        columns["instruction"] = np.array([one.instruction for one in shown])
        RECORDED.mkdir(exist_ok=True)
        np.savez_compressed(RECORDED / "lift.npz", **columns)


def travels() -> int:
    """Bytes of all that goes along: tracked and untracked files that git does not ignore, and the carried folders."""
    names = set(git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")) - {""}
    files = [path for name in names if (path := ROOT / name).is_file()]
    files += [path for folder in (WHEELS, RECORDED) for path in folder.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)


def prepare(skip_wheels: bool, skip_recording: bool) -> int:
    if not skip_wheels:
        download()
    if not skip_recording:
        recorded()
    # What one run took out the next may keep.
    restore()
    kept = KEPT
    while True:
        take_out(large(kept))
        size = travels()
        if size <= LIMIT:
            break
        restore()
        if not kept:
            raise ValueError(f"expected at most {LIMIT} bytes to go along, got {size}; ignore or remove large files")
        kept = kept[:-1]
    print(f"{size / 2**20:.1f} MiB go along, of {LIMIT / 2**20:.0f}; shipped policies: {', '.join(kept) or 'none'}")
    print(f"run there, in the repository's root, with a limit of {TIMEOUT} s, carrying .whl and .gpu:\n\n{COMMAND}\n")
    print("afterwards, here: python benchmarks/prepare_gpu.py --restore")
    print(json.dumps({"bytes": size, "command": COMMAND, "timeout_s": TIMEOUT, "carry": [".whl", ".gpu"]}))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restore", action="store_true", help="put the working tree back")
    parser.add_argument("--skip-wheels", action="store_true", help="keep .whl as it is")
    parser.add_argument("--skip-recording", action="store_true", help="keep .gpu as it is")
    asked = parser.parse_args()
    if asked.restore:
        print(json.dumps({"restored": len(restore())}))
        return 0
    return prepare(asked.skip_wheels, asked.skip_recording)


if __name__ == "__main__":
    sys.exit(main())
