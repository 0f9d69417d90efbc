"""Where a text model without pretrained weights starts: its words know their topics before the first step."""

from typing import Any

import numpy as np
import numpy.typing as npt

from framefold.data.tokens import TokenStore
from framefold.data.topics import UNLABELED, token_vectors
from framefold.models.text import start_from_vectors
from framefold.params.models import TextModelParams


def start_from_topics(model: Any, text: TextModelParams, rows: npt.NDArray[np.integer], seed: int) -> None:
    """Give the word embeddings of `model` the directions of latent semantic analysis over the pool's videos `rows`.

    Only for a text model from scratch, and only if its params ask for it.
    """
    if text.sizes is not None and text.sizes.topics:
        embeddings = model.word_embeddings
        vocab_size, dim = embeddings.num_embeddings, embeddings.embedding_dim
        start_from_vectors(embeddings, token_vectors(TokenStore(UNLABELED), rows, vocab_size, dim, seed))
