"""Camera pictures from encoded bytes: one decoder for robots, clients and data sets.

What cannot be shown in 8 bits a channel without a decision of its own (depth, 16 bit grey, floating point, masks,
palettes with transparent entries) is refused: a cut or scaled picture looks like one and is not what the camera saw.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from vla_runtime.types import Image

# Modes of Pillow that convert to RGB without loss but for alpha, which raw images of ROS lose in the same way.
# YCbCr is what some JPEG readers say of a colour JPEG.
_MODES = {"RGB", "RGBA", "RGBX", "L", "LA", "P", "YCbCr"}
# Where a PNG states its bits a channel: 8 bytes of signature, length and name of the header, width, height.
_PNG_DEPTH = 24


def decode_picture(
    data: bytes, formats: Sequence[str] = ("JPEG", "PNG"), shape: tuple[int, int, int] | None = None
) -> Image:
    """uint8 [H, W, 3] of an encoded picture; grey becomes three equal channels, alpha is dropped.

    shape: what the picture must have; another size is refused before it is decoded. ValueError for bytes that are no
    readable picture of `formats`, for another size, and for one that is not 8 bit colour or grey.
    """
    try:
        with Pillow.open(io.BytesIO(data), formats=list(formats)) as picture:
            # A few bytes can say that they are thousands of pixels: they say so before they become them.
            if shape is not None and (picture.height, picture.width) != shape[:2]:
                raise ValueError(f"expected {shape[0]} x {shape[1]} pixels, got {picture.height} x {picture.width}")
            _require_8_bit(picture, data)
            return np.array(picture.convert("RGB"), np.uint8)
    except UnidentifiedImageError as error:
        got = f"{len(data)} bytes that are none" if data else "no bytes"
        raise ValueError(f"expected a readable {' or '.join(formats)}, got {got}") from error
    except (OSError, TypeError, SyntaxError, Pillow.DecompressionBombError) as error:
        raise ValueError(f"expected a readable {' or '.join(formats)}, got {type(error).__name__}: {error}") from error


def _require_8_bit(picture: Pillow.Image, data: bytes) -> None:
    got = None
    if picture.format == "PNG" and data[_PNG_DEPTH] == 16:
        # Pillow reads 16 bit colour as RGB of its upper bytes: of 12 bit cameras almost nothing remains.
        got = f"16 bits a channel (mode {picture.mode})"
    elif picture.mode not in _MODES:
        got = f"mode {picture.mode}"
    elif picture.mode == "P" and "transparency" in picture.info:
        got = "a palette with transparent entries"
    if got is not None:
        raise ValueError(
            f"expected a picture of 8 bit RGB, RGBA, grey or opaque palette, got {got}; depth and masks are no camera "
            "images, and others must be converted to 8 bit RGB at their source"
        )
