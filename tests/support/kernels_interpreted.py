"""Run by a test in a process of its own: kernels of decoding in Triton's interpreter against their torch lines."""

from __future__ import annotations

import itertools

import denoisers
import torch

from policies.heads.fused import FusedDecoder
from policies.heads.prepared import PreparedDecoder
from vla_runtime.decoding import image_kernels as images
from vla_runtime.decoding import row_kernels as rows

BATCH, LENGTH, CHUNK, SIZE, WIDTH, KEPT, STEPS = 2, 7, 5, 3, 24, 6, 9


def whole(*values):
    return torch.tensor(values, dtype=torch.int32)


def check_rows(dtype, tolerance):
    def drawn(*shape):
        return torch.randn(*shape).to(dtype)

    outputs, slots = drawn(KEPT, BATCH, LENGTH, WIDTH), drawn(BATCH, LENGTH, WIDTH)
    norm = rows.RowNorm(drawn(WIDTH), drawn(WIDTH), 1e-5)
    found = []
    for add in (rows.add_and_norm, lambda a, b, c, d, e: rows._launch_add_and_norm(a, b, c, *d, e)):
        summed, normed = slots.clone(), torch.empty_like(slots)
        add(summed, outputs, whole(1, 3, 4), norm, normed)
        found.append((summed, normed))
    compare(*found, tolerance)
    network = rows.RowNetwork(
        drawn(WIDTH, SIZE), drawn(WIDTH), drawn(CHUNK, WIDTH), norm, 0.1 * drawn(SIZE, WIDTH), drawn(SIZE)
    )
    given = drawn(BATCH, LENGTH - CHUNK, WIDTH)
    kinds = itertools.product((True, False), repeat=4)
    for clip, draws, finishes, begins in kinds if dtype == torch.float32 else [(True, True, True, True)]:
        table = torch.rand(STEPS, 7)
        noise = torch.randn(STEPS, BATCH, CHUNK, SIZE) if draws else torch.empty(0)
        sample, last = torch.randn(BATCH, CHUNK, SIZE), torch.randn(BATCH, CHUNK, SIZE)
        found = []
        for operation in (rows.TorchRows.denoise_rows, launched):
            state = sample.clone(), last.clone(), torch.zeros_like(slots), torch.zeros_like(slots)
            finished = rows.Finished(2, 6, slots, whole(0, 2), whole(0, 1, 2, 3)) if finishes else None
            begun = rows.Begun(whole(1), norm, given, *state[2:]) if begins else None
            operation(*state[:2], noise, table, outputs, network, finished, begun, clip)
            found.append(state)
        compare(*found, tolerance)


def launched(*arguments):
    """As `TritonRows.denoise_rows`, whose operator only a GPU has."""
    before = torch.ops.vla.denoise_rows
    torch.ops.vla.denoise_rows = rows._launch_denoise_rows
    try:
        rows.TritonRows.denoise_rows(*arguments)
    finally:
        torch.ops.vla.denoise_rows = before


class InterpretedRows:
    """What a decode on a GPU is given, on the CPU."""

    @staticmethod
    def add_and_norm(slots, outputs, places, norm, normed):
        rows._launch_add_and_norm(slots, outputs, places, *norm, normed)

    @staticmethod
    def denoise_rows(*arguments):
        launched(*arguments)


def check_decodes():
    """Whole decodes of two samples, with rows given and without: what they hand to kernels is what those take."""
    for name in ("dpm", "flow"):
        backbone, head = denoisers.parts(name)
        reference, fused = PreparedDecoder(head, backbone), FusedDecoder(head, backbone, rows=InterpretedRows)
        for given in (None, denoisers.given_rows(2, [2, 1])):
            arguments = denoisers.observation(backbone, 2), given, denoisers.noise(head, 2), 2
            compare([reference(*arguments)], [fused(*arguments)], 1e-4)


def check_images():
    for channels, height, as_rows in itertools.product((16, 8), (5, 13), (False, True)):
        values = 3 * torch.randn(2, channels, height, height + 2)
        shift, weight, bias = torch.randn(3, channels)
        arguments = (values, shift, weight, bias, 8, 1e-5, as_rows)
        compare([images.group_norm_gelu(*arguments)], [images._launch_group_norm_gelu(*arguments)], 1e-5)
    halves = torch.arange(-8, 520).reshape(1, 1, 8, 66).float() / 2
    compare(
        [images.pixels_to_unit(halves, torch.float32)], [images._launch_pixels_to_unit(halves, torch.float32)], 0.0
    )


def compare(wanted, found, tolerance):
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance)


if __name__ == "__main__":
    torch.manual_seed(0)
    check_rows(torch.float32, 1e-5)
    check_rows(torch.bfloat16, 5e-2)
    check_images()
    check_decodes()
