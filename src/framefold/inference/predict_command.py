"""`framefold predict`: from raw annotations and frames to a submission, with a bundle alone.

    annotations -> samples.parquet                        at once, in a temporary folder beside the output
    frames -> decoded (worker processes) -> encoded       shard by shard, ahead of the students, in a thread
    block of text and frames -> all students -> labels    in the main thread

The functions and the blocks are the pipeline's own, so that the same videos get the same bytes: features rounded to
float16, batches of the same composition, fp32 students. Nothing is held for longer than its block takes.
"""

import contextlib
import logging
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from framefold.data.batches import VideoDataset
from framefold.data.extraction import Shard, iterate_shards, open_source
from framefold.data.manifest import SplitManifest, layout_of, write_manifest
from framefold.data.pixels import FramePixels, PixelDataset
from framefold.data.tokenization import write_tokens
from framefold.data.tokenizer import Tokenizer
from framefold.data.tokens import TokenStore
from framefold.errors import UserError
from framefold.inference.block_stores import HeldFeatures, feature_blocks, text_blocks
from framefold.inference.bundle import Bundle, encoder_folder, member_folder, read_bundle
from framefold.inference.overlap import Ahead, InTurn, has_room_ahead
from framefold.inference.own_towers import WHOLE, own_preprocess
from framefold.inference.predict import BLOCK, block_logits
from framefold.inference.predictions import mean_logits
from framefold.inference.raw_videos import Intake, take_in
from framefold.inference.submission import write_submission
from framefold.models.end_to_end import load_student
from framefold.progress import Progress
from framefold.runtime import load_runtime

SHOWN = 5  # ids named on stderr
SHARDS_AHEAD = 1  # that wait; one more is being made, and one is being cut into blocks
Shards = Ahead[tuple[list[str], Shard]] | InTurn[tuple[list[str], Shard]]
log = logging.getLogger(__name__)


