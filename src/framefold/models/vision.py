"""Vision encoders from open_clip and timm: built by name or config, loaded strictly, saved so that a folder is enough.

The only module that imports open_clip and timm, and only once an encoder is built: the import takes seconds.
"""

import logging
from collections.abc import Iterable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from framefold.data.images import Preprocess, read_encoder_config
from framefold.errors import UserError
from framefold.models.vision_weights import read_weights, tower_weights
from framefold.models.weights import load_strict, read_state_dict, save_weights
from framefold.params.encoders import EncoderParams
from framefold.storage import sha256_of, write_json

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8] | Tensor
Recipe = dict[str, Any]  # what rebuilds a tower: {"library", "name", "config" (open_clip) or "kwargs" (timm)}
UNUSED_TEXT_TOWER = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}


class VisionEncoder(nn.Module):
    """A vision tower with the preprocessing it was trained with. `dim`: size of a feature."""

    mean: Tensor
    std: Tensor

    def __init__(self, tower: nn.Module, recipe: Recipe, preprocess: Preprocess):
        super().__init__()
        self.tower, self.recipe, self.preprocess = tower, recipe, preprocess
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1) * 255, persistent=False)
        self.dim = probe_dim(self)

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) as `Preprocess.pixels` gives them -> float32 (B, 3, H, W) as the tower wants them."""
        return (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> features (B, dim)."""
        features: Tensor = self.tower(images)
        return features


def probe_dim(encoder: VisionEncoder) -> int:
    """The feature size, from one blank image. Raises UserError when the tower does not take images of this size."""
    size, training = encoder.preprocess.image_size, encoder.training
    try:
        with torch.no_grad():
            features = encoder.eval()(torch.zeros(1, 3, size, size, device=encoder.mean.device))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"encoder {describe(encoder.recipe)}: does not take images of {size} pixels ({reason}); change image_size"
        ) from None
    encoder.train(training)
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise UserError(f"encoder {describe(encoder.recipe)}: does not give one vector per image; choose another")
    return features.shape[1]


class Started(NamedTuple):
    """A batch under way."""

    batch: Tensor  # on the device
    features: Tensor  # float16 [B, dim] on the host
    copied: "torch.cuda.Event | None"  # when they are there; None: they are


