"""How numbers are printed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kdistill.console import NumberFormat, five_digits


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00001234567, "1.2346e-05"),
        (12.3456789, "12.346"),
        (-99999.6, "-100,000"),
        (123456.7, "123,457"),
        (999999999999.0, "999,999,999,999"),
        (1e12, "1e+12"),
        (np.float32(250000), "250,000"),
        (np.int64(250000), "250,000"),
        (0, "0"),
        (math.nan, "nan"),
        (1e15, "1e+15"),
        (math.inf, "inf"),
    ],
)
def test_large_numbers_have_no_exponent(value, text):
    """Below 1e12, all digits are printed."""
    assert five_digits(value) == text


def test_signs():
    """Differences have a sign."""
    assert five_digits(1234567.0, signed=True) == "+1,234,567"
    assert NumberFormat(".1f")(2.0, signed=True) == "+2.0"
    assert NumberFormat(",")(-2, signed=True) == "-2"
