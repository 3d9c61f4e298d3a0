"""Published weights as a folder of safetensors: where it is, and its tensors, read one at a time.

Stands between a model hub, or a folder a user has, and the file that knows one model's names. It knows no
model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

_FILES = ("*.json", "*.txt", "*.safetensors")


def find_folder(folder_or_id: str | Path, files: Sequence[str] = _FILES) -> Path:
    """The folder itself, or the hub's repository of that id, fetched once and kept by the hub's own cache.

    files: patterns of those that are needed. Code in a repository is never fetched. ValueError for what is
    neither.
    """
    if Path(folder_or_id).is_dir():
        return Path(folder_or_id)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(str(folder_or_id), allow_patterns=list(files)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ValueError(
            f"pretrained: expected a folder or an id on the model hub, got {str(folder_or_id)!r}: {error}; "
            "without a network, download the repository elsewhere and name its folder"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. ValueError for a file that is missing, broken, or holds something else."""
    if not path.is_file():
        raise ValueError(f"{path}: expected a file of published weights, got none; download the repository again")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}; download it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


class Tensors(Mapping[str, Tensor]):
    """The tensors of `model.safetensors`, or of the files that `model.safetensors.index.json` names.

    A tensor is read when it is asked for. ValueError for files that are missing or broken.
    """

    def __init__(self, folder: Path):
        index = folder / "model.safetensors.index.json"
        names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
        self._files: dict[str, Any] = {}
        for name in names:
            try:
                file: Any = safe_open(folder / name, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{folder / name}: expected whole safetensors, got {error}; download it again"
                ) from error
            self._files.update(dict.fromkeys(file.keys(), file))

    def __getitem__(self, name: str) -> Tensor:
        value: Tensor = self._files[name].get_tensor(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
