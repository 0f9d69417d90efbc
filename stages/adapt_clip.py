"""A vision encoder, if wanted adapted to the pool: python -m stages.adapt_clip --encoder small"""

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from framefold.data.batches import EpochBatches
from framefold.data.extraction import given_dim
from framefold.data.manifest import NAME, SplitManifest, read_layout
from framefold.data.pairs import PairSamples, usable_rows
from framefold.data.samples import SPLITS, samples_path
from framefold.data.tokens import TokenStore, read_special_tokens
from framefold.data.topics import token_vectors
from framefold.data.videos import FOLDS, TOKENIZER, open_labeled, read_categories
from framefold.errors import UserError, command
from framefold.evaluation.frames_probe import FramesProbe
from framefold.launch import on_several_processes
from framefold.models.vision import FrameEncoder, VisionEncoder, load_vision_encoder, save_encoder
from framefold.objectives.itc import info_nce, retrieval_accuracy
from framefold.params.base import load, load_value
from framefold.params.data import DataParams
from framefold.params.encoders import AdaptParams, EncoderParams
from framefold.runtime import is_main_process, load_runtime, seed_everything
from framefold.scratch import Scratch, stage_fingerprint
from framefold.storage import write_folder_aside, write_json
from framefold.training.contrastive import ContrastiveModel, ContrastiveTask
from framefold.training.curves import write_curves
from framefold.training.loop import TrainResult, train

TOKENS = Path("data/tokens/unlabeled.arrow")
log = logging.getLogger(__name__)


@command
@on_several_processes
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", required=True)
    name = parser.parse_args().encoder
    params, root = load(EncoderParams, f"encoders.{name}"), Path(load(DataParams).root)
    seed, precision = load_value("seed"), load_value("precision")
    target = Path("models/clip") / name
    load_runtime().prepare_cpu()
    stamp = {"params": params.model_dump(mode="json"), "run": [seed, precision]}
    inputs = [root / NAME, FOLDS, TOKENIZER, TOKENS, *map(samples_path, SPLITS)]
    with Scratch(f"adapt_clip@{name}", stage_fingerprint(stamp, inputs)) as scratch:
        if read_layout(root) == "zip_feats":
            if is_main_process():
                publish_given(target, given_dim(root), scratch)
        else:
            seed_everything(seed)
            train_and_publish(target, load_vision_encoder(params), params, root, seed, precision, scratch)
        scratch.finish()


def train_and_publish(
    target: Path, encoder: VisionEncoder, params: EncoderParams, root: Path, seed: int, precision: str, scratch: Scratch
) -> None:
    """In all processes; the main one publishes. With nothing to train the encoder is published as it came."""
    if params.adapt.epochs == 0 or params.library == "timm":
        log.info(f"{target.name}: as it came" + (", timm towers are not adapted" if params.adapt.epochs else ""))
        if is_main_process():
            publish(target, encoder, {}, [], 0, scratch)
        return
    report, result = adapt(encoder, params, root, seed, precision, scratch)
    if is_main_process():
        log.info(f"{target.name}: {', '.join(f'{key} {value:.4g}' for key, value in report.items())}")
        publish(target, result.ema.encoder, report, result.history, params.adapt.epochs, scratch)  # type: ignore[arg-type]


def adapt(
    encoder: VisionEncoder, params: EncoderParams, root: Path, seed: int, precision: str, scratch: Scratch
) -> tuple[dict[str, float], TrainResult]:
    """Train on the pool; measured before and after: the frames probe and retrieval among pairs that are kept aside."""
    tokens, labeled, runtime = TokenStore(TOKENS), open_labeled(), load_runtime()
    rows = usable_rows(tokens, labeled)
    training, kept = open_pairs(root, tokens, rows, encoder, params.adapt, seed)
    vocab_size = read_special_tokens(TOKENIZER).size
    vectors = token_vectors(tokens, training.rows, vocab_size, params.adapt.embed_dim, seed)
    # on the device before anything is measured: tensors moved under inference_mode could not be trained
    model = ContrastiveModel(encoder, vectors, params.adapt.temperature).to(runtime.torch_device())
    probe = FramesProbe(root, labeled, read_categories(), runtime.workers, params.batch_size, scratch.guard)
    before = measure(model, probe, kept)
    result = train(
        ContrastiveTask(model),
        lambda epoch: EpochBatches(training, params.adapt.batch_size, seed=seed, epoch=epoch),
        params.adapt,
        learning_rates={"vision": params.adapt.lr, "text": params.adapt.text_lr},
        seed=seed,
        precision=precision,
        scratch=scratch,
    )
    after = measure(result.ema, probe, kept) if is_main_process() else {}
    losses = {"loss_first": result.history[0]["loss"], "loss_last": result.history[-1]["loss"]}
    both = {
        f"{key}_{when}": value for when, part in (("before", before), ("after", after)) for key, value in part.items()
    }
    return losses | both | {"pairs": len(training), "held_out_pairs": len(kept)}, result


def open_pairs(
    root: Path, tokens: TokenStore, rows: np.ndarray, encoder: VisionEncoder, params: AdaptParams, seed: int
) -> tuple[PairSamples, PairSamples]:
    """All pairs but one batch's worth, and these. UserError: too few to contrast."""
    aside = min(params.batch_size, len(rows) // 10)
    if aside < 2:
        raise UserError(
            f"adapt_clip: {len(rows)} unlabelled videos have a title, frames and no duplicate in holdout or test; "
            "add unlabelled videos or set adapt.epochs to 0"
        )
    order, manifest = np.random.default_rng(seed).permutation(rows), SplitManifest(root, "unlabeled")
    training, kept = (
        PairSamples(root, tokens, np.sort(part), encoder.preprocess, params, manifest)
        for part in (order[aside:], order[:aside])
    )
    return training, kept


@torch.inference_mode()
def measure(model: Any, probe: FramesProbe, kept: PairSamples) -> dict[str, float]:
    device = load_runtime().torch_device()
    model.eval().to(device)
    encoder = model.encoder
    batch = {name: tensor.to(device) for name, tensor in kept.batch(np.arange(len(kept))).items()}
    (images, titles), valid = model(batch), batch["has_frame"]
    loss = info_nce(images, titles, valid, model.log_scale.exp())
    hits = retrieval_accuracy(images, titles, valid)
    scores = probe.score(FrameEncoder(encoder, device), encoder.preprocess, encoder.dim)
    return scores | {"held_out_loss": float(loss), "retrieval": float(hits)}


def publish(
    target: Path,
    encoder: VisionEncoder,
    report: dict[str, float],
    history: list[dict[str, float]],
    epochs: int,
    scratch: Scratch,
) -> None:
    with write_folder_aside(target) as aside:
        save_encoder(aside, encoder, adapted_epochs=epochs)
        write_curves(aside / "curves.csv", history)
        write_json(aside / "metrics.json", {"epochs": epochs, **report})
        scratch.guard()


def publish_given(target: Path, dim: int, scratch: Scratch) -> None:
    """Layout zip_feats brings features: no encoder is needed, and its folder says so."""
    log.info(f"{target.name}: not needed, the data brings features of {dim} dimensions")
    with write_folder_aside(target) as aside:
        config = {"recipe": None, "preprocess": None, "dim": dim, "weights_sha256": None, "adapted_epochs": 0}
        write_json(aside / "config.json", config)
        write_curves(aside / "curves.csv", [])
        write_json(aside / "metrics.json", {"epochs": 0})
        scratch.guard()


if __name__ == "__main__":
    main()
