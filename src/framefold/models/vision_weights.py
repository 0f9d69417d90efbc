"""Weights files of vision encoders: whole CLIPs, OpenAI's TorchScript archives, timm models with their classifiers."""

import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from framefold.errors import UserError
from framefold.models.weights import read_state_dict
from framefold.storage import sha256_of

State = dict[str, Tensor]
# What a CLIP checkpoint holds besides its vision tower; the last three are constants in OpenAI's archives.
NOT_VISION = (
    *("text.", "transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection"),
    *("text_decoder.", "attn_mask", "logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size"),
)


class Weights(NamedTuple):
    path: str
    state: State
    from_openai: bool  # a TorchScript archive, the form OpenAI ships


def read_weights(path: str, sha256: str | None) -> Weights:
    """Read .safetensors, a pickled state dict (weights only) or a TorchScript archive.

    Raises UserError when the file is missing, cannot be read, or is not the one that `sha256` names.
    """
    if not is_torchscript(path):
        return Weights(path, read_state_dict(path, sha256), from_openai=False)
    if sha256 is not None and (found := sha256_of(path)) != sha256.lower():
        raise UserError(f"{path}: sha256 is {found}, params say {sha256}; fetch the right file or correct params.yaml")
    return Weights(path, dict(torch.jit.load(path, map_location="cpu").state_dict()), from_openai=True)


def is_torchscript(path: str) -> bool:
    """TorchScript archives are zips with constants.pkl in their folder; zips of torch.save have none."""
    if not Path(path).is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def tower_weights(state: State, tower: nn.Module, library: str) -> State:
    """The part of a file that belongs to the vision tower, in the tower's names; what is dropped is declared."""
    return clip_weights(state) if library == "open_clip" else timm_weights(state, tower)


def clip_weights(state: State) -> State:
    """`visual.*` of a whole CLIP, or all of a file that holds the tower alone."""
    if not any(name.startswith("visual.") for name in state):
        return state
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(NOT_VISION)}
    return {name.removeprefix("visual."): tensor for name, tensor in kept.items()}


def timm_weights(state: State, tower: Any) -> State:
    """All but the classifier, through timm's own conversion of older checkpoints where the model family has one."""
    classifier = tower.pretrained_cfg["classifier"]
    prefixes = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}
    convert = getattr(sys.modules[type(tower).__module__], "checkpoint_filter_fn", None)
    return convert(kept, tower) if convert else kept
