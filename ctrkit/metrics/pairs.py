"""Counting, for every group, the pairs of a click and a non-click that the scores put in the right order.

The one algorithm behind AUC and GAUC. A row becomes one 64-bit key, (group, score's code, label) from the high bits to
the low; one sort lines the rows up and one pass over the sorted keys counts, in integers, so nothing is rounded.

The score's code is monotone. Where it is also one-to-one (float32 scores always; float64 where enough bits are left)
the keys are exact by construction. Otherwise it is a grid of as many bits as fit, which may put two scores in one
cell; that matters only where a cell holds both labels of one group, and then it is found out: the scores are sorted
to see whether any two share a cell, and if so their ranks take the grid's place.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctrkit.errors import UserError
from ctrkit.metrics.grouping import Grouping
from ctrkit.metrics.inputs import BoolArray, FloatArray, chunks

_KEY_BITS = 63  # what the label leaves of 64 for group and score
_SCORE_BITS = 62  # enough for any float64 in [0, 1]
_GRID_BITS = 52  # below 2**52 every integer is a float64, so a cell is where it seems to be


@dataclass(frozen=True)
class PairCounts:
    """What AUC needs of every group, [groups] each.

    key: the group's. rows, clicks: int64. twice_won: int64, twice the pairs (click, non-click) in the right order, a
    tie counting as half a pair.
    """

    key: NDArray[Any]
    rows: NDArray[np.int64]
    clicks: NDArray[np.int64]
    twice_won: NDArray[np.int64]

    @property
    def auc(self) -> NDArray[np.float64]:
        """twice_won / (2 clicks non-clicks), rounded once; nan for groups of one class."""
        pairs = 2 * self.clicks * (self.rows - self.clicks)
        auc: NDArray[np.float64] = np.full(len(pairs), np.nan)
        np.divide(self.twice_won, pairs, out=auc, where=pairs > 0)
        return auc

    @property
    def weight(self) -> NDArray[np.int64]:
        """Impressions."""
        return self.rows

    @property
    def click_weight(self) -> NDArray[np.int64]:
        """Clicks."""
        return self.clicks


@dataclass(frozen=True)
class ScoreCode:
    """A monotone code of scores in [0, 2**bits): a grid's cell, the place among all floats, or the rank.

    `exact` says that two different scores never share a code.
    """

    scores: FloatArray
    bits: int
    exact: bool
    low: float = 0.0
    scale: float = 0.0
    ranks: NDArray[np.int64] | None = None

    def __call__(self, part: slice) -> NDArray[np.uint64]:
        """The codes of those rows."""
        if self.ranks is not None:
            return self.ranks[part].astype(np.uint64)
        if not self.exact:
            return grid_cell(self.scores[part], self.low, self.scale, self.bits)
        lowest = place(np.full(1, self.low, dtype=self.scores.dtype))
        return np.subtract(place(self.scores[part]), lowest)


def place(scores: NDArray[Any]) -> NDArray[np.uint64]:
    """The scores' places among all floats of their type: their bits, turned so that they order as the scores do."""
    bits = (scores + 0).view(np.int32 if scores.dtype == np.float32 else np.int64).astype(np.int64)  # + 0: -0.0 is 0.0
    magnitude = np.int64(2 ** (scores.dtype.itemsize * 8 - 1) - 1)
    return (bits ^ ((bits >> 63) & magnitude)).view(np.uint64)


def grid_cell(scores: NDArray[Any], low: float, scale: float, bits: int) -> NDArray[np.uint64]:
    """The cells of an even grid. Each step rounds monotonically, so a higher score never gets a lower cell."""
    return np.minimum((scores - low) * scale, 2.0**bits - 1).astype(np.uint64)


def exact_bits(scores: FloatArray) -> int:
    """How many bits the places of these scores span."""
    if not scores.size:
        return 0
    low, high = (int(end) for end in place(np.array([scores.min(), scores.max()], dtype=scores.dtype)))
    return ((high - low) % 2**64).bit_length()


