"""Knobs of one machine: they change speed and memory, never what is computed, so they stay out of params.yaml.

`runtime.yaml` in the project's root (untracked) sets them; the environment (FRAMEFOLD_THREADS, FRAMEFOLD_WORKERS,
FRAMEFOLD_PROCESSES, FRAMEFOLD_DEVICE, FRAMEFOLD_MICRO_BATCH, FRAMEFOLD_COMPILE, FRAMEFOLD_CHECKPOINTING,
FRAMEFOLD_REMOVE_PADDING, FRAMEFOLD_CHECKPOINT_SECONDS, FRAMEFOLD_SHARDS) goes before it.
"""

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from framefold.errors import UserError

if TYPE_CHECKING:
    import torch

RUNTIME_FILE = Path("runtime.yaml")
PREFIX = "FRAMEFOLD_"
KEPT_KERNELS = "256"
FLAGS = {"0": False, "1": True, "false": False, "true": True}


def parse_flag(value: object) -> bool:
    """A boolean of YAML, or one of FLAGS from the environment; ValueError for anything else."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in FLAGS:
        return FLAGS[value]
    raise ValueError(f"give one of {', '.join(FLAGS)}")


Flag = Annotated[bool, BeforeValidator(parse_flag)]


class Runtime(BaseModel):
    """Validated runtime knobs; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threads: NonNegativeInt = 0  # of torch on the CPU; 0: torch's own choice. Sums depend on it in the last bit
    workers: NonNegativeInt = 0  # processes that prepare batches or decode frames; 0: the main process
    processes: PositiveInt = 1  # that share a stage, one per GPU; in training each draws a dropout of its own
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")  # auto: a GPU if there is one
    micro_batch: NonNegativeInt = 0  # samples per forward pass, gradients are accumulated; 0: the whole batch
    compile: Flag = False  # torch.compile of a training's passes: a slow start, then faster
    checkpointing: Flag = False  # in training keep a layer's inputs alone and compute the rest again: less memory
    remove_padding: Flag = False  # in training the text encoder's layers leave padded positions out
    checkpoint_seconds: float = Field(60.0, ge=0)  # between saves of the training state
    shards: str = ""  # folder of finished shards of features, to be shared by machines; empty: the project's own

    def prepare_cpu(self) -> None:
        """Set torch's thread count and bound its cache of kernels, for stages that compute; call it before they do."""
        # A kernel is kept per shape, 1,024 of them by default: a GiB and more with batches of every length.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KEPT_KERNELS)
        import torch

        if self.threads:
            torch.set_num_threads(self.threads)

    def torch_device(self) -> "torch.device":
        """The device to compute on; under `torchrun` each process gets its own GPU. UserError: no such GPU."""
        import torch

        if self.device == "cpu" or (self.device == "auto" and not torch.cuda.is_available()):
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise UserError(f"runtime: device is {self.device}, but torch sees no GPU; set {PREFIX}DEVICE=cpu or auto")
        if ":" in self.device:
            return torch.device(self.device)
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def load_runtime(path: Path | str = RUNTIME_FILE) -> Runtime:
    """Read runtime.yaml (absent: nothing set) and the environment. UserError names a bad or unknown key."""
    return _validate({**_from_file(Path(path)), **_from_environment()}, path)


def resolve_precision(name: str, device: "torch.device") -> str:
    """`auto` -> bf16 where the hardware multiplies in it, else fp32. UserError: bf16 was asked for and is not there."""
    if name == "fp32":
        return "fp32"
    if has_bf16(device):
        return "bf16"
    if name == "bf16":
        raise UserError(f"precision: bf16 is not supported by this {device.type}; set precision to fp32 or auto")
    return "fp32"


def has_bf16(device: "torch.device") -> bool:
    """Whether bf16 is faster than fp32 here: a CPU with AVX512-BF16 or AMX, or a GPU since Ampere.

    A CPU without these flags computes bf16 too, but by emulation, several times slower.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def rank() -> int:
    """Number of this process under `torchrun` or `accelerate launch`; 0 without."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """Number of processes under `torchrun` or `accelerate launch`; 1 without."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """The one process that takes the lock, saves and publishes."""
    return rank() == 0


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices): call it before a model's weights are drawn."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _from_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); correct or delete it") from None
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines; keys are {', '.join(Runtime.model_fields)}")
    return content or {}


def _from_environment() -> dict[str, str]:
    names = {key: PREFIX + key.upper() for key in Runtime.model_fields}
    return {key: os.environ[name] for key, name in names.items() if os.environ.get(name)}


def _validate(values: dict[str, Any], path: Path | str) -> Runtime:
    try:
        return Runtime.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        source = f"environment: {PREFIX}{key.upper()}" if key in _from_environment() else f"{path}: {key}"
        keys = ", ".join(Runtime.model_fields)
        raise UserError(f"{source}: {first['msg']}, got {first['input']!r}; known keys: {keys}") from None
