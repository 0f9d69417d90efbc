"""A project for tests of studies: real params, a study of few arms, commands that only hand out prepared outcomes."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from framefold.storage import write_json
from framefold.study.command import Options
from framefold.study.outcome import LABELS, SCORES, TRUTH, Videos, labels_table, part_scores, truth_table
from framefold.study.workspace import Commands

ROOT = Path(__file__).resolve().parents[1]
CATEGORIES = [f"{group:02d}{sub:02d}" for group in range(3) for sub in range(4)]
SIZES = {"out_of_fold": 300, "holdout": 60, "test": 240}
ACCURACY = {"bare": 0.5, "smoothing": 0.5, "averaging": 0.7, "default": 0.7, "no_smoothing": 0.6, "pgd": 0.3}
STUDY: dict[str, Any] = {
    "dataset": "tiny",
    "profile": None,
    "overrides": {"finetune.epochs": 2},
    "seeds": {"ladder": [0, 1], "without": [0, 1], "added": [0]},
    "bootstrap": {"resamples": 300, "seed": 0},
    "ladder": [
        {
            "name": "bare",
            "what": "neither",
            "overrides": {"finetune.label_smoothing": 0, "average_weights.last": 1, "folds": [0]},
        },
        {"name": "smoothing", "what": "label smoothing, all folds", "restore": ["finetune.label_smoothing", "folds"]},
        {"name": "averaging", "what": "averaging", "restore": ["average_weights.last"]},
    ],
    "without": [{"name": "no_smoothing", "what": "no smoothing", "overrides": {"finetune.label_smoothing": 0}}],
    "added": [{"name": "pgd", "what": "PGD", "overrides": {"finetune.adversarial.method": "pgd"}}],
    "verdicts": ["labeled", "test"],
    "optimism": ["default"],
}
OPTIMISM = {"expected": 0.5, "single_models": 0.4, "difference": 0.1, "low": -0.1, "high": 0.3}
RUNS_OF_SEED_0 = [f"{arm}-0" for arm in ACCURACY]
RUNS = [*RUNS_OF_SEED_0, *(f"{arm}-1" for arm in ACCURACY if arm != "pgd")]


@dataclass(frozen=True)
class SmallStudy:
    """A project under git; `prepared` holds an outcome for every run, and `ran` tells which were asked for."""

    root: Path
    prepared: Path

    @property
    def commands(self) -> Commands:
        """The first fails for params with the text in prepared/failing, and sleeps if there is prepared/slow."""
        repro = (
            'if [ -e "$0/failing" ] && grep -qf "$0/failing" params.yaml; then echo "loss is NaN"; exit 3; fi\n'
            'if [ -e "$0/slow" ]; then trap \'touch "$0/told"; kill $!; exit 1\' TERM\n'
            'sleep 60 & echo $$ > "$0/sleeping"; wait; fi'
        )
        outcome = 'name=$(basename "$1" .outcome); echo "$name" >> "$0/ran"; cp "$0/$name"/* "$1"'
        machine = 'cp "$0/machine" "$1"'
        scripts = repro, outcome, machine, 'echo tidied >> "$0/ran"'
        return Commands(*(["/bin/sh", "-c", script, str(self.prepared)] for script in scripts))

    def move(self, machine: str) -> None:
        """What is run from now on is run on another kind of machine."""
        (self.prepared / "machine").write_text(f"{machine}\n", encoding="utf-8")

    def ran(self) -> list[str]:
        """Runs since the last call."""
        return [name for name in self.started() if name != "tidied"]

    def started(self) -> list[str]:
        """The same, and when the cache was tidied."""
        path = self.prepared / "ran"
        names = path.read_text().split() if path.is_file() else []
        path.unlink(missing_ok=True)
        return names

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
        return subprocess.run(command, cwd=self.root, check=True, capture_output=True, text=True).stdout

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "change")

    def write_study(self, **changes: Any) -> None:
        text = yaml.safe_dump(STUDY | changes, sort_keys=False)
        (self.root / "studies/tiny.yaml").write_text(text, encoding="utf-8")

    def table(self) -> list[str]:
        """<arm>-<seed> of each run in the table, in its order."""
        lines = (self.root / "metrics/ablation.csv").read_text().splitlines()[1:]
        return list(dict.fromkeys("-".join(line.split(",")[1:3]) for line in lines))


def options(**changes: Any) -> Options:
    given: dict[str, Any] = {"study": "tiny", "overrides": [], "workdir": None, "cache": None, "budget": None}
    given |= {"seeds": [], "arms": [], "jobs": 1, "gpus": [], "keep_stale": False, "commit": False}
    return Options(**(given | changes))


def make(folder: Path) -> SmallStudy:
    root = folder / "project"
    for name in ("studies", "stages", "src/framefold", "docs"):
        (root / name).mkdir(parents=True)
    for name in ("params.yaml", ".gitignore"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "profiles", root / "profiles")
    (root / "stages/train.py").write_text('"""Trains."""\nimport framefold.model\nprint(1)  # one\n')
    (root / "src/framefold/model.py").write_text("x = 1\n")
    deps = ["data/raw", "stages/train.py", "src/framefold/${item.arch}.py"]
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": {"cmd": "python", "deps": deps}}}))
    (root / "docs/experiments.md").write_text("# Experiments\n\nWhat was measured.\n")
    study = SmallStudy(root, folder / "prepared")
    study.write_study()
    study.git("init", "--quiet", "--initial-branch=main")
    study.commit()
    prepare(study.prepared)
    study.move("AVX2")
    return study


def videos(seed: int = 7) -> Videos:
    n = sum(SIZES.values())
    label = np.random.default_rng(seed).integers(0, len(CATEGORIES), n)
    return Videos([str(i) for i in range(n)], np.repeat(list(SIZES), list(SIZES.values())), label, CATEGORIES)


def prepare(folder: Path) -> None:
    """What each run says: labels that are right as often as ACCURACY has it; `bare` has those of one fold alone."""
    for run in RUNS:
        arm, _, seed = run.rpartition("-")
        write_outcome(folder / run, videos(), labels_of(arm, int(seed)))


def labels_of(arm: str, seed: int) -> np.ndarray:
    """`averaging` is the recipe itself; `smoothing` differs from `bare` here and there, for nothing."""
    if arm == "averaging":
        return labels_of("default", seed)
    labels = drawn(arm, seed)
    if arm == "smoothing":
        labels = np.where(np.random.default_rng(seed).random(len(labels)) < 0.06, labels, drawn("bare", seed))
    if arm == "bare":
        labels[100 : SIZES["out_of_fold"]] = -1
    return labels


def drawn(arm: str, seed: int) -> np.ndarray:
    truth, rng = videos().label, np.random.default_rng([seed, *map(ord, arm)])
    return np.where(rng.random(len(truth)) < ACCURACY[arm], truth, rng.integers(0, len(CATEGORIES), len(truth)))


def write_outcome(folder: Path, scored: Videos, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    truth, scores = truth_table(scored), part_scores(scored, labels)
    pq.write_table(truth, folder / TRUTH)
    pq.write_table(labels_table(labels, truth), folder / LABELS)
    entries = {part: entry | {"score_low": 0.1, "score_high": 0.9} for part, entry in scores.items()}
    optimism = {"dual_stream": dict.fromkeys(("holdout", "test"), OPTIMISM)}
    models = {"probe_both": entries, "dual_stream": entries}
    write_json(folder / SCORES, {"final": scores, "models": models, "optimism": optimism})
