"""How sure a mean or a median of measured numbers is, without assuming how they are spread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def bootstrap_interval(
    values_N: NDArray[Any],
    statistic: Callable[..., NDArray[Any]],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of `statistic` (np.mean, np.median: one that takes axis=) over N independent values.

    The same values give the same interval. ValueError without values. Source: Efron and Tibshirani 1993, An
    Introduction to the Bootstrap, chapter 13.
    """
    values = np.asarray(values_N, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"bootstrap: expected at least one value in a row, got shape {list(values.shape)}")
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(statistic(values[drawn], axis=1), ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)
