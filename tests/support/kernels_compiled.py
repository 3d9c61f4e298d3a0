"""Run by a test in a process of its own: kernels of decoding compiled for a Hopper GPU that need not be there.

Sizes are those of Diffusion Policy's transformer as published and of the shipped policies.
"""

from __future__ import annotations

import itertools

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vla_runtime.decoding import image_kernels_triton as images
from vla_runtime.decoding import row_kernels_triton as rows

PLACES = dict.fromkeys(("places", "after", "kept", "before"), "*i32")
NUMBERS = {"eps": "fp32", "begun_eps": "fp32"}
COUNTS = (
    "count", "rows", "step", "end", "after_count", "kept_count", "before_count", "all_rows", "chunk_rows", "channels",
    "size", "cells", "groups",
)  # fmt: skip


def compiled(kernel, dtype, **constants):
    kinds = {}
    for name in kernel.arg_names:
        if name in constants:
            kinds[name] = "constexpr"
        elif name in COUNTS:
            kinds[name] = "i32"
        else:
            network = "*fp32" if name in ("sample", "last", "noise", "table", "planes") else dtype
            kinds[name] = NUMBERS.get(name) or PLACES.get(name) or network
    source = ASTSource(kernel, kinds, constants)
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert done.asm["cubin"]
    # Registers that do not fit would go through memory.
    assert ".local" not in done.asm["ptx"], kernel


for kind in ("*fp32", "*bf16"):
    compiled(rows.add_and_norm_kernel, kind, width=192, block=256)
    for finishes, begins in itertools.product((True, False), repeat=2):
        flags = {"CLIP": True, "DRAWS": True, "FINISHES": finishes, "BEGINS": begins}
        sizes = {"length": 24, "rows": 16, "size": 10, "width": 256, "size_block": 16, "block": 256}
        compiled(rows.denoise_rows_kernel, kind, **sizes, **flags)
    for as_rows in (True, False):
        compiled(images.group_norm_gelu_kernel, kind, block=images.BLOCK, ROWS=as_rows)
    compiled(images.pixels_to_unit_kernel, kind, block=images.BLOCK)
