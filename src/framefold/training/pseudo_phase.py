"""The first phase of finetuning: a student on the pool's soft labels, which the true labels correct afterwards.

Pseudo-labels first, true labels last is how the winning teams of the WeChat Big Data Challenge 2022 used theirs.
"""

import copy
from pathlib import Path
from typing import Any

from torch import nn

from framefold.data.batches import EpochBatches
from framefold.inference.processes import Processes
from framefold.models.weights import load_strict, read_state_dict, save_weights
from framefold.params.finetune import FinetuneParams
from framefold.runtime import is_main_process, load_runtime, seed_everything
from framefold.scratch import Scratch
from framefold.storage import write_folder_aside, write_json
from framefold.training.classifiers import FoldData
from framefold.training.curves import write_curves
from framefold.training.loop import TrainResult, train
from framefold.training.pool import LabelledPool
from framefold.training.tasks import DistillationTask

PHASE = "pseudo"  # of the stage's scratch: what the phase has left
WEIGHTS = "weights.safetensors"


def learn_pseudo_labels(
    model: Any,
    pool: LabelledPool,
    data: FoldData,
    params: FinetuneParams,
    *,
    seed: int,
    precision: str,
    scratch: Scratch,
) -> None:
    """Give `model`, untrained so far, the EMA weights of `params.pseudo.epochs` epochs on the pool's labels.

    `data`: the fold, with features. The weights are kept in `scratch` with a curve and metrics of their own, and
    trained once however often the stage starts.
    """
    processes = Processes(f"{scratch.item}-{PHASE}")
    if not processes.main_first("finished", lambda: scratch.has(PHASE), scratch.guard):
        with Scratch(processes.item, scratch.fingerprint) as own:
            result = train_on_pool(copy.deepcopy(model), pool, params, seed, precision, own)
            if is_main_process():
                with scratch.sealed(PHASE) as folder:
                    keep(folder, result, pool, data, own)
            load_strict(model, result.ema.state_dict(), PHASE)
            own.finish()
    else:
        with Scratch(processes.item, scratch.fingerprint) as own:
            own.finish()  # a kill between the two may have left it
        load_strict(model, read_state_dict(scratch.folder / PHASE / WEIGHTS), PHASE)
    seed_everything(seed)  # what is drawn next must not depend on whether the phase ran just now


def train_on_pool(
    model: nn.Module, pool: LabelledPool, params: FinetuneParams, seed: int, precision: str, scratch: Scratch
) -> TrainResult:
    """Without an adversary: the pool is large, and its labels are soft."""
    phase, tokens = params.pseudo, params.batch_tokens
    settings = params.model_copy(update={"epochs": phase.epochs, "batch_size": phase.batch_size, "lr": phase.lr})
    return train(
        DistillationTask(model, phase.labels),
        lambda epoch: EpochBatches(
            pool.epoch(seed, epoch), phase.batch_size, seed=seed, epoch=epoch, batch_tokens=tokens
        ),
        settings,
        learning_rates=phase.lr.model_dump(),
        seed=seed,
        precision=precision,
        scratch=scratch,
    )


def keep(folder: Path, result: TrainResult, pool: LabelledPool, data: FoldData, scratch: Scratch) -> None:
    report: dict[str, float] = {"videos": len(pool.videos)}
    if len(data.validation):
        report["ema"] = data.score(data.logits(result.ema, load_runtime().torch_device()))
    with write_folder_aside(folder) as aside:
        save_weights(aside / WEIGHTS, result.ema)
        write_curves(aside / "curves.csv", result.history)
        write_json(aside / "metrics.json", report)
        scratch.guard()
