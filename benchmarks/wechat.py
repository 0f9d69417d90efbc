"""The parameters of profiles/wechat.yaml, merged without the command `framefold profile` or its libraries."""

from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from framefold.params.base import Group, read, validate, value_at

PROFILE = Path("profiles/wechat.yaml")
VOCABULARY, CLASSES = 21_128, 200
LABELED, UNLABELED, TEST = 100_000, 1_000_000, 25_000
FRAMES = 31 * (LABELED + UNLABELED + TEST)  # most videos have all 32

G = TypeVar("G", bound=Group)


def wechat(group: type[G], key: str | None = None) -> G:
    """Like `framefold.params.base.load`, of the full-scale recipe."""
    key = key or group.key
    return validate(group, value_at(merged(), key, PROFILE), key, PROFILE)


@cache
def merged() -> dict[str, Any]:
    return laid_over(read(), yaml.safe_load(PROFILE.read_text(encoding="utf-8")))


def laid_over(params: Any, changes: Any) -> Any:
    if not isinstance(params, dict) or not isinstance(changes, dict):
        return changes
    return params | {key: laid_over(params.get(key), value) for key, value in changes.items()}
