"""Weight files: foreign ones read without running their code, ours written to the same bytes, all loaded strictly."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from framefold.errors import UserError
from framefold.storage import sha256_of, write_aside

SHOWN = 6  # keys named in a message before "and n more"


def read_state_dict(path: Path | str, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or of a pickled state dict (`weights_only`), on the CPU.

    Raises UserError if the file is missing, broken, not a state dict, or not the one with the digest `sha256`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; check the path in params.yaml")
    if sha256 is not None and (found := sha256_of(path)) != sha256.lower():
        raise UserError(f"{path}: sha256 is {found}, params say {sha256}; fetch the right file or correct params.yaml")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        raise UserError(
            f"{path}: cannot be read as weights ({' '.join(str(error).split())[:200]}); fetch it again"
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: not a state dict of tensors; export one with torch.save(model.state_dict(), ...)")
    return dict(state)


def load_strict(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Put `state` in place of the module's weights, as float32. Works on a module built on the meta device.

    Raises UserError naming what is missing, left over or of another shape.
    """
    wanted = module.state_dict()
    missing, left_over = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    shapes = [
        f"{name}: {tuple(state[name].shape)} in the file, {tuple(wanted[name].shape)} in the model"
        for name in sorted(wanted.keys() & state.keys())
        if state[name].shape != wanted[name].shape
    ]
    problems = [("missing", missing), ("left over", left_over), ("other shape", shapes)]
    found = "; ".join(f"{what}: {_name_some(names)}" for what, names in problems if names)
    if found:
        raise UserError(
            f"{where}: the weights do not fit the model ({found}); use the checkpoint that its config describes"
        )
    floats = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    module.load_state_dict(floats, strict=True, assign=any(value.is_meta for value in wanted.values()))


def save_weights(path: Path | str, module: nn.Module) -> None:
    """Write the module's weights as safetensors; appears only when complete, same weights give the same bytes."""
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    with write_aside(path) as aside:
        save_file(state, aside)


def _name_some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
