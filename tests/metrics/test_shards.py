"""A group's shard: the same for the same key, wherever and in whatever type it comes."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ctrkit.errors import UserError
from ctrkit.metrics import shard_of_groups

KEYS = np.arange(-500, 1500)


def test_equal_keys_of_any_type_share_a_shard() -> None:
    ints = shard_of_groups(KEYS, 7)
    for same in (KEYS.astype(np.int16), pd.Series(KEYS), pa.array(KEYS), KEYS.tolist(), pd.Categorical(KEYS)):
        assert np.array_equal(shard_of_groups(same, 7), ints)
    text = KEYS.astype(str)
    strings = shard_of_groups(text, 7)
    for alike in (
        text.tolist(),
        text.astype(object),
        text.astype("S"),
        pd.Series(text),
        pa.array(text),
        pa.array(text).dictionary_encode(),
    ):
        assert np.array_equal(shard_of_groups(alike, 7), strings)
    objects = np.array([np.int64(key) for key in KEYS], dtype=object)
    assert np.array_equal(shard_of_groups(objects, 7), ints)
    assert shard_of_groups(["\ud800", "\ud800"], 7).tolist() == shard_of_groups(np.array(["\ud800"] * 2), 7).tolist()
    large = np.array([2**64 - 1, 2**63], dtype=np.uint64)
    assert np.array_equal(shard_of_groups(large, 1000), shard_of_groups(large.tolist(), 1000))


@pytest.mark.parametrize("keys", [KEYS, KEYS * 1024, KEYS.astype(str)])
def test_shards_are_about_as_large(keys: np.ndarray) -> None:
    rows = np.bincount(shard_of_groups(keys, 8), minlength=8)
    assert rows.sum() == 2000
    assert rows.min() > 180
    assert rows.max() < 320


def test_every_process_puts_a_key_into_the_same_shard() -> None:
    code = "from ctrkit.metrics import shard_of_groups as s; print(s(['a', 'b', 'user-17', (1, 'x')], 100).tolist())"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_errors_and_nothing() -> None:
    assert shard_of_groups([], 3).tolist() == []
    with pytest.raises(UserError, match="shards is 0"):
        shard_of_groups([1], 0)
    with pytest.raises(UserError, match="1 of 2 keys are missing"):
        shard_of_groups(["a", None], 2)
    with pytest.raises(UserError, match="in which large ids merge"):
        shard_of_groups(np.array([1.0]), 2)
