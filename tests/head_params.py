"""Params of the architectures for tests: everything off unless told otherwise."""

from typing import Any

from framefold.params.models import DualStreamParams, NextVladParams, PoolingParams, SingleStreamParams

SIZES = NextVladParams(clusters=3, groups=4, expansion=2, output=10)


def head_params(
    hidden: int, dropout: float, text: str = "mean", frames: str = "mean", samples: int = 1
) -> dict[str, Any]:
    """What both architectures share; text, frames: how each is pooled."""
    pooling = PoolingParams.model_validate({"text": text, "frames": frames, "nextvlad": SIZES})
    return {"head_hidden": hidden, "dropout": dropout, "dropout_samples": samples, "pooling": pooling}


def arch_params(arch: str, layers: int = 3, **head: Any) -> SingleStreamParams | DualStreamParams:
    """Of `single_stream`, or of `dual_stream` with `layers` layers of fusion; head: see `head_params`."""
    if arch == "single_stream":
        return SingleStreamParams(**head_params(**head))
    return DualStreamParams(layers=layers, heads=4, **head_params(**head))
