"""`framefold predict`: from raw annotations and frames to a submission, with a bundle alone.

Works in a temporary folder beside the output, on the same stores and through the same functions as the pipeline, so
that the same videos get the same bytes: features rounded to float16, batches of the same composition, fp32 models.
"""

import logging
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from framefold.data.batches import VideoDataset
from framefold.data.extraction import Part, extract, open_source
from framefold.data.features import FeatureStore, write_store
from framefold.data.images import read_encoder_config
from framefold.data.manifest import SplitManifest, layout_of, write_manifest
from framefold.data.shards import KeptShards
from framefold.data.tokenization import write_tokens
from framefold.data.tokenizer import Tokenizer
from framefold.data.tokens import TokenStore
from framefold.errors import UserError
from framefold.inference.bundle import Bundle, encoder_folder, member_folder, read_bundle
from framefold.inference.predict import BLOCK, iterate_logits
from framefold.inference.predictions import mean_logits
from framefold.inference.raw_videos import Intake, take_in
from framefold.inference.submission import write_submission
from framefold.models.registry import load_model
from framefold.runtime import load_runtime
from framefold.storage import iterate_parquet

SHOWN = 5  # ids named on stderr
log = logging.getLogger(__name__)


def run(data: Path, out: Path, bundle: Path) -> None:
    """Write `out` (id,category_id) for every video of `data`/annotations/test.json that has an id.

    Broken videos are predicted from what is left of them, and counted on stderr. Raises UserError when the bundle or
    the annotations as a whole cannot be read.
    """
    started = time.monotonic()
    settings = read_bundle(bundle)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".framefold-predict-", dir=out.parent) as work:
        root = index_frames(data, Path(work) / "data")
        samples = Path(work) / "test.parquet"
        listed = SplitManifest(root, "test")
        intake = take_in(data / "annotations" / "test.json", samples, listed, settings.max_text)
        dataset = build_dataset(root, samples, Path(work), bundle, settings)
        labels = predict_labels(dataset, bundle, settings, Path(work))
        stored = [video for batch in iterate_parquet(samples, ["id"]) for video in batch.column("id").to_pylist()]
    category = {video: settings.categories[label] for video, label in zip(stored, labels, strict=True)}
    write_submission(out, ((video, category[video]) for video in intake.ids))
    report(intake, out, time.monotonic() - started)


def index_frames(data: Path, root: Path) -> Path:
    """A data root of links to the test frames alone, with a manifest of its own: `data` is only read."""
    layout = layout_of(data)
    name = "test.zip" if layout == "zip_feats" else "test"
    if not (data / layout / name).exists():
        raise UserError(f"{data}: holds no {layout}/{name}; give a folder in the official layout")
    (root / layout).mkdir(parents=True)
    (root / layout / name).symlink_to((data / layout / name).resolve())
    write_manifest(root)
    return root


def build_dataset(root: Path, samples: Path, work: Path, bundle: Path, settings: Bundle) -> VideoDataset:
    """Token and feature stores in `work`, as `tokenize` and `extract_frames` build them."""
    tokenizer = Tokenizer.load(bundle / "tokenizer")
    write_tokens(tokenizer, iterate_parquet(samples), work / "test.arrow", settings.max_tokens)
    encoder = encoder_folder(bundle, settings.encoder)
    kept = KeptShards(work / "shards", read_encoder_config(encoder)["dim"])
    source = open_source(root, "test", encoder, settings.max_frames, settings.encoder_batch_size, lambda: None)
    with source as frames:
        keys = extract(frames, samples, kept, "", Part(), lambda: None)
    write_store(work / "features", kept, keys, {})
    tokens, features = TokenStore(work / "test.arrow"), FeatureStore(work / "features")
    return VideoDataset(tokens, features, np.arange(len(tokens)), settings.inputs, None, None, tokenizer.special)


def predict_labels(dataset: VideoDataset, bundle: Path, settings: Bundle, work: Path) -> np.ndarray:
    """(N,) label of each row. One model in memory at a time; the members' logits wait on disk in `work`."""
    runtime, logits = load_runtime(), {}
    runtime.prepare_cpu()
    for arch in settings.archs:
        for fold in settings.folds:
            model = load_model(member_folder(bundle, arch, fold))
            blocks = iterate_logits(model, dataset, settings.batch_size, runtime.torch_device())
            logits[arch, fold] = store_blocks(
                work / f"{arch}-{fold}.npy", blocks, len(dataset), len(settings.categories)
            )
    labels = np.empty(len(dataset), dtype=np.int64)
    for start in range(0, len(dataset), BLOCK):
        part = slice(start, start + BLOCK)
        means = {arch: mean_logits([logits[arch, fold][part] for fold in settings.folds]) for arch in settings.archs}
        labels[part] = settings.scores(means).argmax(axis=1)
    return labels


def store_blocks(path: Path, blocks: Iterable[np.ndarray], rows: int, columns: int) -> np.ndarray:
    """Consecutive blocks of rows as one memory-mapped array (rows, columns)."""
    stored = np.memmap(path, np.float32, "w+", shape=(max(rows, 1), columns))[:rows]
    start = 0
    for block in blocks:
        stored[start : start + len(block)] = block
        start += len(block)
    return stored


def report(intake: Intake, out: Path, seconds: float) -> None:
    n = len(intake.ids)
    log.info(f"predict: {n} videos in {seconds:.1f} s, {n / seconds:.0f} videos/s, written to {out}")
    for videos, what in (
        (intake.broken, "have broken fields or no frames on disk: labelled from what is left"),
        (intake.unusable, "have no id of their own (none, broken, or used before): left out"),
    ):
        if videos:
            some = ", ".join(videos[:SHOWN]) + (", ..." if len(videos) > SHOWN else "")
            print(f"warning: {len(videos)} records {what}: {some}", file=sys.stderr)
