"""A recorded data set as tensors in memory, cut into batches by step number alone.

Which samples a step sees, how they are augmented and how many leading actions are given follows from (seed,
step): so training that was killed goes on exactly where it was. It knows data sets, not networks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from policies.batch import Batch, Committed
from policies.images import resize
from vla_runtime.data.joined import Joined
from vla_runtime.data.reader import Dataset
from vla_runtime.transforms import Normalise

# Pixels an image may be shifted by, as a share of its side, and how far its brightness may move.
_SHIFT = 0.06
_BRIGHTNESS = 0.15


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Rows whose images are fresh. images: {camera: uint8 [F, S, S, 3 M]}; chunks [F, T, A] and states are normalised.

    Every sample shows M moments, oldest first: images lie on top of each other, states [F, M S] side by side.

    episode_F: which of `episodes` a sample is of; episodes: a name for each, the same in whatever set it is
    found; instructions: one a sample.
    """

    images: dict[str, Tensor]
    states_FS: Tensor
    chunks_FTA: Tensor
    episode_F: NDArray[np.int64]
    episodes: tuple[str, ...]
    instructions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.instructions)

    def batch(self, indices: Sequence[int]) -> tuple[Batch, Tensor]:
        """Observations and their chunks [B, T, A]."""
        chosen = torch.as_tensor(list(indices))
        images = {name: values[chosen] for name, values in self.images.items()}
        instructions = tuple(self.instructions[i] for i in indices)
        return Batch(images, self.states_FS[chosen], instructions), self.chunks_FTA[chosen]

    def num_bytes(self) -> int:
        """Memory that images, states and chunks take."""
        tensors = [*self.images.values(), self.states_FS, self.chunks_FTA]
        return sum(values.numel() * values.element_size() for values in tensors)

    def split(self, held_out: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices for training and for validation: whole episodes are held out, at least one.

        Which ones follows from (seed, name of the episode) alone: an episode that was held out is held out again
        where its set is joined with another, so that what is judged on it has never been shown it.
        """
        episodes = np.unique(self.episode_F)
        if len(episodes) < 2:
            raise ValueError(f"data: expected at least two episodes, to hold one out, got {len(episodes)}")
        places = np.array([_place(seed, self.episodes[episode]) for episode in episodes])
        held = episodes[places < max(held_out, places.min() + 1e-12)]
        kept = ~np.isin(self.episode_F, held)
        if not kept.any():
            raise ValueError(f"held_out: expected a share that leaves episodes to learn from, got {held_out}")
        return np.flatnonzero(kept), np.flatnonzero(~kept)


def _place(seed: int, name: str) -> float:
    """A number in [0, 1) that the name decides."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big") / 2**64


def read_samples(
    dataset: Dataset | Joined, image_size: int, state: Normalise, action: Normalise, offsets: Sequence[int] = (0,)
) -> Samples:
    """Everything of a data set that training needs, images already `image_size` pixels square.

    offsets: which moments a sample shows, in periods before its own.

    Samples whose chunk a push cuts through are left out: its later rows answer what nobody could foresee, and
    a policy that learns them learns to expect pushes. ValueError for a state or an action that is not finite,
    for a set without samples, and for one without images at those moments.
    """
    indices = [index for index in range(len(dataset)) if dataset.foreseeable(index)]
    if not indices:
        raise ValueError(f"{dataset.name}: expected samples, got none")
    # In their places at once: small images between the large ones they come from would leave a heap full of holes.
    cameras = {
        name: torch.empty((len(indices), image_size, image_size, 3 * len(offsets)), dtype=torch.uint8)
        for name in dataset.cameras
    }
    states, chunks, episodes, instructions = [], [], [], []
    for place, index in enumerate(indices):
        seen, chunk = dataset.seen(index, offsets), dataset.answer(index)
        told = np.stack([one.state for one in seen])
        for what, values in (("state", told), ("action", chunk.actions)):
            if not np.isfinite(values).all():
                raise ValueError(
                    f"{dataset.name}: expected a finite {what}, got NaN or infinity in sample {index}; "
                    "collect the data set again"
                )
        for name, images in cameras.items():
            shown = np.concatenate([one.images[name] for one in seen], axis=2)
            images[place] = resize(torch.from_numpy(shown)[None], image_size)[0]
        states.append(state.forward(told).reshape(-1))
        chunks.append(action.forward(chunk.actions))
        episodes.append(dataset.episode_of(index))
        instructions.append(seen[-1].instruction)
    return Samples(
        images=cameras,
        states_FS=torch.from_numpy(np.stack(states)),
        chunks_FTA=torch.from_numpy(np.stack(chunks)),
        episode_F=np.array(episodes),
        episodes=tuple(f"{one.task} {one.initial_state} {one.begin_seed}" for one in dataset.episodes),
        instructions=tuple(instructions),
    )


class FreshSamples:
    """Samples of a data set, augmented anew whenever they are drawn; `augment(batch, generator)` does it.

    indices: which of the samples.
    """

    def __init__(self, samples: Samples, indices: Sequence[int], augment: Callable[[Batch, torch.Generator], Batch]):
        self._samples, self._indices, self._augment = samples, np.asarray(indices), augment

    def draw(self, count: int, generator: torch.Generator) -> tuple[Batch, Tensor]:
        """`count` observations and their chunks [count, T, A]."""
        chosen = self._indices[torch.randint(len(self._indices), (count,), generator=generator).numpy()]
        batch, actions = self._samples.batch(chosen.tolist())
        return self._augment(batch, generator), actions


def augmented(batch: Batch, generator: torch.Generator, state_noise: float, state_dropout: float) -> Batch:
    """Images shifted and lit differently, states blurred, and in some samples left out (zero, the middle of the range).

    A policy that can lean on proprioception alone never learns to look.
    """
    images = {}
    for name, values in batch.images.items():
        count, side = values.shape[0], values.shape[1]
        reach = max(1, round(_SHIFT * side))
        padded = F.pad(values.permute(0, 3, 1, 2).float(), (reach,) * 4, mode="replicate").permute(0, 2, 3, 1)
        offsets = torch.randint(0, 2 * reach + 1, (count, 2), generator=generator).tolist()
        moved = [one[top : top + side, left : left + side] for one, (top, left) in zip(padded, offsets, strict=True)]
        light = 1 + _BRIGHTNESS * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
        images[name] = (torch.stack(moved) * light).round().clamp(0, 255).to(torch.uint8)
    states = batch.state_BS + state_noise * torch.randn(batch.state_BS.shape, generator=generator)
    kept = torch.rand(len(batch), 1, generator=generator) >= state_dropout
    return Batch(images, states * kept, batch.instructions)


def drawn_committed(actions_BTA: Tensor, most: int, generator: torch.Generator) -> Committed:
    """A random number of leading rows, 0 to `most`, as given; half of the samples have none."""
    batch = len(actions_BTA)
    counts = torch.randint(0, most + 1, (batch,), generator=generator)
    counts = counts * (torch.rand(batch, generator=generator) < 0.5)
    return Committed(actions_BTA[:, :most], counts)
