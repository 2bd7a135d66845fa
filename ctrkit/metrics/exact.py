"""Sums that do not round, so that partial sums merge to the whole to the last bit, in any order.

A float64 is cut into a few parts, each a multiple of a unit so coarse that a step's parts add up without rounding (the
error-free extraction of Rump, Ogita and Oishi, Accurate Floating-Point Summation, SIAM J. Sci. Comput. 2008). A handful
of vectorised passes; the sums of the parts are added as fractions.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STEP_BITS = 17  # values of one step: 2**17, so a part has 53 - 17 - 1 bits


def exact_sum(values: NDArray[Any]) -> Fraction:
    """The sum of integers or finite floats, not rounded."""
    if values.dtype.kind in "biu":
        return Fraction(int(values.sum()))
    return sum((Fraction(float(part.sum())) for _, part in _parts(values)), Fraction(0))


def exact_sums(values: NDArray[Any], segment: NDArray[np.int64], count: int) -> list[Fraction]:
    """The sums [count] of the values [rows] of every segment, not rounded; segment: from 0 below `count` [rows]."""
    sums = [Fraction(0)] * count
    for rows, part in _parts(values.astype(np.float64, copy=False)):
        of_part = np.bincount(segment[rows], part)
        for i in np.flatnonzero(of_part):
            sums[i] += Fraction(float(of_part[i]))
    return sums


def ratio(top: Fraction | int, bottom: Fraction | int) -> float:
    """top / bottom, rounded once; nan if bottom is 0, infinite if no float64 is as large."""
    try:
        return float(Fraction(top) / Fraction(bottom)) if bottom else float("nan")
    except OverflowError:
        return math.copysign(math.inf, top * bottom)


def _parts(values: NDArray[Any]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """(rows, part of the values of those rows): all parts of a row add up to it, and a part's sum is exact."""
    for start in range(0, len(values), 1 << _STEP_BITS):
        rows = slice(start, start + (1 << _STEP_BITS))
        rest = values[rows].astype(np.float64)
        while top := float(np.abs(rest).max()):
            exponent = int(np.frexp(top)[1]) + _STEP_BITS
            if exponent < 1022:
                carrier = 1.5 * 2.0**exponent  # adding it rounds off all bits below its last one
                part = (rest + carrier) - carrier
            else:  # no float64 carries so large a value: it is a part by itself
                part = np.zeros_like(rest)
                part[np.abs(rest).argmax()] = rest[np.abs(rest).argmax()]
            yield rows, part
            rest -= part
