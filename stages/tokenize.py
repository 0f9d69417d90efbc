"""Vocabulary and token ids of every sample: python -m stages.tokenize"""

import logging
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from framefold.data.tokenization import BATCH_SIZE, SegmentCounts, write_tokens
from framefold.data.tokenizer import Tokenizer, train_or_load
from framefold.data.tokens import SEGMENTS
from framefold.errors import UserError, command
from framefold.params.base import load, load_value
from framefold.params.text import TextParams
from framefold.progress import Progress
from framefold.scratch import Scratch, stage_fingerprint
from framefold.seals import is_whole, sealed_folder
from framefold.storage import count_rows, iterate_parquet, link_or_copy, read_json, write_folder_aside, write_json

SAMPLES, TOKENS, TOKENIZER = Path("data/samples"), Path("data/tokens"), Path("models/tokenizer")
POOL = ("labeled", "unlabeled")  # text alone, no labels; the test split never shapes the vocabulary
MAX_RECORDS = 100_000  # that a vocabulary is trained on: the trainer holds every distinct word of them
AFTERWARDS = {"max_unknown"}  # params that what is kept in scratch does not depend on
Guard = Callable[[], None]
log = logging.getLogger(__name__)


@command
def main() -> None:
    params, splits = load(TextParams), load_value("splits")
    with Scratch("tokenize", fingerprint(params, splits)) as scratch:
        tokenizer = make_tokenizer(params, scratch.folder / "tokenizer", scratch.guard)
        log.info(f"vocabulary: {tokenizer.special.size} entries from {params.vocab or 'the pool'}")
        metrics: dict[str, object] = {"vocabulary": tokenizer.special.size}
        for split in splits:
            metrics[split] = encode_split(tokenizer, split, scratch.folder / split, params, scratch.guard)
        publish(scratch, splits)
        write_json("metrics/tokenize.json", metrics)
        scratch.finish()


def fingerprint(params: TextParams, splits: list[str]) -> dict[str, str]:
    inputs = [SAMPLES / f"{split}.parquet" for split in {*POOL, *splits}]
    if params.vocab is not None:  # with the settings beside it; what is missing is named where it is read
        vocab = Path(params.vocab)
        folder = vocab if vocab.is_dir() else vocab.parent
        inputs += filter(Path.is_file, {vocab, folder / "vocab.txt", folder / "tokenizer_config.json"})
    stamp = params.model_dump(mode="json", exclude=AFTERWARDS)
    if params.words:  # its dictionary comes with the package
        stamp["jieba"] = version("jieba")
    return stage_fingerprint(stamp, sorted(inputs))


def make_tokenizer(params: TextParams, unit: Path, guard: Guard) -> Tokenizer:
    if not is_whole(unit):
        with sealed_folder(unit) as aside:
            train_or_load(params, lambda: pool_texts(guard)).save(aside)
    return Tokenizer.load(unit)


def pool_texts(guard: Guard) -> Iterator[str]:
    """One pass over the pool's text, evenly thinned. Called twice: characters are counted, then pairs."""
    progress = Progress("vocabulary: reading the pool", total=None, unit="records")
    paths = [SAMPLES / f"{split}.parquet" for split in POOL]
    step, seen = -(-sum(map(count_rows, paths)) // MAX_RECORDS), 0
    for path in paths:
        for batch in guarded(iterate_parquet(path, list(SEGMENTS), BATCH_SIZE), guard):
            chosen = batch.take(pa.array(range(-seen % step, batch.num_rows, step), pa.int64()))
            seen += batch.num_rows
            for column in chosen.columns:
                yield from filter(None, column.to_pylist())
            progress.add(chosen.num_rows)
    progress.close()


def encode_split(tokenizer: Tokenizer, split: str, unit: Path, params: TextParams, guard: Guard) -> dict[str, Any]:
    """A folder of `<split>.arrow` and its counts; returns these. UserError: too much of it is [UNK]."""
    if not is_whole(unit):
        with sealed_folder(unit) as aside:
            batches = iterate_parquet(SAMPLES / f"{split}.parquet", ["id", *SEGMENTS], BATCH_SIZE)
            progress = Progress(f"tokenize {split}", total=None, unit="records")
            store = aside / f"{split}.arrow"
            counts = write_tokens(tokenizer, guarded(batches, guard), store, params.max_tokens, progress, params.words)
            progress.close()
            segments = {name: counts[name].summary(params.max_tokens) for name in SEGMENTS}
            write_json(aside / "counts.json", {"unknown": unknown_share(counts), **segments})
    summary: dict[str, Any] = read_json(unit / "counts.json")
    share = summary["unknown"]
    log.info(f"{split}: {sum(summary[name]['tokens'] for name in SEGMENTS)} tokens, [UNK] {share:.2%}")
    if share > params.max_unknown:
        raise UserError(
            f"text.max_unknown: {share:.2%} of {split}'s tokens are [UNK], above {params.max_unknown:.2%}; "
            "use a vocabulary that fits the text (text.vocab, text.vocab_size) or raise the limit"
        )
    return summary


def unknown_share(counts: dict[str, SegmentCounts]) -> float:
    return sum(part.unknown for part in counts.values()) / max(sum(part.tokens for part in counts.values()), 1)


def guarded(batches: Iterator[pa.RecordBatch], guard: Guard) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        guard()
        yield batch


def publish(scratch: Scratch, splits: list[str]) -> None:
    with write_folder_aside(TOKENIZER) as tokenizer, write_folder_aside(TOKENS) as tokens:
        for path in sorted((scratch.folder / "tokenizer").iterdir()):
            link_or_copy(path, tokenizer / path.name)
        for split in splits:
            link_or_copy(scratch.folder / split / f"{split}.arrow", tokens / f"{split}.arrow")
        scratch.guard()


if __name__ == "__main__":
    main()
