"""The files of metrics/ that the last stage writes: scores, comparisons, reweighting, alive checks and plots."""

from pathlib import Path
from typing import Any

import numpy as np

from framefold.evaluation.agreement import optimism
from framefold.evaluation.alive import above, all_checks, no_leaks
from framefold.evaluation.plots import write_class_f1_by_size, write_level1_confusion, write_training_curves
from framefold.evaluation.scoring import Predictions, Scorer
from framefold.evaluation.selection import selection_checks, selection_of
from framefold.inference.bundle import Bundle
from framefold.inference.contributions import leave_one_out
from framefold.inference.students import Logits, Students
from framefold.storage import read_json, write_json

METRICS = Path("metrics")


def write_report(
    students: Students,
    logits: dict[str, Logits],
    final: Predictions,
    refit: np.ndarray | None,
    blend: dict[str, Any],
    scorer: Scorer,
    root: Path,
) -> None:
    """logits: per architecture, before reweighting; final: scores of the ensemble; refit (N, C): those of the test
    videos by models of all labelled videos; root: the data set's. Each file is written once: a kill leaves none that
    lacks something."""
    arch, fold = students.best_fold(logits)
    single = students.fold_logits(arch, fold)
    entries = {name: scorer.entries(parts) for name, parts in logits.items()} | {"ensemble": scorer.entries(final)}
    entries["best_fold"] = scorer.entries(single) | fold_entry(students, fold, single["validation"], scorer)
    rivals: dict[str, Predictions] = {**logits, "best_fold": single, "probe": students.probe()}
    comparisons: dict[str, Any] = {f"ensemble_minus_{name}": scorer.differences(final, rivals[name]) for name in rivals}
    gain = comparisons["ensemble_minus_probe"][most_honest(scorer)]
    checks: dict[str, Any] = {"ensemble_against_probe": above(gain["low"], 0)}
    if refit is not None:
        entries["full_data"] = refit_entry(refit, scorer)
        comparisons["full_data_minus_ensemble"] = scorer.differences({"test": refit}, {"test": final["test"]})
        checks["full_data_agrees"] = refit_check(refit, final["test"], entries["ensemble"]["out_of_fold"]["top1"])
    chosen = {arch: selection_of(students.fold_reports(arch)) for arch in students.archs}
    comparisons |= {"best_fold_is": f"{arch}/{fold}"} | oracle(root)
    contents = {
        "metrics": entries,
        "comparisons": comparisons,
        "optimism": out_of_fold_optimism(students, logits, scorer),
        "reweight": reweighting(students, blend),
        "selection": chosen,
    }
    for name, content in contents.items():
        write_json(METRICS / f"{name}.json", marked(content, students))
    checks |= all_checks(students.archs, students.folds, students.models, METRICS)
    checks |= no_leaks(students.leaky())  # also where the labels are honest by now
    write_json(METRICS / "alive.json", checks | selection_checks(chosen))
    write_plots(students, final, scorer)


def most_honest(scorer: Scorer) -> str:
    """Test where its truth is known, else holdout, else out of fold."""
    return list(scorer.targets)[-1]


def out_of_fold_optimism(students: Students, logits: dict[str, Logits], scorer: Scorer) -> dict[str, Any]:
    """Per architecture and part: how far the out-of-fold score lies above single models on videos that nobody saw."""
    settings = scorer.params.bootstrap, scorer.params.seed
    entries: dict[str, Any] = {}
    for arch in students.archs:
        models = [students.fold_logits(arch, fold) for fold in students.folds]
        validation = scorer.targets["out_of_fold"].labels, logits[arch]["out_of_fold"].argmax(axis=1)
        entries[arch] = {
            part: optimism(
                validation,
                target.labels,
                [model[part][target.rows].argmax(axis=1) for model in models],
                target.categories,
                *settings,
            )
            for part, target in scorer.targets.items()
            if part != "out_of_fold"
        }
    return entries


def write_contributions(bundle: Bundle, students: Students, logits: dict[str, Logits], scorer: Scorer) -> None:
    """metrics/contributions.json: the ensemble without each of its parts."""
    content = leave_one_out(bundle, logits, students.fold_logits, scorer.differences)
    write_json(METRICS / "contributions.json", marked(content, students))


def refit_entry(refit: np.ndarray, scorer: Scorer) -> dict[str, Any]:
    """refit (N, C): scores of the test videos by models of all labelled videos. No labelled video is left to judge
    them: only the test truth, where there is one, and the cross-validated score of the folds' models by one recipe."""
    return scorer.entries({"test": refit}) | {"estimate": "ensemble.out_of_fold, ensemble.holdout"}


def refit_check(refit: np.ndarray, ensemble: np.ndarray, top1: float) -> dict[str, Any]:
    """Two trainings by one recipe agree more often with each other than either does with the truth (`top1`)."""
    return above(float((refit.argmax(axis=1) == ensemble.argmax(axis=1)).mean()), top1)


def marked(entries: dict[str, Any], students: Students) -> dict[str, Any]:
    """`entries`, all below the key "leaky" where `students` learned leaky labels: nobody takes those scores for
    estimates."""
    return {"leaky": entries} if students.leaky() else entries


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
    part = most_honest(scorer)
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
