"""Check values are published or computed independently; scipy is the reference for the exact test."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from scipy.stats import binomtest

from vla_runtime.evaluation.statistics import (
    agreement_pairs,
    mcnemar_mid_p,
    mcnemar_p,
    newcombe_interval,
    non_inferiority_pairs,
    pairs_needed,
    phi_corrected,
    tango_interval,
    verdict,
    wilson_interval,
)

NEWCOMBE = [
    ((14, 5, 0, 22), 0.723276, (0.011483, 0.226493)),
    ((36, 12, 2, 0), -0.114708, (0.056930, 0.340428)),
    ((43, 0, 1, 0), 0.0, (-0.118077, 0.059718)),
    ((20, 4, 9, 17), 0.452588, (-0.235213, 0.042608)),
    ((430, 22, 14, 34), 0.605441, (-0.008164, 0.040767)),
    ((450, 15, 15, 20), 0.523810, (-0.022709, 0.022709)),
    ((50, 0, 0, 0), 0.0, (-0.071348, 0.071348)),
    ((0, 50, 0, 0), 0.0, (0.899099, 1.0)),
]
TANGO = [
    ((36, 12, 2, 0), (0.061112, 0.344709)),
    ((14, 5, 0, 22), (0.025836, 0.255442)),
    ((430, 22, 14, 34), (-0.007890, 0.041076)),
]
MCNEMAR = [
    ((5, 0), 0.0625, 0.03125),
    ((12, 2), 0.0129395, 0.0073853),
    ((4, 9), 0.2668457, 0.1795654),
    ((22, 14), 0.2429850, 0.1877416),
]
MARGINS = (0.02, 0.03, 0.05, 0.10)
DISCORDANCES = (0.02, 0.05, 0.10, 0.20)
PAIRS = [
    [(310, 526), (773, 1314), (1546, 2627), (3092, 5254)],
    [(138, 234), (344, 584), (687, 1168), (1374, 2335)],
    [(50, 85), (124, 211), (248, 421), (495, 841)],
    [(13, 22), (31, 53), (62, 106), (124, 211)],
]


def random_tables(count: int, seed: int) -> list[tuple[int, int, int, int]]:
    rng = np.random.default_rng(seed)
    tables = [tuple(int(x) for x in rng.integers(0, rng.integers(1, 200, 4) + 1)) for _ in range(count)]
    return [(a, b, c, d) for a, b, c, d in tables if a + b + c + d]


def test_wilson_check_values() -> None:
    assert wilson_interval(19, 41) == pytest.approx((0.320562, 0.612535), abs=5e-7)
    assert wilson_interval(0, 20)[0] == 0.0
    assert wilson_interval(20, 20)[1] == 1.0


def test_wilson_equals_scipy() -> None:
    for n in (1, 7, 100):
        for successes in range(0, n + 1, max(1, n // 10)):
            expected = binomtest(successes, n).proportion_ci(method="wilson")
            assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("table", "phi", "limits"), NEWCOMBE)
def test_newcombe_check_values(table: tuple[int, int, int, int], phi: float, limits: tuple[float, float]) -> None:
    assert phi_corrected(*table) == pytest.approx(phi, abs=5e-7)
    assert newcombe_interval(*table) == pytest.approx(limits, abs=5e-7)


@pytest.mark.parametrize(("table", "limits"), TANGO)
def test_tango_check_values(table: tuple[int, int, int, int], limits: tuple[float, float]) -> None:
    assert tango_interval(*table) == pytest.approx(limits, abs=5e-7)


@pytest.mark.parametrize("interval", [newcombe_interval, tango_interval])
def test_intervals_mirror_and_stay_inside(interval) -> None:  # type: ignore[no-untyped-def]
    edges = [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 5, 5, 0), (0, 0, 50, 0), (9, 0, 0, 9)]
    for a, b, c, d in edges + random_tables(300, seed=1):
        low, high = interval(a, b, c, d)
        difference = (b - c) / (a + b + c + d)
        assert -1.0 <= low <= difference <= high <= 1.0
        assert interval(a, c, b, d) == pytest.approx((-high, -low), abs=1e-12)


@pytest.mark.parametrize(("discordant", "exact", "mid"), MCNEMAR)
def test_mcnemar_check_values(discordant: tuple[int, int], exact: float, mid: float) -> None:
    for b, c in (discordant, discordant[::-1]):
        assert mcnemar_p(b, c) == pytest.approx(exact, abs=5e-8)
        assert mcnemar_mid_p(b, c) == pytest.approx(mid, abs=5e-8)


def test_mcnemar_equals_scipy_on_random_tables() -> None:
    rng = np.random.default_rng(0)
    for b, c in rng.integers(0, 120, (1000, 2)).tolist():
        expected = binomtest(b, b + c).pvalue if b + c else 1.0
        assert mcnemar_p(b, c) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_edges() -> None:
    assert mcnemar_p(0, 0) == mcnemar_mid_p(0, 0) == mcnemar_mid_p(7, 7) == mcnemar_p(7, 7) == 1.0
    assert 0.0 < mcnemar_p(400, 1100) < 1e-70
    with pytest.raises(ValueError, match="discordant"):
        mcnemar_p(-1, 2)


@pytest.mark.parametrize("i", range(4))
@pytest.mark.parametrize("j", range(4))
def test_non_inferiority_pairs_check_values(i: int, j: int) -> None:
    loose, strict = PAIRS[i][j]
    assert non_inferiority_pairs(DISCORDANCES[j], MARGINS[i], alpha=0.05, power=0.8) == loose
    assert non_inferiority_pairs(DISCORDANCES[j], MARGINS[i], alpha=0.025, power=0.9) == strict


def test_agreement_pairs_check_values() -> None:
    assert agreement_pairs(0.05, confidence=0.90) == 52
    assert agreement_pairs(0.05) == 73
    n = agreement_pairs(0.05)
    assert verdict(newcombe_interval(n, 0, 0, 0), 0.05) == "non-inferior"
    assert verdict(newcombe_interval(n - 1, 0, 0, 0), 0.05) == "inconclusive"


def test_pairs_needed_exceed_those_run() -> None:
    assert pairs_needed(20, 0, 0, 0, 0.05) == 73
    assert pairs_needed(90, 5, 5, 0, 0.05) == 421
    assert pairs_needed(18, 0, 1, 1, 0.05) is None, "the observed difference is -margin: undecidable"
    for a, b, c, d in random_tables(200, seed=2):
        needed = pairs_needed(a, b, c, d, 0.05)
        assert needed is None or needed > a + b + c + d


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((-0.049, 0.2), "non-inferior"),
        ((-0.05, 0.2), "inconclusive"),
        ((-0.2, -0.051), "inferior"),
        ((-0.2, -0.05), "inconclusive"),
        ((-0.04, -0.01), "non-inferior"),
    ],
)
def test_verdict(limits: tuple[float, float], expected: str) -> None:
    assert verdict(limits, 0.05) == expected


def test_bad_input_is_refused() -> None:
    for margin in (0, 1, -0.1, inf, float("nan"), "wide", True, None):
        with pytest.raises(ValueError, match="margin"):
            verdict((0.0, 0.0), margin)  # type: ignore[arg-type]
    for counts in ((0, 0, 0, 0), (5, -1, 0, 0)):
        with pytest.raises(ValueError, match="paired table"):
            newcombe_interval(*counts)
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="discordance"):
        non_inferiority_pairs(0.1, 0.05, difference=0.2)
    with pytest.raises(ValueError, match="no number"):
        non_inferiority_pairs(0.1, 0.05, difference=-0.05)
