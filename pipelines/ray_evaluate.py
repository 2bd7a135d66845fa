"""The report of predictions by Ray Data: a partial result for each shard of users, merged exactly.

    python pipelines/ray_evaluate.py PREDICTIONS --shards 64

The same figures as `ctrkit evaluate PREDICTIONS`, to the last bit. Every shard, with all rows of its users, must fit
into the memory of one task; the driver holds the merged table of scores, 24 bytes for each distinct one. Needs
`pip install "ray[data]"`; on a cluster, ctrkit must be installed on every node.
"""

import argparse
import json
import logging
import pickle
from typing import Any

import pyarrow as pa
import ray
import ray.data

from ctrkit.metrics import Report, ReportPartial, shard_of_groups


def evaluate(path: str, *, label: str, group: str, score: str, shards: int) -> Report:
    """The report of a Parquet file or folder."""

    def with_shard(rows: pa.Table) -> pa.Table:
        return rows.append_column("_shard", pa.array(shard_of_groups(rows[group], shards)))

    def partial_of(rows: pa.Table) -> pa.Table:
        partial = ReportPartial.of(rows[label].to_numpy(), rows[score].to_numpy(), rows[group])
        return pa.table({"partial": pa.array([pickle.dumps(partial)], pa.large_binary())})

    rows = ray.data.read_parquet(path).select_columns([label, group, score])
    by_shard = rows.map_batches(with_shard, batch_format="pyarrow").groupby("_shard", num_partitions=shards)
    partials = by_shard.map_groups(partial_of, batch_format="pyarrow")
    # Written a moment ago by this program's own tasks.
    return ReportPartial.merge(pickle.loads(row["partial"]) for row in partials.iter_rows()).report()  # noqa: S301


def main() -> None:
    """Print the report as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", help="Parquet file or folder")
    parser.add_argument("--label", default="label", help="column of 0 and 1")
    parser.add_argument("--group", default="group", help="column of the user")
    parser.add_argument("--score", default="probability", help="column of the probability")
    parser.add_argument("--shards", type=int, default=16, help="parts that the users are put into")
    parser.add_argument("--cpus", type=int, help="for Ray on this machine (default: all)")
    options: dict[str, Any] = vars(parser.parse_args())
    ray.init(num_cpus=options.pop("cpus"), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        print(json.dumps(evaluate(options.pop("predictions"), **options).as_dict()))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
