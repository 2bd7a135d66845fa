"""Shards by group: the partition under which partial results merge."""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctrkit.errors import UserError
from ctrkit.metrics.grouping import group_codes

_MASK = 2**64 - 1


def shard_of_groups(groups: Any, shards: int) -> NDArray[np.int64]:
    """A shard in [0, shards) for each row's group [rows]: a hash of the key, the same in every process and machine.

    Equal keys share a shard, whether they come as int32 or int64, as str, numpy string or Arrow string. Different keys
    that share a hash only share a shard. Raises UserError for keys as `gauc` does.
    """
    if shards < 1:
        raise UserError(f"shards is {shards}; give 1 or more")
    grouping = group_codes(groups)
    if grouping.names is None:
        return (_mixed(grouping.codes.astype(np.int64).view(np.uint64)) % np.uint64(shards)).astype(np.int64)
    names = grouping.names.to_pylist() if hasattr(grouping.names, "to_pylist") else grouping.names.tolist()
    of_name = np.array([_hash(name) for name in names], dtype=np.uint64)
    return (_mixed(of_name) % np.uint64(shards)).astype(np.int64)[grouping.code(slice(None)).astype(np.int64)]


def _hash(key: Any) -> int:
    if isinstance(key, int | np.integer):
        return int(key) & _MASK
    return zlib.crc32(key if isinstance(key, bytes) else str(key).encode(errors="surrogatepass"))


def _mixed(key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): near keys end far apart."""
    with np.errstate(over="ignore"):
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return key ^ (key >> np.uint64(31))
