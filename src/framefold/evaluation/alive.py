"""Does every method do something? Checks that can fail, from the metrics.json files that the stages leave.

Each check is {"value", "against", "ok"}: a dead method (an EMA of the start weights, an encoder that learned nothing,
masked tokens guessed no better than by frequency) shows here before it shows as a mediocre score. Averages of weights
are only held to doing no harm: what they gain is within the noise of one run.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from framefold.storage import read_json

MAX_UNKNOWN = 0.02  # share of [UNK] above which a vocabulary does not fit the text
NOISE = 0.005  # scores that should not fall may do so by chance by this much
OBJECTIVES = {"mlm": "masked_tokens", "mfm": "masked_frames", "itm": "matching", "itc": "contrast"}
STANDARD_ERRORS = 2  # a share that should be above another is so by chance once in 40
Check = dict[str, float | bool]


def above(value: float, against: float) -> Check:
    return {"value": float(value), "against": float(against), "ok": bool(value > against)}


def not_below(value: float, against: float) -> Check:
    return {"value": float(value), "against": float(against), "ok": bool(value >= against - NOISE)}


def below(value: float, against: float) -> Check:
    return {"value": float(value), "against": float(against), "ok": bool(value < against)}


def all_checks(archs: Sequence[str], folds: Sequence[int], models: Path, metrics: Path) -> dict[str, Check]:
    """Every check whose stage has left its numbers below `models` or `metrics`."""
    checks = dict(unknown_tokens(read_json(metrics / "tokenize.json")))
    for path in sorted((models / "clip").glob("*/metrics.json")):
        checks |= adaptation(path.parent.name, read_json(path))
    checks |= pseudo_labels(read_json(metrics / "pseudo_label.json"))
    for arch in archs:
        variants = sorted((models / "pretrain" / arch).glob("*/metrics.json"))
        checks |= pretraining(arch, [read_json(path) for path in variants])
        swa = read_json(models / "swa" / arch / "metrics.json")["folds"]
        checks |= averages(arch, [swa[str(fold)] for fold in folds])
    return checks


def unknown_tokens(tokenize: Mapping[str, Any]) -> Iterator[tuple[str, Check]]:
    for split, counts in sorted(tokenize.items()):
        if isinstance(counts, dict):
            yield f"unknown_tokens/{split}", below(counts["unknown"], MAX_UNKNOWN)


def adaptation(encoder: str, metrics: Mapping[str, Any]) -> dict[str, Check]:
    """The frames probe after contrastive training against before; nothing for an encoder that was not trained."""
    if metrics.get("probe_after") is None or metrics.get("probe_before") is None:
        return {}
    return {f"adaptation/{encoder}": above(metrics["probe_after"], metrics["probe_before"])}


def pseudo_labels(metrics: Mapping[str, Any]) -> dict[str, Check]:
    """Labels of the pool against the teachers' out-of-fold accuracy, where the pool's truth is known; and a check that
    fails where leaks were allowed."""
    leaks = no_leaks(metrics["leaky"])
    if "accuracy" not in metrics["pool"]:
        return leaks
    return leaks | {"pseudo_labels": not_below(metrics["pool"]["accuracy"], metrics["teacher_out_of_fold"]["accuracy"])}


def no_leaks(leaky: bool) -> dict[str, Check]:
    """Nothing where there are none."""
    return {"no_leaks": below(1, 1)} if leaky else {}


def pretraining(arch: str, variants: Sequence[Mapping[str, Any]]) -> dict[str, Check]:
    """What each objective asked of held-out videos, against guessing, beyond chance; nothing where it was off, or where
    so little was asked that nobody could pass. All variants are asked the same questions: together they are no more."""
    checks = {}
    for objective, name in OBJECTIVES.items():
        measured = [variant for variant in variants if f"{objective}_asked" in variant]
        if not measured:
            continue
        accuracy, guess = (
            float(np.mean([each[f"{objective}_{what}"] for each in measured])) for what in ("accuracy", "by_guess")
        )
        asked = min(each[f"{objective}_asked"] for each in measured)
        least = guess + STANDARD_ERRORS * math.sqrt(guess * (1 - guess) / asked)
        if least < 1:
            checks[f"{name}/{arch}"] = above(accuracy, least)
    return checks


def averages(arch: str, folds: Sequence[Mapping[str, Any]]) -> dict[str, Check]:
    """EMA weights against the raw ones after the last epoch, and the average of checkpoints against the last one."""
    mean = {name: float(np.mean([fold[name] for fold in folds])) for name in ("swa", "last")}
    ema, raw = (float(np.mean([fold["finetune"][name] for fold in folds])) for name in ("ema", "raw"))
    checks = {f"ema_against_raw/{arch}": not_below(ema, raw)}
    if not any("selection" in fold for fold in folds):  # chosen on these very folds, an average cannot fail here
        checks[f"swa_against_last/{arch}"] = not_below(mean["swa"], mean["last"])
    return checks
