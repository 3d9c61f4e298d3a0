"""Encoded pictures become 8 bit RGB, or are refused: nothing is cut or scaled on the way."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image as Pillow

from vla_runtime.messages import decode_image
from vla_runtime.pictures import decode_picture

RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
GREY = RGB[..., 0]
COLOUR_16_BIT = bytes.fromhex(
    # A PNG of one pixel, 16 bit RGB (0x0fff, 0, 0): Pillow cannot write one.
    "89504e470d0a1a0a0000000d4948445200000001000000011002000000c0e78f9d000000"
    "0d49444154789c63e0ffcf000400055c010f9f85c3360000000049454e44ae426082"
)


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_8_bit_pictures_come_back_as_they_were():
    alpha = np.dstack([RGB, np.zeros(GREY.shape, np.uint8)])
    palette = Pillow.fromarray(RGB).convert("P", palette=Pillow.Palette.ADAPTIVE, colors=256)
    for picture, expected in (
        (Pillow.fromarray(RGB), RGB), (Pillow.fromarray(alpha), RGB), (palette, np.array(palette.convert("RGB"))),
        (Pillow.fromarray(GREY), np.dstack([GREY] * 3)),
    ):  # fmt: skip
        assert np.array_equal(decode_picture(encoded(picture)), expected)
    assert decode_picture(encoded(Pillow.fromarray(RGB), "JPEG")).shape == RGB.shape


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (encoded(Pillow.fromarray(np.full((6, 5), 900, np.uint16))), "16 bits a channel"),
        (COLOUR_16_BIT, "16 bits a channel"),
        (encoded(Pillow.fromarray(GREY > 127)), "mode 1;"),
        (encoded(Pillow.fromarray(RGB).convert("CMYK"), "JPEG"), "mode CMYK;"),
        (encoded(Pillow.fromarray(RGB).convert("P"), transparency=0), "a palette with transparent entries"),
    ],
)  # fmt: skip
def test_others_are_refused(data, got):
    with pytest.raises(ValueError, match=f"expected a picture of 8 bit RGB, .* got {got}"):
        decode_picture(data)


def test_a_client_of_a_server_hears_the_same():
    data = encoded(Pillow.fromarray(np.full((6, 5), 900, np.uint16)))
    with pytest.raises(ValueError, match="image: expected a picture of 8 bit RGB"):
        decode_image({"png": data})
    with pytest.raises(ValueError, match="image: expected 3 x 3 pixels, got 6 x 5"):
        decode_image({"png": data}, (3, 3, 3))


def test_what_is_no_picture():
    for data, got in ((b"", "no bytes"), (b"abc", "3 bytes that are none"), (encoded(Pillow.fromarray(RGB))[:60], "")):
        with pytest.raises(ValueError, match=f"expected a readable JPEG or PNG, got {got}"):
            decode_picture(data)
