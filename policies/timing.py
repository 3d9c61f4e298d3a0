"""What a decode costs: time that is measured on a device which works on while the program goes on, and operations."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def finish(device: torch.device) -> None:
    """Wait until everything that this thread asked of the device is done; a processor already is.

    Of its stream alone: while another thread captures a graph nobody may wait for the whole device.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python's garbage collector from running while something is timed: a pause of it is no part of a chunk."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def counted_flops(run: Callable[[], Any]) -> int:
    """Floating-point operations of a call, by torch's own counter."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    fast = torch.backends.mha.get_fastpath_enabled()
    # The fused encoder layers of torch are one operation that nobody counts.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False, custom_mapping={attention: _attention_flops}) as counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]
