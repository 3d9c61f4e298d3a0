"""Minimum, maximum, mean, standard deviation and quantiles of features, as LeRobot's metadata names them.

Pure functions of arrays. Images enter as histograms of their bytes, which add up over episodes without
loss; so the statistics of a whole set are exact here, quantiles included.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
MAX_IMAGES = 100

Stats = dict[str, list[Any]]


def of_rows(values: NDArray[Any]) -> Stats:
    """Statistics over the rows of [T] or [T, D]: D numbers each, and count [1]."""
    table = values.reshape(len(values), -1)
    numbers = table.astype(np.float64)
    found: Stats = {
        "min": table.min(axis=0).tolist(),
        "max": table.max(axis=0).tolist(),
        "mean": numbers.mean(axis=0).tolist(),
        "std": numbers.std(axis=0).tolist(),
        "count": [len(table)],
    }
    for name, row in zip(QUANTILES, np.quantile(numbers, list(QUANTILES.values()), axis=0), strict=True):
        found[name] = row.tolist()
    return found


def histogram(images: list[NDArray[np.uint8]]) -> NDArray[np.int64]:
    """How often each byte occurs in each channel: int64 [3, 256], over at most MAX_IMAGES evenly chosen images."""
    counts = np.zeros((3, 256), np.int64)
    for i in _evenly(len(images)):
        for channel in range(3):
            counts[channel] += np.bincount(images[i][..., channel].ravel(), minlength=256)
    return counts


def num_sampled(num_images: int) -> int:
    """How many images `histogram` looks at."""
    return len(_evenly(num_images))


def _evenly(count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(count, MAX_IMAGES)).round().astype(np.int64))


def of_histogram(counts: NDArray[np.int64], images: int) -> Stats:
    """Statistics of `images` images from their histogram [3, 256]: shape [3, 1, 1] each, in [0, 1]."""
    values = np.arange(256) / 255.0
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ values
    found = {
        "min": values[np.argmax(counts > 0, axis=1)],
        "max": values[255 - np.argmax(counts[:, ::-1] > 0, axis=1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(share @ values**2 - mean**2, 0.0)),
    }
    cumulative = counts.cumsum(axis=1)
    for name, q in QUANTILES.items():
        found[name] = values[np.argmax(cumulative >= q * cumulative[:, -1:], axis=1)]
    return {**{name: row.reshape(3, 1, 1).tolist() for name, row in found.items()}, "count": [images]}
