"""The bundle: everything that labelling new videos takes, in one folder that needs neither params.yaml nor data/.

bundle.json              what follows, as `Bundle`
tokenizer/               as models/tokenizer
encoders/<encoder>/      as models/clip/<encoder>
members/<arch>/<fold>/   model.safetensors, config.json; fold `all`: trained again on every labelled video
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import PositiveInt

from framefold.inference.ensembling import Blend, blend, reweighted_probs
from framefold.params.base import Group, validate
from framefold.params.models import InputParams
from framefold.storage import read_json, write_json

FILE = "bundle.json"
MODEL_FILES = ("model.safetensors", "config.json")


class Bundle(Group):
    """bundle.json, checked when read."""

    categories: list[str]
    archs: list[str]
    folds: list[int | Literal["all"]]
    blend: Blend
    blend_weights: list[float]  # per arch
    class_weights: dict[str, list[float]]  # arch -> one per category
    encoder: str
    max_frames: PositiveInt  # encoded per video
    encoder_batch_size: PositiveInt  # with batch_size part of what makes results repeat to the byte
    batch_size: PositiveInt
    inputs: InputParams
    max_tokens: PositiveInt  # per text segment
    max_text: PositiveInt  # characters

    def scores(self, logits: Mapping[str, np.ndarray]) -> np.ndarray:
        """Final scores (N, C) from each architecture's logits (N, C), the mean over its folds."""
        probs = [reweighted_probs(logits[arch], np.array(self.class_weights[arch])) for arch in self.archs]
        return blend(probs, self.blend_weights, self.blend)


def member_folder(bundle: Path, arch: str, fold: int | str) -> Path:
    return bundle / "members" / arch / str(fold)


def encoder_folder(bundle: Path, encoder: str) -> Path:
    return bundle / "encoders" / encoder


def write_bundle(folder: Path, bundle: Bundle, models: Path = Path("models")) -> None:
    """Fill the empty `folder` from models/{tokenizer,clip,swa}; bundle.json comes last."""
    shutil.copytree(models / "tokenizer", folder / "tokenizer")
    copy_files(models / "clip" / bundle.encoder, encoder_folder(folder, bundle.encoder))
    for arch in bundle.archs:
        for fold in bundle.folds:
            copy_files(models / "swa" / arch / str(fold), member_folder(folder, arch, fold))
    write_json(folder / FILE, bundle.model_dump(mode="json"))


def copy_files(source: Path, target: Path) -> None:
    """config.json, and the weights where there are any: the encoder of given features has none."""
    target.mkdir(parents=True)
    for name in MODEL_FILES:
        if name == "config.json" or (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def read_bundle(folder: Path) -> Bundle:
    """Raises UserError when there is no bundle, or not one of this version."""
    return validate(Bundle, read_json(folder / FILE), "bundle", folder / FILE)
