"""The files of metrics/ that the last stage writes: scores, comparisons, reweighting, alive checks and plots."""

from pathlib import Path
from typing import Any

import numpy as np

from framefold.evaluation.alive import all_checks
from framefold.evaluation.plots import write_class_f1_by_size, write_level1_confusion, write_training_curves
from framefold.evaluation.scoring import Predictions, Scorer
from framefold.inference.students import Logits, Students
from framefold.storage import read_json, write_json

METRICS = Path("metrics")


def write_report(
    students: Students, logits: dict[str, Logits], final: Predictions, blend: dict[str, Any], scorer: Scorer, root: Path
) -> None:
    """logits: per architecture, before reweighting; final: scores of the ensemble; root: the data set's."""
    arch, fold = students.best_fold(logits)
    single = students.fold_logits(arch, fold)
    entries = {name: scorer.entries(parts) for name, parts in logits.items()} | {"ensemble": scorer.entries(final)}
    entries["best_fold"] = scorer.entries(single) | fold_entry(students, fold, single["validation"], scorer)
    write_json(METRICS / "metrics.json", marked(entries))
    rivals: dict[str, Predictions] = {**logits, "best_fold": single}
    comparisons: dict[str, Any] = {f"ensemble_minus_{name}": scorer.differences(final, rivals[name]) for name in rivals}
    write_json(METRICS / "comparisons.json", marked(comparisons | {"best_fold_is": f"{arch}/{fold}"} | oracle(root)))
    write_json(METRICS / "reweight.json", reweighting(students, blend))
    write_json(METRICS / "alive.json", all_checks(students.archs, students.folds, students.models, METRICS))
    write_plots(students, final, scorer)


def marked(entries: dict[str, Any]) -> dict[str, Any]:
    """`entries`, all below the key "leaky" where leaks were allowed: nobody takes those scores for estimates."""
    return {"leaky": entries} if read_json(METRICS / "pseudo_label.json")["leaky"] else entries


def fold_entry(students: Students, fold: int, validation: np.ndarray, scorer: Scorer) -> dict[str, Any]:
    """The out-of-fold entry of a single model: its own validation fold."""
    labels = students.labeled.labels[students.labeled.out_of_fold_rows([fold])]
    return {"out_of_fold": scorer.score(labels, validation, students.labeled.categories)}


def oracle(root: Path) -> dict[str, Any]:
    """The ceiling of generated data, as its generator states it; real data have none."""
    path = root / "annotations" / "oracle.json"
    return {"oracle": read_json(path)} if path.is_file() else {}


def reweighting(students: Students, blend: dict[str, Any]) -> dict[str, Any]:
    """What class weights and blend weights gain; the class weights themselves stay in models/reweight."""
    fits = {arch: students.reweighting(arch) for arch in students.archs}
    gains = {arch: {name: fit[name] for name in fit if name != "weights"} for arch, fit in fits.items()}
    return gains | {"blend": blend}


def write_plots(students: Students, final: Predictions, scorer: Scorer) -> None:
    """On the most honest part there is: test, else holdout, else out of fold."""
    part = list(scorer.targets)[-1]
    target, plots = scorer.targets[part], METRICS / "plots"
    predicted = final[part][target.rows].argmax(axis=1)
    sizes = np.zeros(len(target.categories), dtype=np.int64)
    sizes[: len(students.labeled.categories)] = students.labeled.class_sizes()
    write_level1_confusion(plots / "level1_confusion.csv", target.labels, predicted, target.categories)
    write_class_f1_by_size(plots / "class_f1_by_size.csv", target.labels, predicted, target.categories, sizes)
    models = students.models
    curves = {"teacher": sorted((models / "teacher").glob("*/curves.csv"))}
    for arch in students.archs:
        curves[f"pretrain_{arch}"] = sorted((models / "pretrain" / arch).glob("*/curves.csv"))
        curves[f"finetune_{arch}"] = [models / "swa" / arch / str(fold) / "curves.csv" for fold in students.folds]
    write_training_curves(plots / "training_curves.csv", curves)
