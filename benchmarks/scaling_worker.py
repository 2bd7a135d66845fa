"""One rank of `benchmarks.scaling`: steps of a model whose tables all ranks hold together; rank 0 prints rows a second.

python -m torch.distributed.run --standalone --nproc-per-node=2 -m benchmarks.scaling_worker MODEL IDS BATCH SECONDS
"""

import json
import logging
import statistics
import sys
import time

import torch

from benchmarks.training_steps import Impressions, InMemory, make_batches, own_steps
from ctrkit.training.ranks import Ranks

BLOCKS = 5


def main() -> None:
    """Time blocks of steps, each of as many as the first one needed for its seconds."""
    model, num_rows, batch, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    assert model in ("light", "rocket")
    torch.set_num_threads(1)
    ranks = Ranks.join()
    share = batch // ranks.size
    given = [
        Impressions(each.ids_FB[:, ranks.rank * share :][:, :share], each.label_B[ranks.rank * share :][:share])
        for each in make_batches(num_rows, 8, batch)
    ]
    train = own_steps("light" if model == "light" else "rocket", num_rows, InMemory, ranks).train["bf16"]
    train(given)
    start = time.perf_counter()
    train(given)
    steps = ranks.largest(max(8, int(8 * seconds / (time.perf_counter() - start))))
    rates = []
    for _ in range(BLOCKS):
        start = time.perf_counter()
        train(given[step % 8] for step in range(steps))
        rates.append(steps * batch / (time.perf_counter() - start))
    if ranks.rank == 0:
        print(json.dumps({"rows_per_s": statistics.median(rates), "blocks": rates}), flush=True)
    ranks.leave()


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
