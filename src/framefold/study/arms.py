"""A study, `studies/<name>.yaml`, and the arms that it consists of.

Three questions, three lists. `ladder`: from the bare model to the full recipe, each arm the one before with some
settings set (`overrides`) or taken back to the recipe's own (`restore`). `without`: the recipe without one method.
`added`: the recipe with one method more. The recipe itself, params.yaml as the study's profile leaves it, is the arm
`default`. A study that extends another has its arms, but those that it leaves out, and those that it lists itself.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from framefold.errors import UserError
from framefold.params.base import Group, validate, value_at
from framefold.params.profiles import merged, parse_override, set_value
from framefold.params.validation import validate_all
from framefold.study.machine_paths import absolute

FOLDER = Path("studies")
DEFAULT = "default"
NAME = r"^[a-z0-9_]+$"  # of a file
Kind = Literal["ladder", "default", "without", "added"]
LISTS = ("ladder", "without", "added")
Pool = Literal["labeled", "holdout", "test"]  # labeled: out of fold and holdout
Params = dict[str, Any]


class Change(Group):
    """One arm, as the file states it."""

    name: str = Field(pattern=NAME)
    what: str = Field(min_length=1)  # one line for the report
    overrides: dict[str, Any] = Field(default_factory=dict)  # dotted key of params.yaml: value

    @model_validator(mode="after")
    def changes_something(self) -> "Change":
        if not self.overrides and not getattr(self, "restore", ()):
            raise ValueError("changes nothing")
        return self


class Method(Change):
    """One method left out or added."""

    rival: str | None = None  # the arm that it is compared with; None: the recipe
    verdicts: list[Pool] | None = None  # those of the study's parts that can judge it; None: all
    seeds: list[int] | None = Field(
        None, min_length=1
    )  # None: those of its list; an extending study does not inherit them


class Rung(Change):
    restore: list[str] = Field(default_factory=list)  # dotted keys that go back to the recipe's value


class SeedLists(Group):
    """Seeds of the arms by kind. An arm also has those of the arms held against it, `default` those of all."""

    ladder: list[int] = Field(min_length=1)
    without: list[int] = Field(min_length=1)
    added: list[int] = Field(min_length=1)


class ResamplingParams(Group):
    resamples: PositiveInt  # of the paired bootstrap
    seed: int


class Study(Group):
    dataset: str = Field(pattern=NAME)
    profile: str | None  # profiles/<name>.yaml is the recipe; null: params.yaml as it is
    overrides: dict[str, Any]  # of all arms: what makes the study affordable
    seeds: SeedLists
    bootstrap: ResamplingParams
    ladder: list[Rung]
    without: list[Method]
    added: list[Method]
    verdicts: list[Pool]  # parts by which the report says whether a method helps
    optimism: list[str] = Field(default_factory=list)  # arms of which the report says how optimistic out of fold is

    @model_validator(mode="after")
    def each_name_once_and_no_other(self) -> "Study":
        names = [DEFAULT, *(change.name for change in (*self.ladder, *self.without, *self.added))]
        if double := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several arms are called {', '.join(double)}")
        if unknown := sorted(set(self.optimism) - set(names)):
            raise ValueError(f"optimism: no arms {', '.join(unknown)}")
        rivals = {method.rival for method in (*self.without, *self.added) if method.rival}
        if unknown := sorted(rivals - set(names)):
            raise ValueError(f"rival: no arms {', '.join(unknown)}")
        return self


@dataclass(frozen=True, eq=False)
class Arm:
    """All that a run needs but the seed, and what the arm is compared with."""

    name: str
    kind: Kind
    what: str
    params: Params
    seeds: tuple[int, ...]
    rival: str | None  # ladder: the rung before; without, added: the recipe, unless they name another; None: nothing
    verdicts: tuple[Pool, ...]  # parts by which the report says whether it helps


class Extension(Group):
    """What a study says of one that it extends. Arms that it lists itself come after the other's of the same list; all
    else that it states stands in place of the other's."""

    extends: str = Field(pattern=NAME)
    changes: dict[str, dict[str, Any]] = Field(
        default_factory=dict
    )  # arm: its keys in place of the other's, `overrides` to join the other's
    leave_out: list[str] = Field(default_factory=list)  # arms


def read_study(name: str, root: Path) -> Study:
    """`studies/<name>.yaml` under `root`. UserError: there is none, or what is wrong with it."""
    path = root / FOLDER / f"{name}.yaml"
    content = read_yaml(path, name)
    if isinstance(content, dict) and "extends" in content:
        own = {key: content.pop(key) for key in Extension.model_fields if key in content}
        extension = validate(Extension, own, name, path)
        base = extended(extension, path)
        longer = {kind: base[kind] + content[kind] for kind in LISTS if isinstance(content.get(kind), list)}
        content = base | content | longer
    return validate(Study, content, name, path)


