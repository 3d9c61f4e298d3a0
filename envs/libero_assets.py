"""Gets hf-libero into the process without its questions, and its scene files from where they lie.

hf-libero asks a question on stdin at its first import when its config file is missing, and downloads its
meshes when they are not beside the package. Both are settled here before anything of it is imported. This
file knows no task and builds nothing.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import tempfile
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ASSETS_VARIABLE = "VLA_LIBERO_ASSETS"
# One folder of each kind of scene file; a path without them is not LIBERO's assets.
_EXPECTED = ("scenes", "articulated_objects", "stable_scanned_objects")


def import_libero() -> Any:
    """The module `libero.libero`, imported without a prompt and without touching the user's own config.

    A process that has already imported it keeps what it has.
    """
    if "libero.libero" not in sys.modules:
        os.environ["LIBERO_CONFIG_PATH"] = str(_write_config(_package_folder()))
    return importlib.import_module("libero.libero")


def use_assets(configured: str | None) -> Path:
    """Point hf-libero at its scene files: `configured`, else $VLA_LIBERO_ASSETS, else its own, downloaded if need be.

    Objects and arenas look the path up when they are constructed, so this must run before an environment is
    built. FileNotFoundError, naming what to set, when there are none.
    """
    libero = import_libero()
    wanted = configured or os.environ.get(ASSETS_VARIABLE)
    if wanted:
        folder = Path(wanted).expanduser().resolve()
        source = "env.assets" if configured else ASSETS_VARIABLE
        _require_assets(folder, f"{source}: expected the folder with LIBERO's scene files")
    else:
        with redirect_stdout(sys.stderr):  # it reports its download there; stdout belongs to the command
            folder = Path(libero.get_assets_path()).resolve()
        _require_assets(folder, "libero: expected scene files beside hf-libero or from its download")
    libero._assets_path_cache = str(folder)
    return folder


@cache
def assets_hash(folder: Path) -> str:
    """Short hash of the relative paths and sizes under `folder`: tells sets of scene files apart."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
    return digest.hexdigest()[:12]


def _require_assets(folder: Path, expectation: str) -> None:
    missing = [name for name in _EXPECTED if not (folder / name).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{expectation}, got {folder} without {', '.join(missing)}; set env.assets=<folder> or {ASSETS_VARIABLE} "
            "to a copy of LIBERO's `assets` folder, or install huggingface_hub and let hf-libero download it"
        )


def _package_folder() -> Path:
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "libero: expected the package hf-libero, got none; pip install --no-deps hf-libero==0.1.4 "
            '(its dependencies are in the extra "libero")',
            name="libero",
        )
    return Path(next(iter(spec.submodule_search_locations))) / "libero"


def _write_config(package: Path) -> Path:
    """A config folder of ours for hf-libero installed at `package`, written whole or not at all."""
    cache_root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = "libero-" + hashlib.sha256(str(package).encode()).hexdigest()[:12]
    try:
        folder = Path(cache_root) / "vla_runtime" / name
        folder.mkdir(parents=True, exist_ok=True)
        _replace_text(folder / "config.yaml", _config_text(package))
    except OSError:  # no home, or a read-only one: a folder that lasts as long as the machine is up
        folder = Path(tempfile.gettempdir()) / f"vla_runtime-{os.getuid()}" / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _replace_text(folder / "config.yaml", _config_text(package))
    return folder


def _config_text(package: Path) -> str:
    text: str = yaml.safe_dump(
        {
            "benchmark_root": str(package),
            "bddl_files": str(package / "bddl_files"),
            "init_states": str(package / "init_files"),
            "datasets": str(package.parent / "datasets"),
            "assets": str(package / "assets"),
        }
    )
    return text


def _replace_text(path: Path, text: str) -> None:
    if path.is_file() and path.read_text() == text:
        return
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)
