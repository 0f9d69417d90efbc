"""`text`: the WordPiece vocabulary and the token store."""

from typing import ClassVar

from pydantic import Field, PositiveInt

from framefold.params.base import Group


class TextParams(Group):
    key: ClassVar[str] = "text"
    vocab: str | None  # vocab.txt or a folder that holds one; null: trained on labelled + unlabelled text
    vocab_size: int = Field(gt=5)  # of a trained vocabulary; five are special tokens
    max_tokens: PositiveInt  # stored per segment; budgets of the models cut further
    words: bool  # store where words begin, by jieba: for pretrain.masking.unit word
    max_unknown: float = Field(ge=0, le=1)  # share of [UNK] tokens above which the stage fails