def score_code(scores: FloatArray, bits: int, *, allow_grid: bool) -> ScoreCode:
    """The cheapest code of at most `bits` bits: places if they fit, else a grid if allowed, else ranks."""
    needed = exact_bits(scores)
    low, high = (float(scores.min()), float(scores.max())) if scores.size else (0.0, 0.0)
    if needed <= bits:
        return ScoreCode(scores, needed, exact=True, low=low)
    grid_bits = min(bits, _GRID_BITS)
    with np.errstate(over="ignore"):
        scale = float(np.float64(2.0**grid_bits) / (np.float64(high) - np.float64(low)))
    if allow_grid and 0.0 < scale < np.inf:
        return ScoreCode(scores, grid_bits, exact=False, low=low, scale=scale)
    ranks = dense_ranks(scores)
    return ScoreCode(scores, int(ranks.max()).bit_length(), exact=True, ranks=ranks)


def dense_ranks(scores: FloatArray) -> NDArray[np.int64]:
    """Rank [rows] of every score among the distinct scores, from 0."""
    order = np.argsort(scores)
    steps = np.zeros(len(scores), dtype=np.int64)
    for part in chunks(len(scores) - 1):
        following = slice(part.start + 1, part.stop + 1)
        steps[following] = scores[order[following]] != scores[order[part]]
    np.cumsum(steps, out=steps)
    ranks = np.empty_like(steps)
    ranks[order] = steps
    return ranks


def count_pairs(clicks: BoolArray, scores: FloatArray, groups: Grouping) -> PairCounts:
    """Pair counts of every group, exactly, whatever the order of the rows.

    clicks [rows] bool, scores [rows] finite. Memory: 8 bytes a row for the keys and about 100 bytes a group; 24 bytes a
    row more in the rare case that ranks are needed. Raises UserError if group and rank do not fit in 63 bits.
    """
    if exact_bits(scores) + groups.bits > _KEY_BITS:
        groups = groups.renumbered()
    bits = min(_SCORE_BITS, _KEY_BITS - groups.bits)
    code = score_code(scores, bits, allow_grid=True)
    counts, lossy = _count(_sorted_keys(clicks, code, groups), code.bits, groups)
    if lossy and not code.exact and not _one_to_one(code):
        code = score_code(scores, bits, allow_grid=False)
        if code.bits > bits:
            raise UserError(f"groups need {groups.bits} bits and scores {code.bits}; {_KEY_BITS} fit: split the log")
        counts, _ = _count(_sorted_keys(clicks, code, groups), code.bits, groups)
    return counts


def _sorted_keys(clicks: BoolArray, code: ScoreCode, groups: Grouping) -> NDArray[np.uint64]:
    keys = np.empty(len(clicks), dtype=np.uint64)
    offset, shift = np.uint64(groups.offset % 2**64), np.uint64(code.bits + 1)
    for part in chunks(len(clicks)):
        key = groups.codes[part].astype(np.uint64)
        key -= offset
        key <<= shift
        score = code(part)
        score <<= np.uint64(1)
        key |= score
        key |= clicks[part]
        keys[part] = key
    keys.sort()
    return keys


def _one_to_one(code: ScoreCode) -> bool:
    """Whether the grid put no two different scores in one cell."""
    ordered = np.sort(code.scores)
    for part in chunks(len(ordered)):
        piece = ordered[part.start : part.stop + 1]
        cells = grid_cell(piece, code.low, code.scale, code.bits)
        if np.any((piece[1:] != piece[:-1]) & (cells[1:] == cells[:-1])):
            return False
    return True


