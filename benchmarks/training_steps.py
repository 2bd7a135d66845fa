"""A training step of the same net in ctrkit and in its peers, as `benchmarks.training` times it.

The net: 36 fields of one id each, embeddings of 16, a light tower 200-80 or a booster 720-360-240-180-90, binary
cross-entropy, Adam on the towers. Ids follow Zipf's law and lie in memory.
"""

import contextlib
import importlib
import io
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec import EmbeddingBagConfig
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrkit.builders.objective import build_objective
from ctrkit.builders.optimizers import build_optimizers
from ctrkit.config.recipe import Recipe
from ctrkit.data.batch import Batch
from ctrkit.data.loader import Loader
from ctrkit.schema import Schema
from ctrkit.training.ranks import Ranks
from ctrkit.training.saved_training import SavedTraining
from ctrkit.training.sharding import shard
from ctrkit.training.trainer import Trainer

FIELDS, DIM, BATCH = 36, 16, 4096
NAMES = [f"c{i}" for i in range(FIELDS)]
LIGHT, BOOSTER = [200, 80], [720, 360, 240, 180, 90]
TABLE_STD = 0.01
RATE = 1e-3

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Impressions:
    """A batch: ids int64 [FIELDS, B] and labels float32 [B]."""

    ids_FB: Tensor
    label_B: Tensor


Train = Callable[[Iterable[Impressions]], None]
"""Takes one training step a batch."""


@dataclass(frozen=True)
class Trainable:
    """A net that stands ready."""

    train: Mapping[Precision, Train]
    state: Callable[[], Iterable[Tensor]] = field(default=lambda: ())
    """What its optimizers keep of the tables, once they have taken a step."""


Build = Callable[[int], Trainable]
"""From ids a field to a net with fresh tables. Raises ImportError where the library is not installed."""


def make_batches(num_rows: int, count: int, batch: int = BATCH) -> list[Impressions]:
    """Batches with ids in [0, num_rows) by Zipf's law (exponent 1), spread over the table; a tenth is clicked."""
    rng = np.random.default_rng(0)
    share = np.cumsum(1.0 / np.arange(1, num_rows + 1))
    batches = []
    for _ in range(count):
        rank_FB = np.searchsorted(share, rng.random((FIELDS, batch)) * share[-1])
        ids_FB = rank_FB * 7919 % num_rows  # one to one: 7919 is a prime that divides no power of ten
        label_B = (rng.random(batch) < 0.1).astype(np.float32)
        batches.append(Impressions(torch.from_numpy(ids_FB), torch.from_numpy(label_B)))
    return batches


# --- ctrkit


class UsedUpError(Exception):
    """The batches are used up."""


class Given(Loader):
    """Batches as an endless epoch; raises UsedUpError behind the last, so that nothing is evaluated."""

    def __init__(self, schema: Schema, batches: Iterable[Batch]) -> None:
        super().__init__(schema, [], batch_size=BATCH)
        self.num_rows = 2**60
        self.given = batches

    def epoch(self, epoch: int = 0, *, skip_batches: int = 0) -> Iterator[Batch]:
        """The batches that were given."""
        yield from self.given
        raise UsedUpError


class InMemory(Given):
    """Impressions in memory as such an epoch."""

    def __init__(self, recipe: Recipe, batches: Iterable[Impressions]) -> None:
        super().__init__(recipe.schema_(), map(_as_batch, batches))


def _as_batch(batch: Impressions) -> Batch:
    rows = len(batch.label_B)
    return Batch(
        sparse=jagged(batch),
        dense_BD=torch.zeros(rows, 0),
        label_B=batch.label_B,
        weight_B=torch.ones(rows),
        origin_B=torch.zeros(rows, dtype=torch.int64),
    )


def ctrkit(model: Literal["light", "booster", "rocket"], **settings: Any) -> Build:
    """ctrkit's own Trainer on a model; `settings` are those of [train]."""
    return lambda num_rows: own_steps(model, num_rows, InMemory, **settings)


