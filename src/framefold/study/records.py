"""The results of studies, in git: from these files alone a study is continued and reported, on any machine.

metrics/ablation.csv                            the final scores: a row per dataset, arm, seed and split
metrics/ablation_models.csv                     those of the models behind them, of single folds and of the linear probe
metrics/ablation_optimism.csv                   how far out of fold lies above single models (evaluation.agreement)
metrics/ablation/<dataset>/truth.parquet        the videos that are scored (see `outcome`)
metrics/ablation/<dataset>/<arm>-<seed>.parquet  their final labels
"""

import contextlib
import csv
import fcntl
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from framefold.errors import UserError
from framefold.inference.students import PARTS as SPLITS
from framefold.storage import read_json, read_parquet, write_aside
from framefold.study.outcome import LABELS, SCORES, TRUTH

SCRATCH = Path(".ablation")  # under the project's root, ignored by git
FINAL, MODELS, OPTIMISM = (Path(f"metrics/ablation{suffix}.csv") for suffix in ("", "_models", "_optimism"))
FOLDER = Path("metrics/ablation")
F1 = ("lv1_micro", "lv1_macro", "lv2_micro", "lv2_macro")
ORIGIN = ("params", "code", "commit", "machine", "seconds")
FINAL_COLUMNS = ("dataset", "arm", "seed", "split", "score", *F1, *ORIGIN)
MODEL_COLUMNS = ("dataset", "arm", "seed", "model", "split", "score", *F1, "score_low", "score_high")
INTERVAL = ("difference", "low", "high")
OPTIMISM_COLUMNS = ("dataset", "arm", "seed", "arch", "split", "expected", "single_models", *INTERVAL)
DIGITS = 6
Row = dict[str, str]
Entry = Mapping[str, float]


@dataclass(frozen=True)
class Made:
    """What a result was made of and on, and how long it took. Its fields are columns (ORIGIN)."""

    params: str  # digests
    code: str
    commit: str
    machine: str  # kind of machine and precision (see `machine`)
    seconds: float


@dataclass(frozen=True)
class Records:
    root: Path
    dataset: str

    @property
    def folder(self) -> Path:
        return self.root / FOLDER / self.dataset

    def labels_path(self, arm: str, seed: int) -> Path:
        return self.folder / f"{arm}-{seed}.parquet"

    def rows(self) -> list[Row]:
        """Those of this dataset, in the order they were made."""
        return [row for row in read_rows(self.root / FINAL, FINAL_COLUMNS) if row["dataset"] == self.dataset]

    def model_rows(self) -> list[Row]:
        return [row for row in read_rows(self.root / MODELS, MODEL_COLUMNS) if row["dataset"] == self.dataset]

    def optimism_rows(self) -> list[Row]:
        return [row for row in read_rows(self.root / OPTIMISM, OPTIMISM_COLUMNS) if row["dataset"] == self.dataset]

    def made(self) -> dict[tuple[str, int], Made]:
        """What there is, by arm and seed: results whose labels are there, too."""
        found = {(row["arm"], int(row["seed"])): row for row in self.rows()}
        return {
            (arm, seed): Made(row["params"], row["code"], row["commit"], row["machine"], float(row["seconds"]))
            for (arm, seed), row in found.items()
            if self.labels_path(arm, seed).is_file()
        }

    def add(self, arm: str, seed: int, made: Made, outcome: Path) -> None:
        """The files of `outcome`, in place of what there was. The rows of scores come last: they say that all is there.

        UserError: earlier runs were scored on other videos.
        """
        scores = read_json(outcome / SCORES)
        with _lock(self.root):
            self._add_truth(outcome / TRUTH)
            copy(outcome / LABELS, self.labels_path(arm, seed))
            key = {"dataset": self.dataset, "arm": arm, "seed": str(seed)}
            replace_rows(self.root / MODELS, MODEL_COLUMNS, key, model_rows(key, scores["models"]))
            replace_rows(self.root / OPTIMISM, OPTIMISM_COLUMNS, key, optimism_rows(key, scores["optimism"]))
            replace_rows(self.root / FINAL, FINAL_COLUMNS, key, final_rows(key, scores["final"], made))

    def _add_truth(self, new: Path) -> None:
        path = self.folder / TRUTH
        if not path.is_file():
            copy(new, path)
        elif videos_of(path) != videos_of(new):
            raise UserError(
                f"{path}: the runs of {self.dataset} so far were scored on other videos or labels than this one; "
                f"delete {self.folder} to begin the study anew, or give its data another name"
            )


def final_rows(key: Row, scores: Mapping[str, Entry], made: Made) -> list[Row]:
    own = asdict(made) | {"seconds": str(round(made.seconds))}
    return [key | {"split": split} | _rounded(entry, ("score", *F1)) | own for split, entry in in_order(scores)]


def model_rows(key: Row, models: Mapping[str, Mapping[str, Entry]]) -> list[Row]:
    names = ("score", *F1, "score_low", "score_high")
    return [
        key | {"model": model, "split": split} | _rounded(entry, names)
        for model, entries in models.items()
        for split, entry in in_order(entries)
    ]


def optimism_rows(key: Row, archs: Mapping[str, Mapping[str, Entry]]) -> list[Row]:
    names = ("expected", "single_models", *INTERVAL)
    return [
        key | {"arch": arch, "split": split} | _rounded(entry, names)
        for arch, entries in archs.items()
        for split, entry in in_order(entries)
    ]


def in_order(scores: Mapping[str, Entry]) -> list[tuple[str, Entry]]:
    return [(split, scores[split]) for split in SPLITS if split in scores]


def _rounded(entry: Entry, names: Sequence[str]) -> Row:
    return {name: f"{entry[name]:.{DIGITS}f}" for name in names}


def read_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """None where there is no file. UserError: it has other columns."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != tuple(columns):
            raise UserError(f"{path}: expected the columns {','.join(columns)}; restore it with `git checkout`")
        return list(reader)


def replace_rows(path: Path, columns: Sequence[str], key: Row, rows: Sequence[Row]) -> None:
    """Append `rows`, and drop those with the same `key`. A kill leaves the file as it was."""
    kept = [row for row in read_rows(path, columns) if any(row[name] != value for name, value in key.items())]
    with write_aside(path) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])


def videos_of(path: Path) -> bytes:
    """The digest of the videos that a file of truth or of labels is about."""
    return metadata(path, b"videos")


def metadata(path: Path, key: bytes) -> bytes:
    try:
        return (pq.read_schema(path).metadata or {})[key]
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); restore it with `git checkout`") from None


def read_labels(path: Path, truth: Path) -> pa.Table:
    """A run's labels. UserError: they are not of the videos of `truth`."""
    if videos_of(path) != videos_of(truth):
        raise UserError(f"{path}: labels of other videos than those of {truth}; run this arm again")
    return read_parquet(path, columns=["label"])


def copy(source: Path, target: Path) -> None:
    with write_aside(target) as aside:
        shutil.copyfile(source, aside)


@contextlib.contextmanager
def _lock(root: Path) -> Iterator[None]:
    """Studies of several datasets may run at once and share the tables."""
    (root / SCRATCH).mkdir(exist_ok=True)
    with (root / SCRATCH / "records.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
