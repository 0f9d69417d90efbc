"""Building, saving and loading the models by architecture name.

An architecture is a module of this package with a class of its name in camel case (`single_stream.SingleStream`). It
is imported when asked for, so that a stage that trains one depends on that file alone.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from framefold.errors import UserError
from framefold.models.bert import BertConfig, BertEncoder
from framefold.models.heads import MlmHead
from framefold.models.text import load_text_encoder
from framefold.models.weights import load_strict, read_state_dict, save_weights
from framefold.params.base import validate
from framefold.params.models import TextModelParams
from framefold.storage import read_json, write_json

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def architecture(arch: str) -> Any:
    """The class of the architecture `arch`; its `Params` is the class of its params."""
    try:
        module = importlib.import_module(f"framefold.models.{arch}")
        return getattr(module, "".join(part.title() for part in arch.split("_")))
    except (ImportError, AttributeError):
        raise UserError(
            f"archs: {arch!r} is no architecture (framefold/models/{arch}.py); correct params.yaml"
        ) from None


def build_model(
    arch: str, text_params: TextModelParams, arch_params: BaseModel, vocab_size: int, feature_dim: int, n_classes: int
) -> Any:
    """A model with its text encoder's pretrained weights, everything else from scratch (global torch RNG)."""
    return build_with_mlm_head(arch, text_params, arch_params, vocab_size, feature_dim, n_classes)[0]


def build_with_mlm_head(
    arch: str, text_params: TextModelParams, arch_params: BaseModel, vocab_size: int, feature_dim: int, n_classes: int
) -> tuple[Any, MlmHead]:
    """`build_model`, and the masked language model head that belongs to the text encoder, pretrained if it has one."""
    text, mlm_state = load_text_encoder(text_params, vocab_size)
    head = MlmHead(text.config)
    if mlm_state is not None:
        load_strict(head, mlm_state, f"{text_params.folder}: masked language model head")
    return architecture(arch)(text, arch_params, feature_dim, n_classes), head


def config_of(model: Any) -> dict[str, Any]:
    """All that is needed to rebuild the model, without its text folder."""
    return {
        "arch": type(model).__module__.rpartition(".")[2],
        "text": model.text.config.to_dict(),
        "params": model.params.model_dump(),
        "vision": tower.to_json() if (tower := model.frame_projection.tower) is not None else None,
        "feature_dim": model.feature_dim,
        "n_classes": model.n_classes,
    }


def save_config(folder: Path | str, model: nn.Module) -> None:
    write_json(Path(folder) / CONFIG, config_of(model))


def save_model(folder: Path | str, model: nn.Module) -> None:
    """Write weights and config.json; the config last, so that a folder with one is whole."""
    save_weights(Path(folder) / WEIGHTS, model)
    save_config(folder, model)


def as_built(model: nn.Module, content: dict[str, Any]) -> None:
    """Nothing to add to an architecture."""


def load_model(
    folder: Path | str, weights: str = WEIGHTS, extend: Callable[[nn.Module, dict[str, Any]], None] = as_built
) -> Any:
    """Rebuild a saved model from its folder alone, in evaluation mode; `weights` names another file of the folder.

    extend(model, config.json): adds to the model what its weights need besides the architecture. A student with a
    vision tower of its own is loaded by `end_to_end.load_student`.
    """
    path = Path(folder) / CONFIG
    content = read_json(path)
    try:
        cls = architecture(content["arch"])
        params = validate(cls.Params, content["params"], "params", path)
        with torch.device("meta"):
            text = BertEncoder(BertConfig.from_dict(content["text"], str(path)))
            model = cls(text, params, content["feature_dim"], content["n_classes"])
        extend(model, content)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not a saved model ({error!r}); rebuild it with `dvc repro`") from None
    load_strict(model, read_state_dict(Path(folder) / weights), str(Path(folder) / weights))
    return model.eval()


def load_weights_into(model: nn.Module, folder: Path | str, weights: str = WEIGHTS) -> None:
    """Warm start: the saved weights of an identical architecture.

    Raises UserError naming the first setting that differs, with both values.
    """
    path = Path(folder) / CONFIG
    saved, built = _flatten(read_json(path)), _flatten(config_of(model))
    for name in sorted(saved.keys() | built.keys()):
        # dropout may be set anew for every stage: it changes no shape and no meaning
        if saved.get(name) != built.get(name) and "dropout" not in name:
            raise UserError(
                f"{path}: {name} is {saved.get(name)!r} there and {built.get(name)!r} here; "
                "retrain it with the present params (`dvc repro`)"
            )
    load_strict(model, read_state_dict(Path(folder) / weights), str(Path(folder) / weights))


def _flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
