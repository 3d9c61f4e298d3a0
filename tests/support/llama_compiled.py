"""Every Triton kernel of a Llama compiled for a Hopper GPU that need not be there: what the interpreter lets pass.

Sizes are those of Llama-2-7B.
"""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vla_runtime.decoding import llama_triton

HALF, WIDE, EIGHT = "*bf16", "*fp32", "*fp8e4nv"
NUMBERS = {"eps": "fp32", "largest": "fp32", "smallest": "fp32"}


def compiled(kernel, constants, **pointers):
    kinds = {name: pointers.get(name) or NUMBERS.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, kinds | dict.fromkeys(constants, "constexpr"), constants)
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert done.asm["cubin"]
    # Registers that do not fit would go through memory.
    assert ".local" not in done.asm["ptx"]


for eight in (False, True):
    out = {"out": EIGHT, "scales": WIDE} if eight else {"out": HALF, "scales": HALF}
    sizes = {"QUANTISE": eight, "BLOCK": 4096}
    compiled(llama_triton._add_rms_norm, {"ADDED": True, **sizes}, hidden=HALF, added=HALF, weight=HALF, **out)
    compiled(llama_triton._silu_mul, {"QUANTISE": eight, "BLOCK": 16384 if eight else 1024}, gate_up=HALF, **out)
compiled(llama_triton._quantise_rows, {"BLOCK": 4096}, values=HALF, out=EIGHT, scales=WIDE)
heads = {"QUERIES": 32, "KEPT": 32, "HALF": 64, "BLOCK": 64, "HEADS": 8}
compiled(llama_triton._rope_write, heads, qkv=HALF, cos=WIDE, sin=WIDE, memory=HALF, query=HALF)
print("compiled")  # noqa: T201
