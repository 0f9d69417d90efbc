"""Vocabulary and token ids of every sample: python -m stages.tokenize"""

import logging
from collections.abc import Iterator
from pathlib import Path

from framefold.data.tokenization import BATCH_SIZE, SegmentCounts, write_tokens
from framefold.data.tokenizer import train_or_load
from framefold.data.tokens import SEGMENTS
from framefold.errors import UserError, command
from framefold.params.base import load, load_value
from framefold.params.text import TextParams
from framefold.storage import iterate_parquet, write_folder_aside, write_json

SAMPLES, TOKENS, TOKENIZER = Path("data/samples"), Path("data/tokens"), Path("models/tokenizer")
POOL = ("labeled", "unlabeled")  # text alone, no labels; the test split never shapes the vocabulary
log = logging.getLogger(__name__)


def pool_texts() -> Iterator[str]:
    for split in POOL:
        for batch in iterate_parquet(SAMPLES / f"{split}.parquet", list(SEGMENTS), BATCH_SIZE):
            for column in batch.columns:
                yield from filter(None, column.to_pylist())


def unknown_share(counts: dict[str, SegmentCounts]) -> float:
    return sum(part.unknown for part in counts.values()) / max(sum(part.tokens for part in counts.values()), 1)


@command
def main() -> None:
    params = load(TextParams)
    tokenizer = train_or_load(params, pool_texts)
    log.info(f"vocabulary: {tokenizer.special.size} entries from {params.vocab or 'the pool'}")
    metrics: dict[str, object] = {"vocabulary": tokenizer.special.size}
    with write_folder_aside(TOKENIZER) as folder, write_folder_aside(TOKENS) as tokens:
        tokenizer.save(folder)
        for split in load_value("splits"):
            batches = iterate_parquet(SAMPLES / f"{split}.parquet", ["id", *SEGMENTS], BATCH_SIZE)
            counts = write_tokens(tokenizer, batches, tokens / f"{split}.arrow", params.max_tokens)
            share = unknown_share(counts)
            log.info(f"{split}: {sum(part.tokens for part in counts.values())} tokens, [UNK] {share:.2%}")
            if share > params.max_unknown:
                raise UserError(
                    f"text.max_unknown: {share:.2%} of {split}'s tokens are [UNK], above {params.max_unknown:.2%}; "
                    "use a vocabulary that fits the text (text.vocab, text.vocab_size) or raise the limit"
                )
            segments = {name: counts[name].summary(params.max_tokens) for name in SEGMENTS}
            metrics[split] = {"unknown": share, **segments}
    write_json("metrics/tokenize.json", metrics)


if __name__ == "__main__":
    main()
