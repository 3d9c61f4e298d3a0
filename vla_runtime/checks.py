"""What the doctor asks of a machine: one function a question, named in configs/doctor.yaml.

Each returns a Finding and imports what it asks about, if at all, only inside; the doctor runs each in a
process of its own. They know versions, folders and devices, but no environment and no policy.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version


class Finding(TypedDict):
    """What a check says. remedy: empty when there is nothing to mend."""

    ok: bool
    detail: str
    remedy: str


# One small file of each folder that LIBERO's scenes load from.
_ASSETS = (
    "wall.xml",
    "scenes/libero_tabletop_base_style.xml",
    "scenes/libero_kitchen_tabletop_base_style.xml",
    "articulated_objects/flat_stove.xml",
    "stable_hope_objects/alphabet_soup/alphabet_soup.xml",
    "stable_scanned_objects/plate/plate.xml",
    "turbosquid_objects/wine_bottle/wine_bottle.xml",
    "textures/ceramic.png",
)


def python_version(minimum: str) -> Finding:
    """The interpreter is `minimum` (such as "3.11") or newer."""
    running = ".".join(str(part) for part in sys.version_info[:3])
    ok = Version(running) >= Version(str(minimum))
    return _finding(ok, f"{running} at {sys.executable}", f"make the environment with Python >= {minimum}")


def requirements(extra: str = "") -> Finding:
    """Every package of the core, or of an extra of this distribution, is installed in a version that fits."""
    wanted = own_requirements(extra)
    missing, wrong, fitting = [], [], []
    for requirement in wanted:
        installed = _version(requirement.name)
        if installed is None:
            missing.append(str(requirement))
        elif not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name}{requirement.specifier}, got {installed}")
        else:
            fitting.append(f"{requirement.name} {installed}")
    bracket = f"[{extra}]" if extra else ""
    remedy = f"pip install 'vla_runtime{bracket}' (in a checkout: pip install -c constraints.txt -e '.{bracket}')"
    if not (missing or wrong):
        return _finding(True, ", ".join(fitting), remedy)
    parts = [f"{title}: {', '.join(names)}" for title, names in (("missing", missing), ("expected", wrong)) if names]
    return _finding(False, "; ".join(parts), remedy)


def version_in_range(distribution: str, specifier: str, reason: str) -> Finding:
    """An installed distribution's version lies in `specifier` (such as ">=3.3,<3.4"); `reason` says why it must."""
    installed = _version(distribution)
    remedy = f"pip install '{distribution}{specifier}'"
    if installed is None:
        return _finding(False, "not installed", remedy)
    if not SpecifierSet(specifier).contains(installed, prereleases=True):
        return _finding(False, f"expected {specifier}, got {installed}: {reason}", remedy)
    return _finding(True, installed, remedy)


def package_ownership(names: Sequence[str]) -> Finding:
    """The top-level packages `names` are the ones that stand beside vla_runtime, and nobody else's.

    The package index holds unrelated distributions that install folders of the same names over ours.
    """
    beside = Path(__file__).resolve().parent.parent
    owners = metadata.packages_distributions()
    problems, strangers = [], set()
    for name in names:
        spec = importlib.util.find_spec(name)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or [])] if spec else []
        if places != [beside / name]:
            problems.append(f"{name}: expected {beside / name}, got {', '.join(map(str, places)) or 'nothing'}")
        for owner in sorted({canonicalize_name(owner) for owner in owners.get(name, ())} - {"vla-runtime"}):
            problems.append(f"{name} also belongs to the distribution {owner}")
            strangers.add(owner)
    remedy = f"pip uninstall {' '.join(sorted(strangers))}, then " if strangers else ""
    remedy += "install vla_runtime again, and run from a folder that holds no packages of these names"
    return _finding(not problems, "; ".join(problems) or f"{', '.join(names)} are ours", remedy)


def torch_device() -> Finding:
    """What torch would compute on; not having torch is no fault."""
    if importlib.util.find_spec("torch") is None:
        detail = "torch is not installed; learned policies and LIBERO need it"
        return Finding(ok=True, detail=detail, remedy="pip install 'vla_runtime[policies]'")
    import torch

    if not torch.cuda.is_available():
        return _finding(True, f"torch {torch.__version__} on the CPU, {torch.get_num_threads()} threads", "")
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    # A build without kernels for this card is only found out by computing.
    total = float(torch.ones(8, device="cuda").sum())
    return _finding(total == 8.0, f"torch {torch.__version__} on CUDA {torch.version.cuda}: {names}", "")


