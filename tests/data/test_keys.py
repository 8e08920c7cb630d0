"""Row keys, and the validation rows that depend on them."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdistill.data.keys import row_keys, validation_rows

DTYPES = [np.uint8, np.float16, np.float32, np.float64]
BLOCKS = hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=2, max_dims=4, max_side=5))


@given(BLOCKS)
@settings(max_examples=60, deadline=None)
def test_keys_follow_content(inputs):
    """Keys are equal exactly if rows are, in any order and any division into blocks."""
    keys = row_keys(inputs)
    assert keys.shape == (len(inputs), 16)
    assert keys.dtype == np.uint8
    same = [[a.tobytes() == b.tobytes() for b in inputs] for a in inputs]
    assert [[a.tobytes() == b.tobytes() for b in keys] for a in keys] == same
    order = np.random.default_rng(0).permutation(len(inputs))
    assert (row_keys(inputs[order]) == keys[order]).all()
    assert (np.concatenate([row_keys(inputs[:1]), row_keys(inputs[1:])]) == keys).all()


def test_keys_depend_on_shape_and_type():
    """The same bytes in another shape or type have another key."""
    row = np.zeros((1, 4, 4), np.uint8)
    others = [row, row.reshape(1, 16), row.reshape(1, 2, 8), row.view(np.float32), row.astype(np.float32)]
    assert len({row_keys(other).tobytes() for other in others}) == len(others)


def test_documented_digest():
    """A key is the documented digest: BLAKE2b-128 of the row, salted with BLAKE2b-128 of type and shape."""
    row = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    salt = hashlib.blake2b(b"|u1(2, 3)", digest_size=16).digest()
    expected = hashlib.blake2b(bytes(range(6)), digest_size=16, salt=salt).digest()
    assert row_keys(row).tobytes() == expected


def test_keys_do_not_depend_on_byte_order_or_layout():
    """Big-endian arrays and arrays in Fortran order have the same keys."""
    inputs = np.random.default_rng(0).normal(size=(5, 3, 2))
    assert (row_keys(inputs) == row_keys(inputs.astype(">f8"))).all()
    assert (row_keys(inputs) == row_keys(np.asfortranarray(inputs))).all()


def test_validation_rows_depend_only_on_key_and_seed(digits):
    """Whether a row is held out does not depend on other rows; equal rows are treated equally."""
    keys = digits.train.keys()
    out = validation_rows(keys, 0.2, 5)
    assert 0.15 < out.mean() < 0.25
    order = np.random.default_rng(1).permutation(len(keys))[:400]
    assert (validation_rows(keys[order], 0.2, 5) == out[order]).all()
    assert (validation_rows(keys, 0.2, 6) != out).any()
    assert (validation_rows(keys, 0.1, 5) <= out).all()
    assert len(set(validation_rows(np.repeat(keys[:1], 9, axis=0), 0.5, 5))) == 1
