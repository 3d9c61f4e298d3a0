"""What a launch, a small product and a byte cost on a device: the part `env` of benchmarks/gpu.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies.timing import collector_paused, finish
from vla_runtime.control.clock import SystemClock

_clock = SystemClock()


def timed(run: Callable[[], Any], count: int, device: torch.device) -> list[float]:
    """Seconds of each of `count` calls."""
    taken = []
    with collector_paused():
        for _ in range(count):
            finish(device)
            began = _clock.now()
            run()
            finish(device)
            taken.append(_clock.now() - began)
    return taken


def percentiles(seconds: list[float]) -> dict[str, float]:
    quantiles = {f"p{share}_ms": round(1e3 * float(np.percentile(seconds, share)), 3) for share in (50, 95, 99)}
    return quantiles | {"n": len(seconds)}


def env(device: torch.device, out: Path, dry: bool) -> dict[str, Any]:
    """What a launch, a product and a byte cost here: the constants of every estimate."""
    cuda, small = device.type == "cuda", 64 if dry else 1
    tf32 = {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32}
    known: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "tf32": tf32}
    if cuda:
        known["memory_gb"] = round(torch.cuda.mem_get_info()[1] / 2**30, 1)
    tensor = torch.zeros(10, 256, device=device)
    known["eager_us_per_add"] = _microseconds(lambda: tensor.add_(1), 5000 // small, device)
    known["graph_us_per_add"] = _graph_us(lambda: tensor.add_(1), 1000 // small, device)
    for rows, inner, outer in ((10, 256, 256), (10, 256, 1024), (24, 192, 576), (24, 768, 192)):
        for dtype in (torch.float32, torch.bfloat16):
            values, weight, bias = (
                torch.randn(*shape, device=device, dtype=dtype) for shape in ((rows, inner), (outer, inner), (outer,))
            )
            known[f"graph_us_linear_{rows}x{inner}x{outer}_{str(dtype).removeprefix('torch.')}"] = _graph_us(
                lambda x=values, w=weight, b=bias: torch.nn.functional.linear(x, w, b), 300 // small, device
            )
    size = 2**32 // small**2
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    known["copy_tb_s"] = round(2 * size / min(timed(lambda a=source, b=target: b.copy_(a), 10, device)) / 1e12, 3)
    del source, target
    wide, long, count = 11008 // small, 4096 // small, 12
    weights = [torch.randn(wide, long, device=device, dtype=torch.bfloat16) for _ in range(count)]
    for rows in (1, 56, 64):
        values = torch.randn(rows, long, device=device, dtype=torch.bfloat16)
        took = min(timed(lambda x=values: [torch.nn.functional.linear(x, w) for w in weights], 20, device))
        known[f"weights_tb_s_rows_{rows}"] = round(count * wide * long * 2 / took / 1e12, 3)
    side = 8192 // small
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    known["bf16_tflop_s"] = round(2 * side**3 / min(timed(lambda: one @ other, 10, device)) / 1e12, 3)
    return known


def _microseconds(body: Callable[[], Any], count: int, device: torch.device) -> float:
    def run() -> None:
        for _ in range(count):
            body()

    return round(1e6 * min(timed(run, 3, device)) / count, 3)


def _graph_us(body: Callable[[], Any], count: int, device: torch.device) -> float:
    """Microseconds of one of `count` calls in a CUDA graph; of eager calls without CUDA."""
    if device.type != "cuda":
        return _microseconds(body, count, device)
    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            body()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            body()
    return round(1e6 * min(timed(graph.replay, 20, device)) / count, 3)
