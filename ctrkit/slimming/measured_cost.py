"""What a request takes as a function of a tower's widths, fitted to towers that were measured."""

from collections.abc import Sequence
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrkit.slimming.autoslim import Channels


class MeasuredCost:
    """Milliseconds of a request by the widths of its tower: least squares over towers that were measured.

    a + sum b_l c_l + sum d_l c_l c_(l+1): what a layer writes, and what it multiplies; none of it saves time.

    Args:
        widths: of the towers that were measured.
        milliseconds: of each.
    """

    def __init__(self, widths: Sequence[Channels], milliseconds: Sequence[float]) -> None:
        measured = np.asarray(milliseconds, np.float64)
        features = np.stack([_features(each) for each in widths])
        self._weights = not_negative(features, measured)
        self.count = len(widths)
        spread = float(np.var(measured))
        self.r2 = 1 - float(np.var(measured - features @ self._weights)) / spread if spread else 1.0
        """Share of their variance that the widths explain."""

    def __call__(self, widths: Channels) -> float:
        """Milliseconds."""
        return float(_features(widths) @ self._weights)


def _features(widths: Channels) -> npt.NDArray[np.float64]:
    return np.array([1.0, *widths, *(a * b for a, b in pairwise(widths))])


def not_negative(features: npt.NDArray[Any], values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Least squares without the features whose weight would be negative, the most negative one left out first."""
    kept = list(range(features.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(features[:, kept], values, rcond=None)
        worst = int(np.argmin(found))
        if found[worst] >= 0 or len(kept) == 1:
            weights = np.zeros(features.shape[1])
            weights[kept] = found
            return weights
        del kept[worst]


def drawn_widths(low: Channels, high: Channels, multiple: int, count: int = 20) -> list[Channels]:
    """Towers to measure: the narrowest, the widest and others between them, drawn at random; all if they are few."""
    layers = [sorted({a, b, *range(-(-a // multiple) * multiple, b, multiple)}) for a, b in zip(low, high, strict=True)]
    if prod(map(len, layers)) <= count:
        return list(product(*layers))
    rng, found = np.random.default_rng(0), {low, high}
    while len(found) < count:
        found.add(tuple(int(rng.choice(of_layer)) for of_layer in layers))
    return sorted(found)
