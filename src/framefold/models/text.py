"""The text model: a BERT folder as it is published (config.json with weights), or one from scratch."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from framefold.errors import UserError
from framefold.models.bert import BertConfig, BertEncoder, initializer_std
from framefold.models.weights import load_strict, read_state_dict
from framefold.params.models import TextModelParams, TextSizes
from framefold.storage import read_json

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read
PREFIX = "bert."
MLM_PREFIX = "cls.predictions."
TOKEN_TYPES = 2
# Parts of published checkpoints that this project has no use for; anything else left over is an error.
IGNORED = ("pooler.", "embeddings.position_ids", "embeddings.token_type_ids", "cls.seq_relationship.")
# Checkpoints converted from the original TensorFlow code name LayerNorm's weights so.
RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# Copies of other tensors: the output layer is tied to the word embeddings, its bias to the head's.
TIED = {"decoder.weight": "embeddings.word_embeddings.weight", "decoder.bias": "bias"}

State = dict[str, Tensor]


def load_text_encoder(params: TextModelParams, vocab_size: int) -> tuple[BertEncoder, State | None]:
    """The encoder, and the state of an `MlmHead` if the checkpoint has one.

    Raises UserError if the vocabulary has another size than the model, and for weights that do not fit.
    """
    if params.sizes is not None:
        return BertEncoder(config_from_sizes(params.sizes, vocab_size)), None
    assert params.folder is not None  # one of the two, by the params' own check
    folder = Path(params.folder)
    config = read_config(folder, vocab_size)
    path = weights_file(folder)
    encoder_state, mlm_state = split_checkpoint(read_state_dict(path, params.sha256), str(path))
    with torch.device("meta"):  # no initial weights are drawn only to be overwritten
        encoder = BertEncoder(config)
    load_strict(encoder, encoder_state, str(path))
    return encoder, mlm_state


@torch.no_grad()
def start_from_vectors(embeddings: nn.Embedding, vectors: npt.NDArray[np.float32]) -> None:
    """Give the word embeddings (V, H) the directions of vectors (V, H) at the length of BERT's initial weights.

    A token without a vector (zeros) keeps its random start.
    """
    directions = torch.from_numpy(vectors)
    length = directions.norm(dim=1, keepdim=True)
    scaled = directions / length.clamp(min=1e-12) * initializer_std(vectors.shape[1]) * vectors.shape[1] ** 0.5
    embeddings.weight.copy_(torch.where(length > 0, scaled, embeddings.weight))


def config_from_sizes(sizes: TextSizes, vocab_size: int) -> BertConfig:
    content = {
        "vocab_size": vocab_size,
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.intermediate,
        "max_position_embeddings": sizes.max_positions,
        "type_vocab_size": TOKEN_TYPES,
        "hidden_dropout_prob": sizes.dropout,
        "attention_probs_dropout_prob": sizes.dropout,
    }
    return BertConfig.from_dict(content, "params.yaml: text.sizes")


def read_config(folder: Path, vocab_size: int) -> BertConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; text.folder must hold a BERT checkpoint (config.json and weights)")
    config = BertConfig.from_dict(read_json(path), str(path))
    if config.vocab_size != vocab_size:
        raise UserError(
            f"{path}: the model has {config.vocab_size} tokens, the tokenizer {vocab_size}; set text.vocab to {folder}"
        )
    return config


def weights_file(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: holds none of {', '.join(WEIGHT_FILES)}; put the checkpoint's weights there")


def split_checkpoint(state: Mapping[str, Tensor], where: str) -> tuple[State, State | None]:
    """A published state dict as (encoder's, masked language model head's), in the names of BertEncoder and MlmHead.

    Keys outside both are left with the encoder's, where the strict load names them.
    """
    renamed = {_published_name(name): value for name, value in state.items()}
    kept = {name: value for name, value in renamed.items() if not name.startswith(IGNORED)}
    head = {name.removeprefix(MLM_PREFIX): kept.pop(name) for name in list(kept) if name.startswith(MLM_PREFIX)}
    for copy, original in TIED.items():
        source = head if original in head else kept
        if copy in head and not torch.equal(head.pop(copy), source[original]):
            raise UserError(f"{where}: {MLM_PREFIX}{copy} differs from {original}; only tied checkpoints are supported")
    return kept, head or None


def _published_name(name: str) -> str:
    for old, new in RENAMED.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name.removeprefix(PREFIX)
