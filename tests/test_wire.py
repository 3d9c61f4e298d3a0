"""Values over the wire: what goes in comes out, and nothing that could run code is let in."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_runtime.wire import pack, unpack

ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.uint8, np.int64, np.bool_]), hnp.array_shapes(min_dims=0, min_side=0)
)


@settings(deadline=None, max_examples=60)
@given(ARRAYS)
def test_an_array_comes_back_bit_for_bit(array):
    found = unpack(pack({"a": [array, None, "text", 0.1, b"\x00"]}))["a"]
    assert (found[0].dtype, found[0].shape, found[0].tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert found[1:] == [None, "text", 0.1, b"\x00"]
    if found[0].size:
        found[0][...] = 0  # its own memory


def test_scalars_keep_their_type():
    found = unpack(pack({"x": np.float32(0.1), 3: np.int64(-2)}))
    assert found == {"x": np.float32(0.1), 3: -2}
    assert (found["x"].dtype, found[3].dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("value", [np.array([object()]), np.array(["text"]), np.zeros(2, "f4,i4"), {1, 2}, object()])
def test_what_has_no_encoding_is_refused(value):
    with pytest.raises(ValueError, match="message: expected"):
        pack({"a": value})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        pack(1) + pack(2),
        pack([1, 2])[:-1],
        msgpack.packb({b"__ndarray__": True, b"data": b"\x00" * 8, b"dtype": "|O8", b"shape": [1]}),
        msgpack.packb({b"__ndarray__": True, b"data": b"\x00" * 8, b"dtype": "<f4", b"shape": [3]}),
        msgpack.packb({b"__ndarray__": True, b"data": b"\x00" * 8}),
        msgpack.packb({b"__npgeneric__": True, b"data": 1, b"dtype": "nonsense"}),
    ],
)
def test_garbage_is_an_error(data):
    with pytest.raises(ValueError, match="message: expected one msgpack value"):
        unpack(data)
