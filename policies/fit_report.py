"""How well a tokenizer can say the recorded chunks at all, before any network learns to.

A policy cannot be better than the tokens it speaks in. BEAST's rule for the number of basis functions
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
from vla_runtime.transforms import Normalise
from vla_runtime.types import ActionSpec

# BEAST's threshold for the normalised mean squared error.
GOOD_ENOUGH = 0.01


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


def _names(action: ActionSpec) -> list[str]:
    return [f"{group.name}.{dim}" for group in action.groups for dim in group.dims]
