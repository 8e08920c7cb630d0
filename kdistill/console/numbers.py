"""How numbers are printed."""

from __future__ import annotations

from dataclasses import dataclass

EXPONENT_FROM = 1e12


@dataclass(frozen=True)
class NumberFormat:
    """A format of numbers.

    Attributes:
        spec: what follows the colon in an f-string, e.g. `,.5g`.
    """

    spec: str

    def __call__(self, value: float, *, signed: bool = False) -> str:
        """Return a number as text, with a sign if `signed`.

        Large numbers below 1e12 get all their digits instead of an exponent.
        """
        sign = "+" * signed
        text = f"{value:{sign}{self.spec}}"
        return f"{value:{sign},.0f}" if "e+" in text and abs(value) < EXPONENT_FROM else text


five_digits = NumberFormat(",.5g")  # or more, without a fractional part