def libero_package(specifier: str) -> Finding:
    """hf-libero with its task files and initial states; never imported, because its first import asks on stdin."""
    # Without its own dependencies: they pull in torchvision, and with it another torch.
    remedy = f"pip install 'vla_runtime[libero]' && pip install --no-deps 'hf-libero{specifier}'"
    try:
        distribution = metadata.distribution("hf-libero")
    except metadata.PackageNotFoundError:
        return _finding(False, "hf-libero is not installed", remedy)
    if not SpecifierSet(specifier).contains(distribution.version):
        return _finding(False, f"hf-libero: expected {specifier}, got {distribution.version}", remedy)
    root = Path(str(distribution.locate_file("libero/libero")))
    missing = [name for name in ("bddl_files", "init_files", "envs") if not (root / name).is_dir()]
    if missing:
        return _finding(False, f"{root}: expected the folders {', '.join(missing)}, they are not there", remedy)
    return _finding(True, f"hf-libero {distribution.version} at {root}", remedy)


def libero_assets(folder: str | None = None) -> Finding:
    """LIBERO's scene files: in `folder`, else $VLA_LIBERO_ASSETS, else where hf-libero keeps its own; no download."""
    named = folder or os.environ.get("VLA_LIBERO_ASSETS")
    candidates = [Path(named).expanduser()] if named else _own_asset_folders()
    remedy = "set VLA_LIBERO_ASSETS to a folder with LIBERO's assets (the files that hf-libero downloads)"
    problems = []
    for candidate in candidates:
        missing = [name for name in _ASSETS if not (candidate / name).is_file()]
        if not missing:
            return _finding(True, str(candidate), remedy)
        told = f"lacks {', '.join(missing)}" if candidate.is_dir() else "does not exist"
        problems.append(f"{candidate} {told}")
    return _finding(False, "; ".join(problems), remedy)


def disk(folder: str, minimum_gb: float) -> Finding:
    """There are `minimum_gb` (1e9 bytes) free where runs are written, and the place is writable."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    detail = f"{free:.1f} GB free at {place}"
    if not os.access(place, os.W_OK):
        return _finding(False, f"{detail}, which is not writable", "choose another out=")
    remedy = f"free some space, or choose an out= with {minimum_gb:g} GB"
    return _finding(free >= minimum_gb, detail, remedy)


def own_requirements(extra: str = "") -> list[Requirement]:
    """What the core, or one extra together with the extras it includes, asks for.

    Read from the installed metadata, or from pyproject.toml in a checkout that is not installed. ValueError
    for an unknown extra.
    """
    core, extras = _declared()
    if extra and extra not in extras:
        raise ValueError(f"extra: expected one of {', '.join(sorted(extras))}, got {extra!r}")
    found: list[Requirement] = []
    for requirement in extras[extra] if extra else core:
        if canonicalize_name(requirement.name) == "vla-runtime":
            for included in sorted(requirement.extras):
                found += own_requirements(included)
        elif requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            found.append(requirement)
    return found


def _declared() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    try:
        distribution = metadata.distribution("vla_runtime")
    except metadata.PackageNotFoundError:
        import tomllib

        with (Path(__file__).parent.parent / "pyproject.toml").open("rb") as file:
            project = tomllib.load(file)["project"]
        extras = {
            name: [Requirement(text) for text in texts] for name, texts in project["optional-dependencies"].items()
        }
        return [Requirement(text) for text in project["dependencies"]], extras
    every = [Requirement(text) for text in distribution.requires or ()]
    names = distribution.metadata.get_all("Provides-Extra") or []
    core = [requirement for requirement in every if "extra" not in str(requirement.marker)]
    of_extras = [requirement for requirement in every if "extra" in str(requirement.marker)]
    return core, {
        name: [one for one in of_extras if one.marker is not None and one.marker.evaluate({"extra": name})]
        for name in names
    }


def _own_asset_folders() -> list[Path]:
    """Beside hf-libero's package, and where its own download puts them."""
    folders = [Path("~/.cache/libero/assets").expanduser()]
    with contextlib.suppress(metadata.PackageNotFoundError):
        folders.insert(0, Path(str(metadata.distribution("hf-libero").locate_file("libero/libero/assets"))))
    return folders


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _finding(ok: bool, detail: str, remedy: str) -> Finding:
    return Finding(ok=ok, detail=detail, remedy="" if ok else remedy)