def own_steps(
    model: Literal["light", "booster", "rocket"],
    num_rows: int,
    load: Callable[[Recipe, Iterable[Impressions]], Loader],
    ranks: Ranks | None = None,
    **settings: Any,
) -> Trainable:
    """A model in ctrkit's Trainer; `load` gives a loader that raises `UsedUpError` behind the last batch."""
    fp32, bf16 = (_recipe(precision, settings) for precision in ("fp32", "bf16"))
    ranks = ranks or Ranks()
    objective = build_objective(fp32, model, dict.fromkeys(NAMES, num_rows), sharded=ranks.size > 1)
    called = objective if ranks.size == 1 else shard(objective, ranks, torch.device("cpu"), batch_size=BATCH)
    optimizers, schedulers, towers = build_optimizers(objective, fp32.train_config(model), total_steps=2**40)

    def trainer(recipe: Recipe) -> Train:
        def train(batches: Iterable[Impressions]) -> None:
            with ranks_directory(ranks) as directory, contextlib.suppress(UsedUpError):
                saved = SavedTraining(
                    objective, optimizers, schedulers, directory=Path(directory), fingerprint="", ranks=ranks
                )
                loop = Trainer(saved, recipe.train_config(model), clipped=towers, model=called, quiet=True)
                loop.fit(load(recipe, batches), lambda _: {})

        return train

    return Trainable({"fp32": trainer(fp32), "bf16": trainer(bf16)}, lambda: _state(optimizers))


@contextlib.contextmanager
def ranks_directory(ranks: Ranks) -> Iterator[str]:
    """A directory that all ranks see for a while."""
    directory = ranks.on_first(tempfile.mkdtemp)
    try:
        yield directory
    finally:
        if ranks.rank == 0:
            shutil.rmtree(directory)


def _recipe(precision: str, settings: Mapping[str, Any]) -> Recipe:
    train = {"batch_size": BATCH, "lr": RATE, "table_lr": RATE, "table_l2": 0.0, "precision": precision, **settings}
    content = {
        "name": "training",
        "data": {"path": "in memory"},
        "columns": {"label": "click", "group": "user"},
        "features": {name: {"side": "item"} for name in NAMES},
        "embedding": {"dim": DIM, "init_std": TABLE_STD},
        "towers": {"light": {"hidden": LIGHT}, "booster": {"hidden": BOOSTER}},
        "models": {
            "light": {"objective": "pointwise", "tower": "light"},
            "booster": {"objective": "pointwise", "tower": "booster"},
            "rocket": {"objective": "rocket_launching", "light": "light", "booster": "booster"},
        },
        "train": train,
    }
    return Recipe.model_validate(content)


def _state(optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[Tensor]:
    for optimizer in optimizers:
        for values in optimizer.state.values():
            yield from (value for value in values.values() if isinstance(value, Tensor))


# --- plain torch and TorchRec


def dense_adam(num_rows: int) -> Trainable:
    """nn.Embedding with dense gradients, one Adam: the way of FuxiCTR, DeepCTR-Torch and torch-rechub."""
    return _plain_torch(num_rows, sparse=False)


def sparse_adam(num_rows: int) -> Trainable:
    """nn.Embedding with sparse gradients and SparseAdam."""
    return _plain_torch(num_rows, sparse=True)


def torchrec(num_rows: int) -> Trainable:
    """TorchRec's collection with the optimizer fused into the lookup's backward: Adagrad, which has a CPU kernel.

    The kernel that `apply_optimizer_in_backward` gives under DistributedModelParallel, without a process group.
    """
    tables = FusedEmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=f"t_{name}", embedding_dim=DIM, num_embeddings=num_rows, feature_names=[name])
            for name in NAMES
        ],
        optimizer_type=torch.optim.Adagrad,
        optimizer_kwargs={"lr": RATE},
        device=torch.device("cpu"),
    )
    tower = light_tower()
    optimizers = [torch.optim.Adam(tower.parameters(), lr=RATE)]

    train = _precisions(lambda batch: tower(tables(jagged(batch)).values()), optimizers)
    return Trainable(train, lambda: _state([tables.fused_optimizer()]))


