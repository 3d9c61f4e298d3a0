"""How sure a success rate is, and how sure the difference of two is: intervals, a paired test, a verdict.

Counts go in and numbers come out: nothing here knows an episode, a policy or a file. Only the standard
library is used, so a robot's computer can judge its own trials.

A paired table is four counts: both succeed, only the first, only the second, neither. A difference is
always p_first - p_second; exchanging the two changes its sign and mirrors its interval.
"""

from __future__ import annotations

from math import ceil, comb, isfinite, sqrt
from statistics import NormalDist

Interval = tuple[float, float]

NON_INFERIOR, INFERIOR, INCONCLUSIVE = "non-inferior", "inferior", "inconclusive"


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a success rate, both limits in [0, 1].

    ValueError unless 0 <= successes <= n and n > 0. Source: Wilson 1927, J. Am. Stat. Assoc. 22(158),
    209-212.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"success rate: expected 0 <= successes <= n and n > 0, got successes={successes}, n={n}")
    z = _z_two_sided(confidence)
    centre = successes + z * z / 2
    half = z * sqrt(successes * (n - successes) / n + z * z / 4)
    low, high = (centre - half) / (n + z * z), (centre + half) / (n + z * z)
    # The limits of 0 and n successes are exact; rounding would leave them 1e-17 off.
    return (0.0 if successes == 0 else max(0.0, low)), (1.0 if successes == n else min(1.0, high))


def phi_corrected(both: int, only_first: int, only_second: int, neither: int) -> float:
    """Correlation of the two outcomes, in [-1, 1], continuity-corrected when positive; 0 when undefined.

    Source: Newcombe 1998 (as in `newcombe_interval`), method 10.
    """
    a, b, c, d = both, only_first, only_second, neither
    n = _total(a, b, c, d)
    product = (a + b) * (c + d) * (a + c) * (b + d)
    if product == 0:
        return 0.0
    excess: float = a * d - b * c
    if excess > 0:
        excess = max(excess - n / 2, 0.0)
    return excess / sqrt(product)


def newcombe_interval(both: int, only_first: int, only_second: int, neither: int, confidence: float = 0.95) -> Interval:
    """Hybrid score interval of the paired difference p_first - p_second, limits in [-1, 1].

    Joins the two Wilson intervals through the correlation of the pairs. Conservative when the two rarely
    disagree. ValueError for negative counts or an empty table. Source: Newcombe 1998, "Improved confidence
    intervals for the difference between binomial proportions based on paired data", Stat. Med. 17,
    2635-2650, method 10.
    """
    n = _total(both, only_first, only_second, neither)
    x1, x2 = both + only_first, both + only_second
    p1, p2 = x1 / n, x2 / n
    (l1, u1), (l2, u2) = wilson_interval(x1, n, confidence), wilson_interval(x2, n, confidence)
    phi = phi_corrected(both, only_first, only_second, neither)
    difference = (only_first - only_second) / n
    low = difference - _hypotenuse(p1 - l1, u2 - p2, phi)
    high = difference + _hypotenuse(u1 - p1, p2 - l2, phi)
    return max(-1.0, low), min(1.0, high)


