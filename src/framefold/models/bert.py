"""BERT as an encoder: parameter names are those of the published checkpoints, attention is PyTorch's fused one.

The model is that of Devlin et al. 2019 (post-norm, learned positions, exact GELU). It is ours and short because a
start of Python with the usual library costs seconds at every stage; a test holds it equal to that library's BertModel.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn

from framefold.errors import UserError
from framefold.models.attention import attend
from framefold.models.packing import Packing
from framefold.models.recomputation import Layers

INITIALIZER_STD = 0.02  # of every published BERT, whose width was first 768
INITIALIZER_WIDTH = 768


@dataclass(frozen=True)
class BertConfig:
    """The fields of a checkpoint's config.json that decide the computation."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    layer_norm_eps: float = 1e-12  # constant of the original code, left out of early configs

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str) -> Self:
        """Read a config.json; what this encoder does not compute is refused, not ignored."""
        for name, known in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if content.get(name, known) != known:
                raise UserError(
                    f"{where}: {name} is {content[name]!r}, only {known!r} is supported; use a BERT checkpoint"
                )
        optional = {"layer_norm_eps"}
        missing = sorted({field.name for field in fields(cls)} - optional - content.keys())
        if missing:
            raise UserError(f"{where}: {missing} missing; not the config.json of a BERT checkpoint")
        config = cls(**{field.name: content[field.name] for field in fields(cls) if field.name in content})
        if config.hidden_size % config.num_attention_heads:
            raise UserError(
                f"{where}: {config.num_attention_heads} heads do not divide {config.hidden_size} hidden units"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def initializer_std(hidden: int) -> float:
    """BERT's 0.02 at width 768; a narrower encoder needs larger weights to pass on as much of its input."""
    return INITIALIZER_STD * math.sqrt(INITIALIZER_WIDTH / hidden)


class BertEmbeddings(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, inputs_embeds: Tensor, token_type_ids: Tensor | int, position_ids: Tensor | None) -> Tensor:
        length, limit = inputs_embeds.shape[1], self.position_embeddings.num_embeddings
        if position_ids is not None:
            positions = self.position_embeddings(position_ids)
        elif length <= limit:
            positions = self.position_embeddings.weight[:length]
        else:
            raise UserError(f"text model: {length} positions needed, it has {limit}; lower the inputs' length budgets")
        if isinstance(token_type_ids, int):
            types = self.token_type_embeddings.weight[token_type_ids]
        else:
            types = self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(inputs_embeds + positions + types))


class BertSelfAttention(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.heads, self.dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor | Packing) -> Tensor:
        """hidden (B, T, H) attends to itself where mask (B, 1, 1, T) is true; packed, hidden (N, H)."""
        query, key, value = (
            layer(hidden).unflatten(-1, (self.heads, -1))  # (B, T, heads, H / heads) or (N, heads, H / heads)
            for layer in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        if isinstance(mask, Packing):
            return mask.attend(query, key, value, dropout).flatten(1)
        mixed = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask, dropout)
        return mixed.transpose(1, 2).flatten(2)


class BertOutput(nn.Module):
    """Projection, dropout, residual, LayerNorm: the end of both sub-layers."""

    def __init__(self, inputs: int, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class BertAttention(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertOutput(config.hidden_size, config)

    def forward(self, hidden: Tensor, mask: Tensor | Packing) -> Tensor:
        return self.output(self.self(hidden, mask), hidden)


class BertIntermediate(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.gelu(self.dense(hidden))


class BertLayer(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config.intermediate_size, config)

    def forward(self, hidden: Tensor, mask: Tensor | Packing) -> Tensor:
        attended = self.attention(hidden, mask)
        return self.output(self.intermediate(attended), attended)


class BertLayers(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.layer = Layers(BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden: Tensor, mask: Tensor | Packing) -> Tensor:
        for layer in self.layer:
            hidden = self.layer.run(layer, hidden, mask)
        return hidden


class BertEncoder(nn.Module):
    """Token ids or embeddings to states. Equal to BertModel's last_hidden_state; the pooler is left out."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertLayers(config)
        self.apply(self._initialize)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=initializer_std(self.config.hidden_size))
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def depth_of(self, name: str) -> int:
        """Depth of the parameter `name` of this encoder: 0 for the embeddings, n for layer n, counted from 1."""
        parts = name.split(".")
        return 1 + int(parts[2]) if parts[:2] == ["encoder", "layer"] else 0

    def embed(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | int = 0,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Input states (B, T, H) from ids (B, T) or from vectors (B, T, H) in place of word embeddings.

        An int `token_type_ids` holds for all tokens; positions default to 0..T-1.
        Raises UserError if T is more than the model has positions for.
        """
        if inputs_embeds is None:
            inputs_embeds = self.embeddings.word_embeddings(input_ids)
        return self.embeddings(inputs_embeds, token_type_ids, position_ids)

    def encode(self, hidden: Tensor, attention_mask: Tensor, places: Tensor | None = None) -> Tensor:
        """Embedded states (B, T, H) through the layers; attention_mask (B, T) bool, true where there is a token.

        With `places`, the mask's flat indices by `data.places`, the layers leave padding out, and its states are zeros.
        """
        if places is None:
            return self.encoder(hidden, attention_mask[:, None, None, :])
        packing = Packing(attention_mask, places)
        return packing.unpack(self.encoder(packing.pack(hidden), packing))

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        attention_mask: Tensor,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | int = 0,
        position_ids: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states (B, T, H); see `embed` and `encode`. States at padded positions mean nothing."""
        hidden = self.embed(
            input_ids, inputs_embeds=inputs_embeds, token_type_ids=token_type_ids, position_ids=position_ids
        )
        return self.encode(hidden, attention_mask, places)
