"""`framefold ablate`: run what is left of a study, or tell what is left, or report what there is."""

import contextlib
import logging
import signal
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from framefold.errors import UserError
from framefold.study.arms import Arm, expand, read_study
from framefold.study.digests import code_digest
from framefold.study.records import SCRATCH, Records
from framefold.study.runs import (
    Budget,
    Left,
    MadeRuns,
    Place,
    Run,
    expected_minutes,
    expected_seconds,
    is_fresh,
    left,
    machines_by_seed,
    planned,
    work_off,
)
from framefold.study.workspace import Clone, Commands, RunFailedError, Workspace, commands

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    study: str
    overrides: Sequence[str]  # key=value, of all arms
    workdir: Path | None  # None: .ablation/<dataset>
    cache: Path | None  # DVC's; None: the workdir's own
    budget: float | None  # minutes
    seeds: Sequence[int]  # none: the study's
    arms: Sequence[str]  # names or kinds; none: all
    jobs: int
    gpus: Sequence[str]
    keep_stale: bool
    commit: bool


def run(options: Options, root: Path = Path(), own: Commands | None = None) -> None:
    """Run what is left. UserError: a run failed; all others are done. `own`: what to start in place of the pipeline."""
    root = root.resolve()
    study, code = read_study(options.study, root), code_digest(root)
    records, rest = Records(root, study.dataset), what_is_left(options, root, code)
    if not rest.runs:
        log.info(f"ablate {study.dataset}: nothing left to run")
        return
    folder = options.workdir.resolve() if options.workdir else root / SCRATCH / study.dataset
    workspace = Workspace(root, folder, own or commands(options.jobs, options.gpus), options.cache)
    budget = Budget(options.budget)
    with ending_by_signal(), workspace.opened() as clone:
        machine = kind_of_machine(clone)
        here = rest.on(machine)
        tell_of_the_rest(study.dataset, rest, here, machine)
        failed = work_off(here, clone, records, Place(code, machine), budget, options.commit)
    if failed:
        raise UserError(f"ablate: {', '.join(each.name for each in failed)} failed, see above; the rest is recorded")


def kind_of_machine(clone: Clone) -> str:
    try:
        return clone.machine()
    except RunFailedError as error:
        raise UserError(f"ablate: nothing can be run here, {error}") from None


def tell_of_the_rest(dataset: str, rest: Left, here: Sequence[Run], machine: str) -> None:
    """What will be replaced, and which seeds go on elsewhere."""
    for run in here:
        if run in rest.stale:
            log.warning(f"ablate {dataset} {run.name}: made with other params or code, will be replaced")
    elsewhere = Counter(run.seed for run in rest.runs if run not in here)
    for seed, runs in elsewhere.items():
        log.warning(
            f"ablate {dataset}: {runs} runs of seed {seed} passed over, it was begun on {told(rest.begun[seed])} and "
            f"this is {machine}; run them there, or begin other --seeds"
        )


@contextlib.contextmanager
def ending_by_signal() -> Iterator[None]:
    """SIGTERM and SIGINT end what runs, which saves and stops, and then this process."""
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def what_is_left(options: Options, root: Path, code: str) -> Left:
    study = read_study(options.study, root)
    arms, made = expand(study, options.overrides, root), Records(root, study.dataset).made()
    counting = recorded(arms, made)
    if not options.keep_stale:
        counting = [run for run in counting if is_fresh(run, made[run.arm.name, run.seed], code)]
    runs = planned(arms, options.arms, options.seeds)
    return left(runs, made, code, options.keep_stale, machines_by_seed(counting, made))


def recorded(arms: Sequence[Arm], made: MadeRuns) -> list[Run]:
    return [Run(arm, seed) for arm in arms for (name, seed) in made if name == arm.name]


def told(machines: Collection[str]) -> str:
    return " and ".join(sorted(machines))


def show(options: Options, root: Path = Path()) -> None:
    """What would run, in order."""
    root = root.resolve()
    study, rest = read_study(options.study, root), what_is_left(options, root, code_digest(root))
    made = Records(root, study.dataset).made()
    for each in rest.runs:
        seconds = expected_seconds(each, made)
        length = "      ?" if seconds is None else f"{seconds / 60:7.1f}"
        notes = [f"begun on {told(rest.begun[each.seed])}"] if each.seed in rest.begun else []
        notes += ["made with other params or code"] if each in rest.stale else []
        log.info(" ".join([f"{length} min  {each.name}", *(f"({note})" for note in notes)]))
    log.info(f"ablate {study.dataset}: {len(rest.runs)} runs left, {expected_minutes(rest.runs, made)}")


def report(options: Options, root: Path = Path()) -> None:
    """Tables in docs/experiments.md and a picture, from what is recorded with the present params and code."""
    from framefold.study.report import write_report

    root = root.resolve()
    study, code = read_study(options.study, root), code_digest(root)
    arms = expand(study, options.overrides, root)
    made = Records(root, study.dataset).made()
    known = recorded(arms, made)
    stale = [run for run in known if not is_fresh(run, made[run.arm.name, run.seed], code)]
    counting = known if options.keep_stale else [run for run in known if run not in stale]
    for run in stale:
        what = "counted" if options.keep_stale else "left out"
        log.warning(f"ablate {study.dataset} {run.name}: made with other params or code, {what}")
    write_report(
        study, arms, root, {(run.arm.name, run.seed) for run in counting}, len(stale) if options.keep_stale else 0
    )
