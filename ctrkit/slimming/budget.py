"""What a team allows a request to cost: `p99 <= 0.5 ms @ 400 ads, 1 thread`."""

import re
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any, Literal

import numpy as np

from ctrkit.errors import UserError

_PATTERN = re.compile(
    r"(?P<figure>p50|p95|p99|multiplications)\s*<=?\s*(?P<limit>\d+(?:,\d{3})*(?:\.\d*)?|\.\d+)\s*(?P<unit>ms|us|\u00b5s|\u03bcs|microseconds)?"
    r"(?:\s*@\s*(?P<ads>\d{1,9})\s*ads?)?(?:\s*,\s*(?P<threads>\d{1,9})\s*threads?)?"
)
ADS = 400
"""Ads a request, if a budget does not say it."""


@dataclass(frozen=True)
class Budget:
    """A percentile of the latency of a request, in milliseconds, or the multiplications an ad."""

    figure: Literal["p50", "p95", "p99", "multiplications"]
    limit: float
    ads: int = ADS

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read a budget.

        Raises:
            UserError: it is none, or asks for what is not measured.
        """
        found = _PATTERN.fullmatch(text.strip())
        if found is None:
            raise UserError(
                f"budget '{text}' cannot be read; write for instance 'p99 <= 0.5 ms @ 400 ads, 1 thread', "
                "'p50 <= 300 us' or 'multiplications <= 20000'"
            )
        figure: Any
        figure, unit, ads = found["figure"], found["unit"], int(found["ads"] or ADS)
        if (unit is None) is not (figure == "multiplications"):
            raise UserError(f"budget '{text}': a latency has a unit, ms or us, and multiplications have none")
        if int(found["threads"] or 1) != 1:
            raise UserError(f"budget '{text}': a request is scored by one thread, its caller's; ask for 1 thread")
        limit = float(found["limit"].replace(",", "")) / (1 if unit in (None, "ms") else 1000)
        if not limit or not 1 <= ads <= 10**6:
            raise UserError(f"budget '{text}': give a limit above 0 and 1 to 1,000,000 ads")
        return cls(figure, limit, ads)

    @property
    def timed(self) -> bool:
        """Whether it is kept by a clock."""
        return self.figure != "multiplications"

    @property
    def repeats(self) -> int:
        """Requests that are timed for its percentile; ten or more lie beyond it (`ctrkit_serving.latency`)."""
        return {"p50": 500, "p95": 1000, "p99": 3000}.get(self.figure, 0)

    def __str__(self) -> str:
        if not self.timed:
            return f"multiplications <= {self.limit:,.0f}"
        return f"{self.figure} <= {_digits(self.limit, 6)} ms @ {self.ads} ads, 1 thread"


def rounded_up(milliseconds: float) -> str:
    """A latency to three digits, no lower than it is: a budget that it keeps."""
    last = 10.0 ** (floor(log10(milliseconds)) - 2)
    return _digits(ceil(milliseconds / last) * last, 3)


def _digits(value: float, count: int) -> str:
    """Without an exponent, which no budget has."""
    return np.format_float_positional(value, precision=count, fractional=False, trim="-")
