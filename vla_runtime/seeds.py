"""Which whole numbers may seed something: those that every generator and every file of ours can take."""

from __future__ import annotations

from typing import Any

# Recordings and torch hold them in 64 bits.
LARGEST_SEED = 2**63 - 1


def check_seed(name: str, value: Any) -> None:
    """ValueError, naming the option, for what is no whole number from 0 to LARGEST_SEED."""
    if type(value) is not int or not 0 <= value <= LARGEST_SEED:
        raise ValueError(f"{name}: expected a whole number >= 0 and below 2**63, got {value!r}")
