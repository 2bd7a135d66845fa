"""Embeddings, towers and networks from a recipe's values."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ctrkit.config.recipe import EmbeddingConfig, Recipe, TowerConfig
from ctrkit.data.crossing import Crossing
from ctrkit.nn.dcn_v2 import DCNv2
from ctrkit.nn.embedding import Embedding, TableConfig
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network
from ctrkit.nn.slimmable import Norm, SlimmableMLP
from ctrkit.nn.target_attention import Attended, TargetAttention
from ctrkit.nn.tower import Tower
from ctrkit.schema import CategoricalFeature, Schema, SequenceFeature


class Networks:
    """The networks of one model: towers over tables that they share, unless one asks for its own."""

    def __init__(self, recipe: Recipe, num_rows: Mapping[str, int], *, sharded: bool) -> None:
        self._recipe, self._schema, self._num_rows, self._sharded = recipe, recipe.schema_(), num_rows, sharded
        self._shared = self._embedding(privileged=False)
        self._privileged: Embedding | None = None

    @property
    def crossing(self) -> Crossing:
        """What makes unexposed candidates of a batch."""
        return Crossing.of(self._schema)

    def _embedding(self, *, privileged: bool) -> Embedding:
        return build_embedding(
            self._schema, self._recipe.embedding, self._num_rows, privileged=privileged, sharded=self._sharded
        )

    def network(self, tower: str, *, own_tables: bool = False) -> Network:
        """A tower over the shared tables, or over new ones."""
        config = self._recipe.towers[tower]
        embedding = self._embedding(privileged=False) if own_tables else self._shared
        privileged = None
        if config.privileged:
            if own_tables:
                privileged = self._embedding(privileged=True)
            elif self._privileged is None:
                privileged = self._privileged = self._embedding(privileged=True)
            else:
                privileged = self._privileged
        in_features = embedding.out_features + (privileged.out_features if privileged else 0)
        attended = attended_lists(self._schema, embedding) if config.kind == "target_attention" else []
        if config.kind == "target_attention" and not attended:
            raise ValueError(
                f"tower '{tower}' is of kind target_attention, but no sequence shares its table with an ad's feature"
            )
        return Network(embedding, build_tower(config, in_features, attended), privileged)

    def slimmable(
        self, tower: str, widths: Sequence[float], norm: Norm, *, multiple: int, rescale: bool
    ) -> tuple[Embedding, SlimmableMLP]:
        """A tower of every width over the shared tables, and these."""
        config, embedding = self._recipe.towers[tower], self._shared
        if config.kind != "mlp" or config.privileged:
            raise ValueError(f"tower '{tower}': a slimmable tower is of kind mlp and not privileged")
        return embedding, SlimmableMLP(
            embedding.out_features,
            config.hidden,
            activation=config.activation,
            dropout=config.dropout,
            norm=norm if config.batch_norm else "layer_norm" if config.layer_norm else "none",
            widths=widths,
            multiple=multiple,
            rescale=rescale,
        )


def attended_lists(schema: Schema, embedding: Embedding) -> list[Attended]:
    """Each list with the ad's feature that reads the same table; the embedding will give their rows one by one."""
    found, columns = [], embedding.columns
    for members in schema.serving().tables().values():
        targets = [f.name for f in members if f.side == "item" and isinstance(f, CategoricalFeature)]
        for feature in members:
            if isinstance(feature, SequenceFeature) and targets:
                target = columns[targets[0]]
                found.append(Attended(target, feature.name, target.stop - target.start))
                embedding.unpooled.add(feature.name)
    return found


def build_embedding(
    schema: Schema,
    config: EmbeddingConfig,
    num_rows: Mapping[str, int],
    *,
    privileged: bool = False,
    sharded: bool = False,
) -> Embedding:
    """The tables of the features that serve, or of the privileged ones, drawn from torch's global generator."""
    tables = []
    for name, features in schema.tables().items():
        if features[0].privileged is not privileged:
            continue
        poolings = {f.pooling for f in features if isinstance(f, SequenceFeature)}
        tables.append(
            TableConfig(
                name=name,
                num_rows=num_rows[name],
                dim=config.dims.get(name, config.dim),
                features=tuple(f.name for f in features),
                lists=tuple(f.name for f in features if isinstance(f, SequenceFeature)),
                pooling=poolings.pop() if poolings else "mean",
            )
        )
    dense = [i for i, feature in enumerate(schema.dense_features) if feature.privileged is privileged]
    seed = int(torch.randint(2**62, (), device="cpu"))
    kind = Embedding
    if sharded:
        from ctrkit.nn.sharded_embedding import ShardedEmbedding  # imports all of torchrec.distributed

        kind = ShardedEmbedding
    return kind(
        tables,
        len(dense) if len(dense) == len(schema.dense_features) else dense,
        init_std=config.init_std,
        seed=seed,
        precision=config.precision,
    )


def build_tower(config: TowerConfig, in_features: int, attended: Sequence[Attended] = ()) -> Tower:
    """A tower of the kind asked for."""
    of_mlp: dict[str, Any] = {
        "activation": config.activation,
        "dropout": config.dropout,
        "batch_norm": config.batch_norm,
    }
    match config.kind:
        case "mlp":
            return MLP(in_features, config.hidden, layer_norm=config.layer_norm, **of_mlp)
        case "dcn_v2":
            return DCNv2(in_features, config.hidden, cross_layers=config.cross_layers or 3, **of_mlp)
        case "target_attention":
            hidden = config.attention_hidden or [36]
            return TargetAttention(in_features, config.hidden, attended, attention_hidden=hidden, **of_mlp)
