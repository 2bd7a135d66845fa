"""Keys of a column of texts, hashed where Arrow holds them: no Python object is made of a text in ASCII."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view

from ctrkit.errors import UserError
from ctrkit.raw_values import MAX_STRING, BoolArray, Int64Array, hash_code_points, hash_strings, mix

_BLOCK = 8192  # texts hashed at a time, so that they stay in the cache
_WORD = 8

Bytes = npt.NDArray[np.uint8]


def text_keys(texts: pa.Array, name: str) -> Int64Array:
    """`ctrkit.raw_values.hash_strings` of each of N texts, 0 where it is null.

    Raises:
        UserError: one is not written as UTF-8; names the feature, `name`.
    """
    return _hashed(texts, name, hash_code_points, hash_strings)


def text_checks(texts: pa.Array, name: str) -> Int64Array:
    """Another 64-bit hash of each text, which knows nothing of `text_keys`; good within one process.

    Raises:
        UserError: as `text_keys` does.
    """
    return _hashed(texts, name, _hash_words, lambda texts_N: np.fromiter(map(hash, texts_N), np.int64, len(texts_N)))


def _hashed(
    texts: pa.Array,
    name: str,
    of_ascii: Callable[[Bytes, Int64Array], npt.NDArray[np.uint64]],
    of_objects: Callable[[npt.NDArray[np.object_]], Int64Array],
) -> Int64Array:
    if not pa.types.is_large_string(texts.type):
        texts = texts.cast(pa.string())
    content, start_N, length_N = _bytes_of(texts)
    missing_N = texts.is_null().to_numpy(zero_copy_only=False)
    other_N = (_beyond_ascii(content, start_N, length_N) | (length_N > MAX_STRING)) & ~missing_N
    hash_N = np.zeros(len(texts), np.int64)
    ascii_A = np.flatnonzero(~other_N & ~missing_N)
    ascii_A = ascii_A[np.argsort(length_N[ascii_A], kind="stable")]  # neighbours of like length: little padding
    for first in range(0, len(ascii_A), _BLOCK):
        block = ascii_A[first : first + _BLOCK]
        codes_BL = sliding_window_view(content, max(int(length_N[block[-1]]), 1))[start_N[block]]
        hash_N[block] = of_ascii(codes_BL, length_N[block]).view(np.int64)
    others = np.flatnonzero(other_N)
    if len(others):
        try:
            hash_N[others] = of_objects(texts.take(pa.array(others)).to_numpy(zero_copy_only=False))
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise UserError(f"feature '{name}' has a text that is not UTF-8; write it as UTF-8") from error
    return hash_N


def _bytes_of(texts: pa.Array) -> tuple[Bytes, Int64Array, Int64Array]:
    """Where the texts lie: all bytes, then room for a window; and the first byte and the number of bytes of each."""
    _, offsets, content = texts.buffers()
    kind = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    if len(texts) == 0:
        return np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64)
    bounds_N1 = np.frombuffer(offsets, kind)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    first, last = int(bounds_N1[0]), int(bounds_N1[-1])
    held = np.frombuffer(content or b"", np.uint8)[first:last]
    return np.concatenate([held, np.zeros(MAX_STRING, np.uint8)]), bounds_N1[:-1] - first, np.diff(bounds_N1)


def _beyond_ascii(content: Bytes, start_N: Int64Array, length_N: Int64Array) -> BoolArray:
    if content.max(initial=0) < 0x80:
        return np.zeros(len(start_N), np.bool_)
    before = np.concatenate([[0], np.cumsum(content >= 0x80)])
    return np.asarray(before[start_N + length_N] > before[start_N])


def _hash_words(codes_BL: Bytes, length_B: Int64Array) -> npt.NDArray[np.uint64]:
    """Texts sorted by length, folded eight bytes at a time: add, rotate, multiply."""
    words = -(-codes_BL.shape[1] // _WORD)
    padded_BL = np.zeros((len(codes_BL), words * _WORD), np.uint8)
    padded_BL[:, : codes_BL.shape[1]] = np.where(np.arange(codes_BL.shape[1]) < length_B[:, None], codes_BL, 0)
    words_BW = padded_BL.view("<u8")
    hash_B = mix(length_B.astype(np.uint64) + np.uint64(1))
    for place in range(words):
        tail = hash_B[int(np.searchsorted(length_B, place * _WORD, side="right")) :]
        tail += words_BW[len(words_BW) - len(tail) :, place]
        tail ^= tail >> np.uint64(29)
        tail *= np.uint64(0xC2B2AE3D27D4EB4F)
    return mix(hash_B)