class FrameEncoder:
    """Batches of pixels to float16 features on `device`.

    The CPU computes in fp32; a GPU in fp16, the precision of the store, and again in fp32 where that overflowed.
    """

    def __init__(self, encoder: VisionEncoder, device: torch.device):
        self.encoder, self.device = encoder.to(device).eval(), device

    def __call__(self, batches: Iterable[Pixels]) -> Iterator[npt.NDArray[np.float16]]:
        """Batches uint8 [B, H, W, 3] to float16 [B, dim], one by one: the device works on one while the next is made.

        UserError: features that float16 cannot hold.
        """
        under_way: Started | None = None
        for pixels in batches:
            started = self.start(pixels)
            if under_way is not None:
                yield self.finish(*under_way)
            under_way = started
        if under_way is not None:
            yield self.finish(*under_way)

    @torch.inference_mode()
    def start(self, pixels: Pixels) -> "Started":
        """The batch on the device, and its features on the host, where a GPU may not have put them yet."""
        batch = pixels if isinstance(pixels, Tensor) else torch.from_numpy(pixels)
        on_gpu = self.device.type == "cuda"
        if on_gpu and batch.device.type == "cpu":
            batch = batch.pin_memory()
        batch = batch.to(self.device, non_blocking=True)
        with torch.autocast("cuda", torch.float16, enabled=on_gpu):
            features = self.encoder(self.encoder.normalize(batch)).half()
        if not on_gpu:
            return Started(batch, features, None)
        host = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
        host.copy_(features, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return Started(batch, host, copied)

    @torch.inference_mode()
    def finish(self, batch: Tensor, features: Tensor, copied: "torch.cuda.Event | None") -> npt.NDArray[np.float16]:
        if copied is not None:
            copied.synchronize()  # waits for this batch alone, not for the one that was started after it
        if not features.isfinite().all():
            features = self.encoder(self.encoder.normalize(batch)).half()
        if not features.isfinite().all():
            raise UserError(
                f"encoder {describe(self.encoder.recipe)}: gives features beyond float16; use other weights"
            )
        return features.cpu().numpy()


def load_vision_encoder(params: EncoderParams) -> VisionEncoder:
    """Build the encoder that params describe and load its weights; in eval mode.

    Without weights it keeps its random start (seed it yourself). Raises UserError for a name that the library does not
    know, a weights file that does not fit (with the names of the tensors) and a wrong checksum.
    """
    weights = read_weights(params.weights, params.sha256) if params.weights else None
    recipe = open_clip_recipe(params) if params.library == "open_clip" else timm_recipe(params)
    if weights is not None and weights.from_openai and params.library == "open_clip":
        recipe["config"].setdefault("quick_gelu", True)  # what OpenAI's towers were trained with
    tower, own = build_tower(recipe, params.pretrained)
    if weights is not None:
        load_strict(tower, tower_weights(weights.state, tower, params.library), weights.path)
    elif params.pretrained is None and params.adapt.epochs == 0:
        log.warning("encoder %s: no weights given and no adaptation: features of a random tower", describe(recipe))
    return VisionEncoder(tower, recipe, override(own, params)).eval()


def override(own: Preprocess, params: EncoderParams) -> Preprocess:
    """The encoder's own preprocessing, with what params state in its place."""
    given: dict[str, Any] = own.to_json()
    if params.normalization is not None:
        given |= {"mean": params.normalization.mean, "std": params.normalization.std}
    if params.image_size is not None:
        given |= {"image_size": params.image_size}
    given |= {"decoder": params.decoder}
    return Preprocess.from_json(given)


def describe(recipe: Recipe) -> str:
    return f"{recipe['library']}/{recipe['name'] or 'custom'}"


# Building ------------------------------------------------------------------------------------------------------------


def open_clip_recipe(params: EncoderParams) -> Recipe:
    """Config of the named model (or the given one) without its text tower, overridden by kwargs."""
    import open_clip

    config = deepcopy(params.config) if params.name is None else open_clip.get_model_config(params.name)
    if config is None:
        raise UserError(f"encoders: open_clip has no model {params.name!r}; its names: open_clip.list_models()")
    config = {key: config[key] for key in ("embed_dim", "vision_cfg", "quick_gelu") if key in config}
    if params.pretrained and (open_clip.get_pretrained_cfg(params.name, params.pretrained) or {}).get("quick_gelu"):
        config["quick_gelu"] = True  # else the tag's weights would run with another activation than they learned
    vision = config.get("vision_cfg", {}) | params.kwargs.get("vision_cfg", {})
    return {"library": "open_clip", "name": params.name, "config": config | params.kwargs | {"vision_cfg": vision}}


def timm_recipe(params: EncoderParams) -> Recipe:
    return {"library": "timm", "name": params.name, "kwargs": dict(params.kwargs)}


def build_tower(recipe: Recipe, pretrained: str | None) -> tuple[nn.Module, Preprocess]:
    """The tower, randomly initialised or with the library's `pretrained` tag, and its own preprocessing."""
    try:
        return (build_open_clip if recipe["library"] == "open_clip" else build_timm)(recipe, pretrained)
    except (TypeError, ValueError, KeyError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"encoder {describe(recipe)}: cannot be built ({type(error).__name__}: {reason})") from None


def build_open_clip(recipe: Recipe, pretrained: str | None) -> tuple[nn.Module, Preprocess]:
    import open_clip
    from open_clip.transform import PreprocessCfg

    config = deepcopy(recipe["config"])
    if pretrained is not None:
        tower = open_clip.create_model(recipe["name"], pretrained=pretrained, **config).visual
        return tower, from_open_clip(tower.preprocess_cfg)
    config["vision_cfg"] |= {"output_tokens": False}
    if config["vision_cfg"].get("timm_model_name"):
        config["vision_cfg"] |= {"timm_model_pretrained": False}
    tower = open_clip.CLIP(**config, text_cfg=UNUSED_TEXT_TOWER).visual
    own = PreprocessCfg(size=tower.image_size, **published_preprocess(recipe["name"]))
    return tower, from_open_clip(vars(own))


def published_preprocess(name: str | None) -> dict[str, Any]:
    """What open_clip states for all published weights of this model; CLIP's own where they differ or there are none."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    tags = list_pretrained_tags_by_model(name) if name else []
    published = [get_pretrained_cfg(name, tag) for tag in tags]
    keys = ("mean", "std", "interpolation", "resize_mode")
    stated = [{key: entry[key] for key in keys if entry.get(key)} for entry in published]
    return stated[0] if stated and all(entry == stated[0] for entry in stated) else {}


def from_open_clip(config: dict[str, Any]) -> Preprocess:
    size = config["size"] if isinstance(config["size"], int) else config["size"][0]
    return Preprocess(size, tuple(config["mean"]), tuple(config["std"]), config["interpolation"], config["resize_mode"])


def build_timm(recipe: Recipe, pretrained: str | None) -> tuple[nn.Module, Preprocess]:
    """Pooled features before the classifier. timm's crop_pct is left out: it would cut off the edges of a frame."""
    import timm

    name = recipe["name"] if pretrained is None else f"{recipe['name']}.{pretrained}"
    tower = timm.create_model(name, pretrained=pretrained is not None, num_classes=0, **recipe["kwargs"])
    own = timm.data.resolve_model_data_config(tower)
    mean, std = tuple(own["mean"]), tuple(own["std"])
    return tower, Preprocess(own["input_size"][-1], mean, std, own["interpolation"], "shortest")


# Folders -------------------------------------------------------------------------------------------------------------


def save_encoder(folder: Path | str, encoder: VisionEncoder, adapted_epochs: int) -> None:
    """Write model.safetensors and config.json into `folder`, which then rebuilds the encoder without params."""
    folder = Path(folder)
    save_weights(folder / "model.safetensors", encoder.tower)
    config = {
        "recipe": encoder.recipe,
        "preprocess": encoder.preprocess.to_json(),
        "dim": encoder.dim,
        "weights_sha256": sha256_of(folder / "model.safetensors"),
        "adapted_epochs": adapted_epochs,
    }
    write_json(folder / "config.json", config)


def load_encoder(folder: Path | str) -> VisionEncoder:
    """The encoder saved in `folder`, in eval mode. Raises UserError when a file is missing, changed or does not fit."""
    config = read_encoder_config(folder)
    path = Path(folder) / "model.safetensors"
    tower, _ = build_tower(config["recipe"], None)
    load_strict(tower, read_state_dict(path, config["weights_sha256"]), str(path))
    return VisionEncoder(tower, config["recipe"], Preprocess.from_json(config["preprocess"])).eval()
