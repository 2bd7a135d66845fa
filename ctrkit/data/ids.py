"""Ids of a column: each distinct one, and its key; texts are hashed where Arrow holds them, without Python objects."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view

from ctrkit.data.columns import numbers, to_numpy
from ctrkit.errors import UserError
from ctrkit.raw_values import MAX_STRING, BoolArray, Int64Array, RawType, hash_code_points, hash_strings, keys_of, mix

_BLOCK = 8192  # texts hashed at a time, so that they stay in the cache
_WORD = 8

Bytes = npt.NDArray[np.uint8]


def distinct(array: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """Values of a column, each once, maybe with others that it lacks, and for each row the place of its value.

    Null is a value.
    """
    if pa.types.is_integer(array.type) and not array.null_count and len(array):
        values_N = to_numpy(array)
        low, high = int(values_N.min()), int(values_N.max())
        if high - low < len(array) // 4 and high < 2**63:  # close together: no need to hash them
            return pa.array(np.arange(high - low + 1) + low), (values_N.astype(np.int64) - low).astype(np.int32)
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode(null_encoding="encode")
        return array.dictionary, to_numpy(array.indices).astype(np.int32, copy=False)
    values, codes = array.dictionary, array.indices.cast(pa.int32())
    if codes.null_count:
        values, codes = pa.concat_arrays([values, pa.nulls(1, values.type)]), codes.fill_null(len(values))
    codes_N = to_numpy(codes)
    if len(values) > len(array):  # of a whole row group, or of a file: those that stand here
        used_V = np.bincount(codes_N, minlength=len(values)) > 0
        return values.filter(pa.array(used_V)), (np.cumsum(used_V, dtype=np.int32) - 1)[codes_N]
    return values, codes_N


def id_keys(array: pa.Array, raw_type: RawType, name: str) -> tuple[Int64Array, BoolArray]:
    """`ctrkit.raw_values.keys_of` each id of feature `name`, and where there is none (null or NaN).

    Raises:
        UserError: ids stored as floats that are no whole numbers or that floats cannot hold; texts not in UTF-8.
    """
    if raw_type == "string":
        return text_keys(array, name), to_numpy(array.is_null())
    values_N, missing_N = numbers(array, raw_type, name)
    return keys_of(values_N, missing_N), missing_N


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