def read_yaml(path: Path, name: str) -> Any:
    try:
        return YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = ", ".join(sorted(path.stem for path in path.parent.glob("*.yaml"))) or "no studies there"
        raise UserError(f"study {name}: not in {path.parent}/ ({names})") from None
    except (OSError, YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None


def extended(extension: Extension, path: Path) -> Params:
    """The study that `path` extends, as its file has it, with arms changed and left out. UserError: no such arms."""
    other = path.with_stem(extension.extends)
    base = read_yaml(other, extension.extends)
    if isinstance(base, dict) and "extends" in base:
        raise UserError(f"{path}: {extension.extends} extends {base['extends']}; extend that one")
    validate(Study, base, extension.extends, other)
    names = {change["name"] for kind in LISTS for change in base[kind]}
    if unknown := sorted({*extension.changes, *extension.leave_out} - names):
        raise UserError(f"{path}: {extension.extends} has no arms {', '.join(unknown)}")
    return base | {
        kind: [
            changed_arm(change, extension.changes.get(change["name"], {}))
            for change in base[kind]
            if change["name"] not in extension.leave_out
        ]
        for kind in LISTS
    }


def changed_arm(arm: Params, change: Params) -> Params:
    """Seeds of its own stay behind: they are for the machines that the other study was made on."""
    base = {key: value for key, value in arm.items() if key != "seeds"}
    return base | change | {"overrides": arm.get("overrides", {}) | change.get("overrides", {})}


def expand(study: Study, overrides: Sequence[str], root: Path) -> list[Arm]:
    """The arms in order: ladder, default, without, added. `overrides` (key=value) hold for all of them.

    UserError names the arm whose params could not be run. Paths in params become absolute, as a run has a folder of its
    own.
    """
    recipe = changed(_plain(merged(study.profile, (), root)), study.overrides, "overrides")
    given = dict(map(_key_and_value, overrides))
    recipe = absolute(changed(recipe, given, "command line"), root)
    ladder, without, added = _ladder(study, recipe), _single(study, "without", recipe), _single(study, "added", recipe)
    own_seeds = _seeds_of([*ladder, *without, *added])
    default = Arm(DEFAULT, "default", "the recipe", recipe, own_seeds, None, tuple(study.verdicts))
    arms = [*ladder, default, *without, *added]
    for arm in arms:
        validate_all(arm.params, f"study {study.dataset}, arm {arm.name}")
    return [replace(arm, seeds=_seeds_of([arm, *(other for other in arms if other.rival == arm.name)])) for arm in arms]


def _ladder(study: Study, recipe: Params) -> list[Arm]:
    arms: list[Arm] = []
    params = recipe
    for rung in study.ladder:
        params = restored(changed(params, rung.overrides, f"arm {rung.name}"), rung.restore, recipe)
        rival = arms[-1].name if arms else None
        seeds, verdicts = tuple(study.seeds.ladder), tuple(study.verdicts)
        arms.append(Arm(rung.name, "ladder", rung.what, params, seeds, rival, verdicts))
    return arms


def _single(study: Study, kind: Literal["without", "added"], recipe: Params) -> list[Arm]:
    methods, seeds = (study.without, study.seeds.without) if kind == "without" else (study.added, study.seeds.added)
    return [
        Arm(
            name=each.name,
            kind=kind,
            what=each.what,
            params=changed(recipe, each.overrides, f"arm {each.name}"),
            seeds=tuple(each.seeds or seeds),
            rival=each.rival or DEFAULT,
            verdicts=tuple(pool for pool in study.verdicts if each.verdicts is None or pool in each.verdicts),
        )
        for each in methods
    ]


def _seeds_of(arms: Sequence[Arm]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(seed for arm in arms for seed in arm.seeds))


def changed(params: Params, overrides: Mapping[str, Any], source: str) -> Params:
    """A copy of `params` with dotted keys set. UserError: a key that is not there."""
    copied = copy.deepcopy(params)
    for key, value in overrides.items():
        try:
            set_value(copied, key.split("."), copy.deepcopy(value))
        except UserError as error:
            raise UserError(f"study, {source}: {error}") from None
    return copied


def restored(params: Params, keys: Sequence[str], recipe: Params) -> Params:
    return changed(params, {key: value_at(recipe, key, "study, restore") for key in keys}, "restore")


def _key_and_value(override: str) -> tuple[str, Any]:
    keys, value = parse_override(override)
    return ".".join(keys), _plain(value)


def _plain(value: Any) -> Any:
    """Values as ruamel's round trip reads them -> plain ones."""
    if isinstance(value, (CommentedMap, dict)):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (CommentedSeq, list)):
        return [_plain(inner) for inner in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value
