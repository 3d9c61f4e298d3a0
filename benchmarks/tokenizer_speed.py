"""Times the B-spline tokenizer: python benchmarks/tokenizer_speed.py

Decoding (levels to control points to rows) and encoding one chunk of T = 50 rows and D = 14 dimensions, the
size of two arms, on this machine's CPU. Prints one line of JSON.
"""

from __future__ import annotations

import json
import platform

import numpy as np
import torch

from policies.tokenizers.bspline import BSpline
from vla_runtime.control.clock import SystemClock

ROWS, SIZE, WARM_UP, RUNS = 50, 14, 50, 1000


def microseconds(work):
    """p50 and p95 of calling `work`."""
    clock, times = SystemClock(), []
    for index in range(WARM_UP + RUNS):
        began = clock.now()
        work()
        if index >= WARM_UP:
            times.append(1e6 * (clock.now() - began))
    return {"p50_us": round(float(np.percentile(times, 50)), 1), "p95_us": round(float(np.percentile(times, 95)), 1)}


def main():
    torch.set_num_threads(1)
    chunk = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, ROWS, SIZE)).astype(np.float32))
    spline = BSpline(ROWS, SIZE, num_basis=10, binary=(6, 13)).with_bounds_of(chunk.numpy())
    ids = spline.encode(chunk)
    row = {
        "chunk": [ROWS, SIZE],
        "tokens": spline.num_tokens,
        "encode": microseconds(lambda: spline.encode(chunk)),
        "decode": microseconds(lambda: spline.decode(ids)),
        "hardware": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
