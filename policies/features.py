"""What a frozen trunk says of every sample, computed once: heads then train on it in minutes.

A trunk that does not learn gives the same features for the same observation, so they are computed before
training, for several augmented versions of every sample, and kept in memory as fp16. It knows neither heads
nor optimisers.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from policies.batch import Batch
from policies.samples import Samples
from vla_runtime.disk import publish, through_python

_BATCH = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What `Backbone.features` gave for B observations, each tensor [B, ...]; stands where a Batch would."""

    tensors: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.tensors[0])

    def to(self, device: torch.device | str) -> Features:
        return Features(tuple(values.to(device, non_blocking=True) for values in self.tensors))


class FrozenTrunk:
    """A backbone that is asked with features instead of observations; in all else it is the backbone."""

    def __init__(self, backbone: nn.Module):
        self._backbone = backbone

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def encode(self, features: Features) -> Any:
        """As the backbone's own, from the features on."""
        dtype = next(self._backbone.parameters()).dtype
        tensors = [values.to(dtype) if values.is_floating_point() else values for values in features.tensors]
        return self._backbone.remember(*tensors)  # type: ignore[operator]


class CachedFeatures:
    """Features of some samples in `copies` versions each; `augment(batch, generator)` makes a version.

    indices: which of the samples. Version k of a sample follows from (seed, k) and its place among them alone.
    keep: a folder where they are left for other runs, in files named after all that they follow from; `augmentation`
    is what `augment` follows from. None: they are in memory alone.
    """

    def __init__(
        self,
        backbone: Any,
        samples: Samples,
        indices: Sequence[int],
        copies: int,
        seed: int,
        augment: Callable[[Batch, torch.Generator], Batch],
        device: torch.device | str = "cpu",
        keep: Path | None = None,
        augmentation: str = "",
    ):
        if copies < 1:
            raise ValueError(f"feature_copies: expected at least 1, got {copies}")
        self.copies = copies
        self._chunks_FTA = samples.chunks_FTA[torch.as_tensor(np.asarray(indices))]
        self._kept: tuple[Tensor, ...] = ()
        total = len(indices)
        if keep is not None:
            said = _said(backbone, samples, indices, (copies, seed, augmentation))
            files = sorted(keep.glob(f"{said}-*.npy"))
            if (keep / f"{said}-0.npy").is_file():
                _log.info("features of the frozen trunk: %s", [str(path) for path in files])
                # Copied on writing, which nobody does; the system shares the pages between runs.
                self._kept = tuple(torch.from_numpy(np.load(path, mmap_mode="c")) for path in files)
                return
        training = backbone.training
        backbone.eval()
        for copy in range(copies):
            for first in range(0, total, _BATCH):
                batch, _ = samples.batch(indices[first : first + _BATCH])
                batch = augment(batch, _generator(seed, copy, first))
                with torch.no_grad():
                    found = backbone.features(batch.to(device))
                if not self._kept:
                    self._kept = tuple(_room(copies, total, one) for one in found)
                for kept, one in zip(self._kept, found, strict=True):
                    kept[copy, first : first + len(one)] = one.to("cpu", kept.dtype)
        backbone.train(training)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            # The last first: whoever finds the first finds all.
            for index, values in reversed(list(enumerate(self._kept))):
                # Another run may be making the same.
                part = keep / f".{said}-{index}.{os.getpid()}.part"
                with through_python(part) as file:
                    np.save(file, values.numpy())
                publish(part, keep / f"{said}-{index}.npy")

    def __len__(self) -> int:
        return len(self._chunks_FTA)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Features, Tensor]:
        """`count` samples, each in one of its versions, and their chunks [count, T, A]."""
        chosen = torch.randint(len(self), (count,), generator=generator)
        copy = torch.randint(self.copies, (count,), generator=generator)
        return Features(tuple(kept[copy, chosen] for kept in self._kept)), self._chunks_FTA[chosen]

    def num_bytes(self) -> int:
        """Memory that the features take."""
        return sum(kept.numel() * kept.element_size() for kept in self._kept)


def _said(backbone: Any, samples: Samples, indices: Sequence[int], rest: tuple[object, ...]) -> str:
    """16 hex digits of everything that features follow from."""
    digest = hashlib.sha256(repr((rest, list(indices), samples.instructions, backbone.state_of_config())).encode())
    for values in (*samples.images.values(), samples.states_FS, *backbone.trunk_parameters()):
        digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _room(copies: int, total: int, like: Tensor) -> Tensor:
    dtype = torch.float16 if like.is_floating_point() else like.dtype
    return torch.empty((copies, total, *like.shape[1:]), dtype=dtype)


def _generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
