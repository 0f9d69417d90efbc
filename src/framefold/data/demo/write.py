"""Writing the demo in the official layout, streamed, with worker processes, whose number and pace change no byte."""

import contextlib
import csv
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from framefold.data.demo.oracle import Oracle, ceiling
from framefold.data.demo.pictures import QUALITY, Scene, encode, reupload
from framefold.data.demo.plan import SPLITS, Plan, make_plan
from framefold.data.demo.text import NO_SCREEN_TEXT, Language
from framefold.data.demo.transcript import edit, transcribe
from framefold.data.demo.world import World, build_world
from framefold.data.workers import WorkerPool
from framefold.params.demo import DemoParams
from framefold.progress import Progress
from framefold.storage import write_json

CHUNK = 64  # videos per task of a worker
DATE = (2022, 7, 1, 0, 0, 0)  # of every zip member: no clock in the bytes
CONTENT, EDIT, ENCODING = range(2, 5)  # streams of randomness of one video


@dataclass(frozen=True)
class Video:
    """What the main process needs of a finished video."""

    record: dict[str, Any]
    text: np.ndarray  # (C,) the oracle's log-likelihood of the words
    frames: np.ndarray  # (C,) and of the shots


class Studio:
    """Makes videos by number; every process has its own, built from the same params."""

    def __init__(self, root: Path, params: DemoParams):
        self.root, self.params = root, params
        self.world: World = build_world(params)
        self.plan: Plan = make_plan(self.world, params)
        self.language = Language(self.world, params.seed)
        self.scene = Scene(self.world, params.frame_size)
        self.oracle = Oracle(self.world, self.language, self.scene)

    def make(self, number: int) -> Video:
        """Write one video's frames; randomness depends on its number alone, and a copy draws what its original drew."""
        plan, original = self.plan, int(self.plan.original[number])
        rng, label = self.rng(CONTENT, original), int(plan.truth[original])
        words, shots = self.language.draw(rng, label), self.scene.draw(rng, label)
        record = transcribe(rng, self.language, words, on_screen=bool(rng.random() >= NO_SCREEN_TEXT))
        n_frames = int(rng.integers(self.params.min_frames, self.params.max_frames + 1))
        frames = self.scene.frames(rng, shots, n_frames)
        if original != number:
            editor = self.rng(EDIT, number)
            record, frames = edit(editor, record), reupload(editor, frames)
        self.write_frames(number, frames)
        return Video(self.annotation(number, record), self.oracle.text(words), self.oracle.frames(shots))

    def rng(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.params.seed, stream, number])

    def annotation(self, number: int, record: dict[str, Any]) -> dict[str, Any]:
        split = SPLITS[self.plan.split[number]]
        label = {"category_id": self.world.categories[self.plan.annotated[number]]} if split == "labeled" else {}
        return {"id": self.plan.video_id(number)} | record | label

    def write_frames(self, number: int, frames: np.ndarray) -> None:
        video_id, quality = self.plan.video_id(number), int(self.rng(ENCODING, number).integers(*QUALITY))
        path = self.root / "zip_frames" / SPLITS[self.plan.split[number]] / video_id[-3:] / f"{video_id}.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for index, frame in enumerate(frames):
                archive.writestr(zipfile.ZipInfo(f"{index:04d}.jpg", DATE), encode(frame, quality))


studio: Studio | None = None  # of this worker process


def open_studio(root: Path, params: DemoParams) -> None:
    global studio
    threadpool_limits(1)  # a worker is one core's: BLAS threads of their own would wait for each other
    studio = Studio(root, params)


def make_chunk(numbers: range) -> list[Video]:
    assert studio is not None
    return [studio.make(number) for number in numbers]


def write_demo(root: Path, params: DemoParams, workers: int, guard: Callable[[], None]) -> dict[str, Any]:
    """Write annotations, truths, frames and the oracle's ceiling below the empty folder `root`; returns the ceiling.

    `guard` runs once a second; what it raises stops the work.
    """
    main = Studio(root, params)
    annotations = root / "annotations"
    annotations.mkdir(parents=True, exist_ok=True)
    chunks = [range(start, min(start + CHUNK, len(main.plan.split))) for start in range(0, len(main.plan.split), CHUNK)]
    with WorkerPool(workers, guard, open_studio, (root, params)) as pool:
        videos = (video for chunk in pool.map(make_chunk, chunks) for video in chunk)
        likelihoods = write_annotations(annotations, main.plan, videos)
    write_truths(annotations, main.world, main.plan)
    in_test = main.plan.split == SPLITS.index("test")
    scores = ceiling(main.world, main.plan.truth[in_test], *(np.stack(rows) for rows in likelihoods))
    write_json(annotations / "oracle.json", scores)
    return scores


def write_annotations(folder: Path, plan: Plan, videos: Iterator[Video]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """One JSON array per split, a record a line, as the videos come; keeps the test videos' log-likelihoods."""
    progress = Progress("demo_data", total=len(plan.split), unit="videos")
    text, frames = [], []
    for index, split in enumerate(SPLITS):
        with open(folder / f"{split}.json", "w", encoding="utf-8") as file:
            for position in range(int((plan.split == index).sum())):
                video = next(videos)
                file.write(("[\n" if position == 0 else ",\n") + json.dumps(video.record, ensure_ascii=False))
                progress.add(1)
                if split == "test":
                    text.append(video.text)
                    frames.append(video.frames)
            file.write("\n]\n")
    progress.close()
    return text, frames


def write_truths(folder: Path, world: World, plan: Plan) -> None:
    """True classes of what is not labelled, and who copies whom: for measuring only, no stage learns from them."""
    with contextlib.ExitStack() as stack:
        tables = {
            name: csv.writer(
                stack.enter_context(open(folder / f"{name}.csv", "w", encoding="ascii", newline="")),
                lineterminator="\n",
            )
            for name in ("unlabeled_truth", "test_truth", "reuploads")
        }
        for number in range(len(plan.split)):
            split, video_id = SPLITS[plan.split[number]], plan.video_id(number)
            if split != "labeled":
                tables[f"{split}_truth"].writerow((video_id, world.categories[plan.truth[number]]))
            if plan.original[number] != number:
                tables["reuploads"].writerow((video_id, plan.video_id(int(plan.original[number]))))