def tango_interval(both: int, only_first: int, only_second: int, neither: int, confidence: float = 0.95) -> Interval:
    """Score interval of the paired difference p_first - p_second: a second opinion, better at the edges.

    The limits are the differences that a score test would just not reject. ValueError for negative
    counts or an empty table. Source: Tango 1998, "Equivalence test and confidence interval for the
    difference in proportions for the paired-sample design", Stat. Med. 17, 891-908.
    """
    n = _total(both, only_first, only_second, neither)
    b, c = only_first, only_second
    z = _z_two_sided(confidence)
    observed = (b - c) / n

    def score(delta: float) -> float:
        # Maximum likelihood of the second discordant probability when the difference is delta.
        linear, constant = -b - c + (2 * n - b + c) * delta, -c * delta * (1 - delta)
        q = (sqrt(max(linear * linear - 8 * n * constant, 0.0)) - linear) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        distance = b - c - n * delta
        if variance <= 0:
            return float("inf") if distance > 0 else float("-inf") if distance < 0 else 0.0
        return distance / sqrt(variance)

    def limit(outer: float, sign: float) -> float:
        # |score| falls from its largest at the outer end to 0 at the observed difference. Sixty halvings
        # of at most 2 leave less than the spacing of floats.
        inner = observed
        for _ in range(60):
            middle = (outer + inner) / 2
            if sign * score(middle) > z:
                outer = middle
            else:
                inner = middle
        return inner

    return limit(-1.0, 1.0), limit(1.0, -1.0)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Exact two-sided p that the two succeed equally often, from the discordant pairs alone; 1 without any.

    ValueError for negative counts. Source: McNemar 1947, Psychometrika 12, 153-157; exact binomial form.
    """
    tail, _, whole = _binomial_tail(only_first, only_second)
    return min(1.0, 2 * tail / whole)


def mcnemar_mid_p(only_first: int, only_second: int) -> float:
    """As `mcnemar_p`, counting the observed table half: less conservative, size still about as stated.

    ValueError for negative counts. Source: Fagerland, Lydersen and Laake 2013, BMC Med. Res. Methodol.
    13:91.
    """
    if only_first == only_second:
        _binomial_tail(only_first, only_second)
        return 1.0
    tail, point, whole = _binomial_tail(only_first, only_second)
    return min(1.0, (2 * tail - point) / whole)


def non_inferiority_pairs(
    discordance: float, margin: float, difference: float = 0.0, alpha: float = 0.025, power: float = 0.9
) -> int:
    """Pairs after which the limit of a one-sided `alpha` test lies on the right side of -margin.

    discordance: the share of pairs in which exactly one succeeds. difference: the true p_new - p_reference;
    below -margin the count is the one that shows inferiority. power: the probability of getting there.
    A normal approximation: below about 100 it is optimistic. ValueError when a value is out of range or
    difference equals -margin, where no number of pairs is enough. Source: Nam 1997, "Establishing
    equivalence of two treatments and sample size requirements in matched-pairs design", Biometrics 53,
    1422-1430; Liu, Hsueh, Hsieh and Chen 2002, Stat. Med. 21, 231-245.
    """
    check_margin(margin)
    if not 0 <= abs(difference) <= discordance <= 1:
        raise ValueError(
            f"sample size: expected |difference| <= discordance <= 1, got difference={difference}, "
            f"discordance={discordance}"
        )
    for name, value in (("alpha", alpha), ("power", power)):
        if not 0 < value < 1:
            raise ValueError(f"sample size: expected 0 < {name} < 1, got {value}")
    distance = difference + margin
    # Rates are ratios of counts: a distance this small is a rounded zero.
    if abs(distance) < 1e-12:
        raise ValueError(
            f"sample size: a true difference of exactly -margin ({-margin}) is decided by no number of pairs"
        )
    z = NormalDist().inv_cdf(1 - alpha) + NormalDist().inv_cdf(power)
    # A hair below the integer is that integer: 0.05 * 0.05 is not 0.0025.
    return ceil(z * z * (discordance - difference * difference) / (distance * distance) - 1e-9)


def agreement_pairs(margin: float, confidence: float = 0.95) -> int:
    """Pairs needed for non-inferiority when every episode succeeds under both policies.

    Even perfect agreement has a lower limit of -z^2 / (n + z^2), which must lie above -margin.
    """
    check_margin(margin)
    z = _z_two_sided(confidence)
    return int(z * z * (1 / margin - 1)) + 1


def pairs_needed(both: int, only_first: int, only_second: int, neither: int, margin: float) -> int | None:
    """Pairs, those already run included, that would bring a verdict if the table's rates are the true ones.

    Two-sided 95 % interval, power 0.9; never fewer than perfect agreement needs nor than one more than
    were run. None when the observed difference is exactly -margin. first is the candidate.
    """
    n = _total(both, only_first, only_second, neither)
    difference, discordance = (only_first - only_second) / n, (only_first + only_second) / n
    if abs(difference + margin) < 1e-12:
        return None
    return max(non_inferiority_pairs(discordance, margin, difference), agreement_pairs(margin), n + 1)


def verdict(interval: Interval, margin: float) -> str:
    """What an interval of p_candidate - p_reference says about a loss of `margin`.

    non-inferior: the lower limit lies above -margin. inferior: the upper limit lies below it. Otherwise
    inconclusive. ValueError unless 0 < margin < 1. The margin must be fixed before the runs.
    """
    check_margin(margin)
    low, high = interval
    return NON_INFERIOR if low > -margin else INFERIOR if high < -margin else INCONCLUSIVE


def check_margin(margin: float) -> None:
    """Raise ValueError unless 0 < margin < 1."""
    number = isinstance(margin, int | float) and not isinstance(margin, bool) and isfinite(margin)
    if not number or not 0 < margin < 1:
        raise ValueError(f"margin: expected a success-rate difference between 0 and 1, e.g. 0.05, got {margin!r}")


def _total(*counts: int) -> int:
    if min(counts) < 0 or sum(counts) == 0:
        raise ValueError(f"paired table: expected four counts, none negative and not all 0, got {counts}")
    return sum(counts)


def _z_two_sided(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected between 0 and 1, e.g. 0.95, got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _hypotenuse(one: float, other: float, phi: float) -> float:
    return sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))


def _binomial_tail(only_first: int, only_second: int) -> tuple[int, int, int]:
    """2^m P(X <= k), 2^m P(X = k) and 2^m for X ~ Bin(m, 1/2), k the smaller count: integers, so exact."""
    if min(only_first, only_second) < 0:
        raise ValueError(f"discordant pairs: expected counts, got {only_first} and {only_second}")
    m, k = only_first + only_second, min(only_first, only_second)
    point = tail = 1
    for i in range(k):
        point = point * (m - i) // (i + 1)
        tail += point
    assert point == comb(m, k)
    return tail, point, 2**m
