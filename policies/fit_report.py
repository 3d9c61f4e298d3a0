"""What normalising cuts off the recorded rows, and how well a tokenizer encodes their chunks, before any training.

A policy cannot be better than its ranges and tokens. BEAST's rule for the number of basis functions
(arXiv 2506.06072, section 5): the smallest for which the normalised mean squared error falls below 0.01.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from policies.tokenizers.bins import Bins
from policies.tokenizers.bspline import BSpline
from policies.validation import binary_dimensions
from vla_runtime.spline import MIN_FREE
from vla_runtime.transforms import CONSTANT, Normalise
from vla_runtime.types import ActionSpec, StateSpec

# BEAST's threshold for the normalised mean squared error.
GOOD_ENOUGH = 0.01


def range_report(rows_FD: NDArray[np.float32], spec: ActionSpec | StateSpec, normalise: Normalise) -> dict[str, Any]:
    """Which of the rows [F, D] lie beyond the range that is kept.

    cut: for each dimension with such rows, by its name, how many (rows, share), the range kept (low, high), the
    furthest value, and how many times as far from the range's middle as its ends it lies (None where it is a point).
    constant: names of the dimensions that are taken as constant.
    """
    low, high = normalise.low.astype(np.float64), normalise.high.astype(np.float64)
    middle, half = (low + high) / 2, (high - low) / 2
    constant = high <= low
    # Rounding, and what never varied more than it, is not cut.
    slack = np.where(constant, CONSTANT, 1e-6 * half)
    cut: dict[str, Any] = {}
    for index, name in enumerate(_names(spec)):
        away = np.abs(rows_FD[:, index] - middle[index])
        beyond = int(np.count_nonzero(away > half[index] + slack[index]))
        if beyond:
            furthest = int(np.argmax(away))
            cut[name] = {
                "rows": beyond,
                "share": beyond / len(rows_FD),
                "low": float(low[index]),
                "high": float(high[index]),
                "furthest": float(rows_FD[furthest, index]),
                "times_as_far": None if constant[index] else float(away[furthest] / half[index]),
            }
    return {"cut": cut, "constant": [name for name, one in zip(_names(spec), constant, strict=True) if one]}


def range_text(what: str, report: dict[str, Any]) -> tuple[list[str], list[str]]:
    """A range report in lines, for the log: what is worth a warning (rows cut by half and more), and the rest."""
    warnings: list[str] = []
    notes: list[str] = []
    for name, one in report["cut"].items():
        line = (
            f"{what} {name}: {one['rows']} rows ({one['share']:.2%}) lie beyond the range [{one['low']:.4g}, "
            f"{one['high']:.4g}] that is kept and are cut to it, the furthest from {one['furthest']:.4g}"
        )
        far = one["times_as_far"] is None or one["times_as_far"] > 2
        (warnings if far else notes).append(line)
    if report["constant"]:
        notes.append(f"{what}: taken as constant, since it hardly varies: {', '.join(report['constant'])}")
    return warnings, notes


def fit_report(
    tokenizer: Bins | BSpline, chunks_FTA: Tensor, action: ActionSpec, normalise: Normalise
) -> dict[str, Any]:
    """Errors of encoding and decoding normalised chunks [F, T, A].

    dimensions: for each, by its name, its largest and root mean square error in contract units and the mean
    squared error in [-1, 1] units. gripper: how many rows a switch is moved by (mean, max), and switches that
    are lost. suggested_num_basis: by BEAST's rule, for B-splines; null when no number of rows suffices.
    """
    decoded = tokenizer.decode(tokenizer.encode(chunks_FTA))
    truth, answer = normalise.backward(chunks_FTA.numpy()), normalise.backward(decoded.clamp(-1, 1).numpy())
    error, squared = np.abs(answer - truth), (decoded - chunks_FTA).square().numpy()
    dimensions = {
        name: {
            "max": float(error[..., index].max()),
            "rms": float(np.sqrt(np.square(error[..., index]).mean())),
            "normalised_mse": float(squared[..., index].mean()),
        }
        for index, name in enumerate(_names(action))
    }
    binary = binary_dimensions(action)
    report: dict[str, Any] = {
        "tokenizer": tokenizer.name,
        "tokens": tokenizer.num_tokens,
        "chunks": len(chunks_FTA),
        "dimensions": dimensions,
        "normalised_mse": float(np.delete(squared, binary, axis=2).mean()),
        "gripper": switch_errors(chunks_FTA[..., binary].numpy(), decoded[..., binary].numpy()),
    }
    if isinstance(tokenizer, BSpline):
        report["num_basis"] = tokenizer.num_basis
        report["suggested_num_basis"] = suggested_num_basis(tokenizer, chunks_FTA)
    return report


def suggested_num_basis(tokenizer: BSpline, chunks_FTA: Tensor) -> int | None:
    """The smallest number of basis functions whose continuous dimensions fit to a normalised MSE below 0.01."""
    smooth = [index for index in range(tokenizer.size) if index not in tokenizer.binary]
    for number in range(max(MIN_FREE, tokenizer.degree + 1), tokenizer.rows + 1):
        spline = BSpline(**{**tokenizer.state(), "num_basis": number, "low": None, "high": None})
        found = spline.rows_of(spline.control_points(chunks_FTA))
        if float((found - chunks_FTA)[..., smooth].square().mean()) < GOOD_ENOUGH:
            return number
    return None


def switch_errors(truth_FTG: NDArray[np.float32], answer_FTG: NDArray[np.float32]) -> dict[str, float | int]:
    """Rows between each switch of sign and the nearest one to the same side in the answer; lost: those without one."""
    moved, lost = [], 0
    for one, other in zip(
        np.sign(truth_FTG).transpose(0, 2, 1).reshape(-1, truth_FTG.shape[1]),
        np.sign(answer_FTG).transpose(0, 2, 1).reshape(-1, truth_FTG.shape[1]),
        strict=True,
    ):
        answers = np.flatnonzero(other[1:] != other[:-1])
        for row in np.flatnonzero(one[1:] != one[:-1]):
            same = [abs(int(k) - int(row)) for k in answers if other[k + 1] == one[row + 1]]
            if same:
                moved.append(min(same))
            else:
                lost += 1
    count = len(moved) + lost
    return {
        "switches": count,
        "mean_rows": float(np.mean(moved)) if moved else 0.0,
        "max_rows": max(moved, default=0),
        "lost": lost,
    }


def report_text(report: dict[str, Any]) -> str:
    """The report in a few lines, for the log."""
    worst = max(report["dimensions"].items(), key=lambda item: item[1]["normalised_mse"])
    gripper = report["gripper"]
    lines = [
        f"{report['tokenizer']}: {report['tokens']} tokens say {report['chunks']} chunks to a normalised mean squared "
        f"error of {report['normalised_mse']:.2g}; worst dimension {worst[0]}: rms {worst[1]['rms']:.3g}, "
        f"max {worst[1]['max']:.3g} in its own units; {gripper['switches']} gripper switches moved by "
        f"{gripper['mean_rows']:.2f} rows on average, {gripper['max_rows']} at most, {gripper['lost']} lost"
    ]
    if "num_basis" in report:
        suggested = report["suggested_num_basis"]
        lines.append(
            f"suggested number of basis functions: {suggested if suggested else 'none suffices; take shorter chunks'} "
            f"(here {report['num_basis']})"
        )
    return "\n".join(lines)


def _names(spec: ActionSpec | StateSpec) -> list[str]:
    return [f"{group.name}.{dim}" for group in spec.groups for dim in group.dims]