def run(data: Path, out: Path, bundle: Path) -> None:
    """Write `out` (id,category_id) for every video of `data`/annotations/test.json that has an id.

    Broken videos are predicted from what is left of them, and counted on stderr. Raises UserError when the bundle or
    the annotations as a whole cannot be read; SIGTERM and SIGINT end it as SystemExit, without leaving anything.
    """
    settings = read_bundle(bundle)
    out.parent.mkdir(parents=True, exist_ok=True)
    with stopped_by_signals(), tempfile.TemporaryDirectory(prefix=".framefold-predict-", dir=out.parent) as work:
        started = time.monotonic()
        root = index_frames(data, Path(work) / "data")
        samples = Path(work) / "test.parquet"
        listed = SplitManifest(root, "test")
        intake = take_in(data / "annotations" / "test.json", samples, listed, settings.max_text)
        label = label_videos(root, samples, bundle, settings, len(intake.ids))
        write_submission(out, ((video, settings.categories[label[video]]) for video in intake.ids))
        report(intake, out, time.monotonic() - started)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGINT raise SystemExit in the main thread; a second one does not disturb the cleaning up."""
    if threading.current_thread() is not threading.main_thread():  # elsewhere Python sets no handlers
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        for other in handlers:
            signal.signal(other, signal.SIG_IGN)
        log.info(f"predict: stopped by {signal.Signals(number).name}")
        raise SystemExit(128 + number)

    handlers: dict[int, Any] = {}
    handlers |= {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


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


def label_videos(root: Path, samples: Path, bundle: Path, settings: Bundle, total: int) -> dict[str, int]:
    """Label of each video in `samples`."""
    load_runtime().prepare_cpu()
    progress, encoding = Progress("predict", total, "videos"), Encoding(root, samples, bundle, settings)
    labels: dict[str, int] = {}
    with encoded(encoding) as shards:
        students = load_students(bundle, settings, root)  # while the first shard is on its way
        for frames, text in zip(feature_blocks(shards, BLOCK), text_blocks(samples, BLOCK), strict=True):
            found = students.label(frames, text, samples.with_name("tokens.arrow"))
            labels |= zip(text["id"].to_pylist(), found.tolist(), strict=True)
            progress.add(len(found), shares(progress, encoding, shards), also={"frames": len(frames.features)})
    progress.close(**shares(progress, encoding, shards))
    return labels


@dataclass
class Encoding:
    """Encodes the videos of `samples` shard by shard; `frames` counts those that are done."""

    root: Path
    samples: Path
    bundle: Path
    settings: Bundle
    frames: int = 0

    def __call__(self, guard: Callable[[], None]) -> Generator[tuple[list[str], Shard], None, None]:
        """What `guard` raises ends it: it is called before each batch."""
        encoder, limits = encoder_folder(self.bundle, self.settings.encoder), self.settings
        with open_source(self.root, "test", encoder, limits.max_frames, limits.encoder_batch_size, guard) as source:
            under_way: deque[list[str]] = deque()  # the source reads ahead

            def todo() -> Iterator[list[str]]:
                for ids in iterate_shards(self.samples):
                    under_way.append(ids)
                    yield ids

            for shard in source.shards(todo()):
                self.frames += len(shard.features)
                yield under_way.popleft(), shard


def encoded(encoding: Encoding) -> Shards:
    return Ahead(encoding, SHARDS_AHEAD) if goes_ahead() else InTurn(encoding)


def goes_ahead() -> bool:
    """Where students compute on a GPU, or where both they and the encoder have cores of their own."""
    return load_runtime().torch_device().type == "cuda" or has_room_ahead()


def shares(progress: Progress, encoding: Encoding, shards: Shards) -> dict[str, str]:
    """How fast the encoder is while at work, and how much of the time the students waited for it."""
    seconds = time.monotonic() - progress.started
    return {
        "encoder": f"{encoding.frames / max(shards.busy, 1e-9):.0f} frames/s",
        "students_waited": f"{100 * shards.waited / max(seconds, 1e-9):.0f} %",
    }


@dataclass(frozen=True)
class Students:
    """All members of the bundle in memory, and what turns a block of videos into their batches."""

    members: dict[tuple[str, int | str], Any]
    tokenizer: Tokenizer
    settings: Bundle
    device: torch.device
    pixels: FramePixels | None  # for members that encode frames themselves; features then only count them

    def label(self, frames: HeldFeatures, text: pa.RecordBatch, tokens: Path) -> np.ndarray:
        """(B,) labels of a block of videos; `tokens` is a file to put its token store in."""
        logits = dict(zip(self.members, self.logits(self.dataset(frames, text, tokens)), strict=True))
        folds, archs = self.settings.folds, self.settings.archs
        means = {arch: mean_logits([logits[arch, fold] for fold in folds]) for arch in archs}
        labels: np.ndarray = self.settings.scores(means).argmax(axis=1)
        return labels

    def dataset(self, frames: HeldFeatures, text: pa.RecordBatch, tokens: Path) -> VideoDataset:
        tokens.unlink(missing_ok=True)  # that of the block before, which may still be mapped
        write_tokens(self.tokenizer, [text], tokens, self.settings.max_tokens)
        store, rows = TokenStore(tokens), np.arange(text.num_rows)
        stores = store, frames, rows, self.settings.inputs, None, None, self.tokenizer.special
        return VideoDataset(*stores) if self.pixels is None else PixelDataset(self.pixels, *stores)

    def logits(self, dataset: VideoDataset) -> list[np.ndarray]:
        """(B, C) of every member."""
        positions, batch_size = np.arange(len(dataset)), self.settings.batch_size
        return block_logits(list(self.members.values()), dataset, positions, batch_size, self.device, "fp32")


def load_students(bundle: Path, settings: Bundle, root: Path) -> Students:
    device, pixels = load_runtime().torch_device(), own_pixels(bundle, settings, root)
    members: dict[tuple[str, int | str], Any] = {
        (arch, fold): load_student(member_folder(bundle, arch, fold)).to(device)
        for arch in settings.archs
        for fold in settings.folds
    }
    return Students(members, Tokenizer.load(bundle / "tokenizer"), settings, device, pixels)


def own_pixels(bundle: Path, settings: Bundle, root: Path) -> FramePixels | None:
    """The frames below `root` for members with vision towers of their own: they are finetuned alike, all or none."""
    preprocess = own_preprocess(member_folder(bundle, settings.archs[0], settings.folds[0]))
    if preprocess is None:
        return None
    return FramePixels(root, "test", preprocess, settings.max_frames, WHOLE)


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