def _count(keys: NDArray[np.uint64], score_bits: int, groups: Grouping) -> tuple[PairCounts, bool]:
    """Counts from sorted keys, and whether any (group, score) holds both labels.

    With p the place of the j-th click (from 0) in a group that starts at s, p - s - j non-clicks come before it. Summed
    over clicks: sum(p) - clicks s - clicks (clicks - 1) / 2, which counts a tied pair as won, since label is the lowest
    bit. So twice_won = 2 sum(p - s) - clicks (clicks - 1) - tied pairs.
    """
    parts = []
    state = _Pass(keys, score_bits)
    for part in chunks(len(keys)):
        parts.append(state.step(part))
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return PairCounts(groups.keys(none.astype(np.uint64)), none, none, none), False
    starts, new, clicks, places, tied = (np.concatenate(column) for column in zip(*parts, strict=True))
    first = np.flatnonzero(new)  # the segments that open a group; those after it, up to the next, continue it
    starts = starts[first]
    clicks, places, tied = (np.add.reduceat(column, first) for column in (clicks, places, tied))
    won = 2 * (places - clicks * starts) - clicks * (clicks - 1) - tied
    key = groups.keys(keys[starts] >> np.uint64(score_bits + 1))
    return PairCounts(key, np.diff(starts, append=len(keys)), clicks, won), bool(tied.any())


Segments = tuple[NDArray[np.int64], BoolArray, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


class _Pass:
    """The pass over sorted keys, in steps; it remembers where the run of equal keys that is still open began."""

    def __init__(self, keys: NDArray[np.uint64], score_bits: int) -> None:
        self.keys = keys
        self.group_bit = np.uint64(2 ** (score_bits + 1))
        self.run_start = 0

    def step(self, part: slice) -> Segments:
        """The groups' segments in these rows: start, whether a group starts there, clicks, sum of places, tied pairs.

        The first segment belongs to the group that was open before; it is empty if these rows start with a new one.
        """
        here = self.keys[part]
        change = np.empty_like(here)
        change[0] = here[0] ^ self.keys[part.start - 1] if part.start else self.group_bit
        np.bitwise_xor(here[1:], here[:-1], out=change[1:])
        opens = np.flatnonzero(change >= self.group_bit)
        starts = np.concatenate([[0], opens])
        new = np.ones(len(starts), dtype=np.bool_)
        new[0] = False
        clicked = np.flatnonzero(here.astype(np.uint8) & np.uint8(1))
        clicks, places = _segment_sums(clicked, clicked, starts)
        tied = self._tied_pairs(change, part, starts)
        return starts + part.start, new, clicks, places + clicks * part.start, tied

    def _tied_pairs(self, change: NDArray[np.uint64], part: slice, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pairs (click, non-click) of one group and score, per segment: a change of the lowest bit alone."""
        mixed = change == 1
        if not mixed.any():
            last = self._last_change(change)
            self.run_start = self.run_start if last < 0 else part.start + last
            return np.zeros(len(starts), dtype=np.int64)
        runs = np.flatnonzero(change)
        end = np.searchsorted(self.keys, self.keys[part.stop - 1], side="right")
        bounds = np.concatenate([[self.run_start], runs + part.start, [end]])
        length = np.diff(bounds)
        meets = np.flatnonzero(mixed[runs])  # run meets[k] + 1 is the clicks, the run before it the non-clicks
        self.run_start = int(bounds[-2])
        _, pairs = _segment_sums(runs[meets], length[meets] * length[meets + 1], starts)
        return pairs

    @staticmethod
    def _last_change(change: NDArray[np.uint64]) -> int:
        """The last row that differs from the one before it, -1 if none does."""
        if change[-1]:
            return len(change) - 1
        changed = np.flatnonzero(change)
        return int(changed[-1]) if changed.size else -1


def _segment_sums(
    at: NDArray[np.int64], values: NDArray[np.int64], starts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count and sum of `values`, which lie at the ascending places `at`, in the segments that begin at `starts`."""
    cuts = np.append(np.searchsorted(at, starts), len(at))
    total = np.concatenate([[0], np.cumsum(values)])
    return np.diff(cuts), total[cuts[1:]] - total[cuts[:-1]]