def light_tower() -> nn.Module:
    """The light tower as one writes it in torch."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise([FIELDS * DIM, *LIGHT]):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(LIGHT[-1], 1))


def jagged(batch: Impressions) -> KeyedJaggedTensor:
    """The ids as TorchRec takes them."""
    ids = batch.ids_FB.reshape(-1)
    return KeyedJaggedTensor.from_lengths_sync(keys=NAMES, values=ids, lengths=torch.ones_like(ids))


def _plain_torch(num_rows: int, *, sparse: bool) -> Trainable:
    weights = (torch.empty(num_rows, DIM).normal_(0.0, TABLE_STD) for _ in NAMES)
    tables = nn.ModuleList([nn.Embedding(num_rows, DIM, sparse=sparse, _weight=weight) for weight in weights])
    tower = light_tower()

    def forward(batch: Impressions) -> Tensor:
        x_BX = torch.cat([table(ids_B) for table, ids_B in zip(tables, batch.ids_FB, strict=True)], dim=1)
        logit_B1: Tensor = tower(x_BX)
        return logit_B1

    optimizers: list[torch.optim.Optimizer]
    if sparse:
        optimizers = [
            torch.optim.SparseAdam(list(tables.parameters()), lr=RATE),
            torch.optim.Adam(tower.parameters(), lr=RATE),
        ]
    else:
        optimizers = [torch.optim.Adam([*tables.parameters(), *tower.parameters()], lr=RATE)]
    return Trainable(_precisions(forward, optimizers), lambda: _state(optimizers))


def _precisions(
    forward: Callable[[Impressions], Tensor], optimizers: Sequence[torch.optim.Optimizer]
) -> dict[Precision, Train]:
    def steps(*, bf16: bool) -> Train:
        def train(batches: Iterable[Impressions]) -> None:
            for batch in batches:
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    logit_B = forward(batch).squeeze(1)
                loss = functional.binary_cross_entropy_with_logits(logit_B.float(), batch.label_B)
                for optimizer in optimizers:
                    optimizer.zero_grad()
                torch.autograd.backward(loss)
                for optimizer in optimizers:
                    optimizer.step()

        return train

    return {"fp32": steps(bf16=False), "bf16": steps(bf16=True)}


# --- libraries that may be installed


def fuxictr(num_rows: int) -> Trainable:
    """FuxiCTR: its embedding, MLP block, `compile` and `train_step`; its DNN class is not in its wheel."""
    layers = importlib.import_module("fuxictr.pytorch.layers")
    feature_map = importlib.import_module("fuxictr.features").FeatureMap("training", "")
    feature_map.features.update({name: {"source": "", "type": "categorical", "vocab_size": num_rows} for name in NAMES})
    feature_map.labels, feature_map.num_fields, feature_map.default_emb_dim = ["label"], FIELDS, DIM

    class DNN(importlib.import_module("fuxictr.pytorch.models").BaseModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(feature_map, verbose=0, model_root="", metrics=["AUC"])
            self.embedding_layer = layers.FeatureEmbedding(feature_map, DIM)
            self.mlp = layers.MLP_Block(input_dim=FIELDS * DIM, output_dim=1, hidden_units=LIGHT)
            self.compile("adam", "binary_crossentropy", RATE)
            self._max_gradient_norm = 10.0  # the default of its `fit`
            self.reset_parameters()

        def forward(self, inputs: Any) -> dict[str, Tensor]:
            x = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
            return {"y_pred": self.output_activation(self.mlp(x))}

    model = DNN()

    def train(batches: Iterable[Impressions]) -> None:
        model.train()
        for batch in batches:
            model.train_step({**dict(zip(NAMES, batch.ids_FB, strict=True)), "label": batch.label_B}).item()

    return Trainable({"fp32": train})


def deepctr_torch(num_rows: int) -> Trainable:
    """DeepCTR-Torch: `fit` of its DeepFM without FM, linear part and L2, which leaves the MLP; two batches a call."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        inputs = importlib.import_module("deepctr_torch.inputs")
        columns = [inputs.SparseFeat(name, num_rows, embedding_dim=DIM) for name in NAMES]
        model = importlib.import_module("deepctr_torch.models").DeepFM(
            [], columns, use_fm=False, dnn_hidden_units=tuple(LIGHT), l2_reg_embedding=0.0, device="cpu"
        )
        model.compile("adam", "binary_crossentropy")

    def train(batches: Iterable[Impressions]) -> None:
        rest = iter(batches)
        while some := list(itertools.islice(rest, 2)):
            ids_FR = torch.cat([batch.ids_FB for batch in some], dim=1).numpy()
            label_R = torch.cat([batch.label_B for batch in some]).numpy()
            with contextlib.redirect_stdout(io.StringIO()):
                model.fit(dict(zip(NAMES, ids_FR, strict=True)), label_R, batch_size=BATCH, verbose=0)

    return Trainable({"fp32": train})
