"""Working a study off: which runs are left, in which order, how long they may take; each result is recorded at once."""

import logging
import statistics
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from framefold.errors import UserError
from framefold.study.arms import Arm, Params
from framefold.study.digests import params_digest
from framefold.study.records import FINAL, FOLDER, MODELS, OPTIMISM, Made, Records
from framefold.study.workspace import Clone, RunFailedError, git

log = logging.getLogger(__name__)
MadeRuns = dict[tuple[str, int], Made]


@dataclass(frozen=True)
class Run:
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm.name}-{self.seed}"

    @property
    def params(self) -> Params:
        return self.arm.params | {"seed": self.seed}


def planned(arms: Sequence[Arm], wanted: Collection[str], seeds: Sequence[int]) -> list[Run]:
    """All arms with the first seed, then all with the next: a study that is cut short is even over the arms.

    DVC's run-cache makes any order cost the same. wanted: names or kinds of arms, none: all. seeds: none: the study's.
    """
    known = {arm.name for arm in arms} | {arm.kind for arm in arms}
    if unknown := sorted(set(wanted) - known):
        raise UserError(f"ablate: no arms {', '.join(unknown)}; there are {', '.join(arm.name for arm in arms)}")
    chosen = [arm for arm in arms if not wanted or {arm.name, arm.kind} & set(wanted)]
    order = dict.fromkeys(seed for arm in chosen for seed in (seeds or arm.seeds))
    return [Run(arm, seed) for seed in order for arm in chosen if seed in (seeds or arm.seeds)]


@dataclass(frozen=True)
class Left:
    """What is still to be run, and which of it replaces results of other params or code."""

    runs: list[Run]
    stale: list[Run]
    begun: dict[int, set[str]]  # seed: kinds of machine that results with it were made on

    def on(self, machine: str) -> list[Run]:
        """Those that may run on this kind of machine: their seed was not begun on another one."""
        return [run for run in self.runs if machine in self.begun.get(run.seed, {machine})]


def left(runs: Sequence[Run], made: MadeRuns, code: str, keep_stale: bool, begun: dict[int, set[str]]) -> Left:
    """keep_stale: results of other params or code are good enough."""
    there = {run: made.get((run.arm.name, run.seed)) for run in runs}
    fresh = {run for run, result in there.items() if result and is_fresh(run, result, code)}
    stale = [run for run, result in there.items() if result and run not in fresh]
    kept = fresh | set(stale if keep_stale else [])
    return Left([run for run in runs if run not in kept], [] if keep_stale else stale, begun)


def machines_by_seed(runs: Sequence[Run], made: MadeRuns) -> dict[int, set[str]]:
    """The kinds of machine that results of these runs were made on."""
    found: dict[int, set[str]] = {}
    for run in runs:
        found.setdefault(run.seed, set()).add(made[run.arm.name, run.seed].machine)
    return found


def is_fresh(run: Run, made: Made, code: str) -> bool:
    return (made.params, made.code) == (params_digest(run.params), code)


def expected_seconds(run: Run, made: MadeRuns, machine: str | None = None) -> float | None:
    """As long as the arm last took, if possible on this kind of `machine`, else what half of the study's runs took at
    most; None: there were none."""
    own = [result for (arm, _), result in made.items() if arm == run.arm.name]
    if own:
        return ([result for result in own if result.machine == machine] or own)[-1].seconds
    return statistics.median(result.seconds for result in made.values()) if made else None


def expected_minutes(runs: Sequence[Run], made: MadeRuns, machine: str | None = None) -> str:
    seconds = [expected_seconds(run, made, machine) for run in runs]
    known = [each for each in seconds if each is not None]
    return f"about {sum(known) / 60:.0f} minutes" if len(known) == len(seconds) else "nobody knows how long"


@dataclass
class Budget:
    """Time to start runs in."""

    minutes: float | None  # None: no end

    def __post_init__(self) -> None:
        self.started = time.monotonic()

    def has_room(self, seconds: float | None) -> bool:
        """Whether a run of so many seconds would end in time; one of unknown length may start while there is any."""
        if self.minutes is None:
            return True
        return time.monotonic() - self.started + (seconds or 0.0) < self.minutes * 60


@dataclass(frozen=True)
class Place:
    """What runs are made with."""

    code: str  # digest
    machine: str  # kind


def work_off(
    runs: Sequence[Run], clone: Clone, records: Records, place: Place, budget: Budget, commit: bool
) -> list[Run]:
    """Run what the budget has room for. A run that fails is shown and passed over; returned are those that failed."""
    failed = []
    for number, run in enumerate(runs, start=1):
        made = records.made()
        expected = expected_seconds(run, made, place.machine)
        if not budget.has_room(expected):
            rest = runs[number - 1 :]
            names = ", ".join(each.name for each in rest)
            log.info(f"ablate: out of time; {len(rest)} left, {expected_minutes(rest, made, place.machine)}: {names}")
            break
        about = "" if expected is None else f", about {expected / 60:.1f} minutes"
        log.info(f"ablate {records.dataset} {run.name}: {number} of {len(runs)}{about}")
        if number > 1 and run.seed != runs[number - 2].seed:
            make_room(clone)
        try:
            perform(run, clone, records, place)
        except RunFailedError as error:
            log.error(f"ablate {records.dataset} {run.name}: failed, {error}")
            failed.append(run)
            continue
        if commit:
            commit_results(run, records)
    return failed


def make_room(clone: Clone) -> None:
    """A seed is done with. Room that could not be made is no failure, until there is none left."""
    try:
        clone.tidy()
    except RunFailedError as error:
        log.warning(f"ablate: the cache was not tidied, {error}")


def perform(run: Run, clone: Clone, records: Records, place: Place) -> None:
    started = time.monotonic()
    outcome = clone.run(run.name, run.params)
    seconds = time.monotonic() - started
    made = Made(params_digest(run.params), place.code, clone.commit[:12], place.machine, seconds)
    records.add(run.arm.name, run.seed, made, outcome)
    own = [row for row in records.rows() if (row["arm"], row["seed"]) == (run.arm.name, str(run.seed))]
    scores = ", ".join(f"{row['split']} {float(row['score']):.4f}" for row in own)
    log.info(f"ablate {records.dataset} {run.name}: {scores} in {seconds / 60:.1f} minutes")


def commit_results(run: Run, records: Records) -> None:
    """The results' files and nothing else, whatever is staged besides."""
    paths = [path.as_posix() for path in (FINAL, MODELS, OPTIMISM, FOLDER / records.dataset)]
    git(records.root, "add", "--", *paths)
    if git(records.root, "status", "--porcelain", "--", *paths):
        message = f"Ablation: {records.dataset}, {run.arm.name}, seed {run.seed}"
        git(records.root, "commit", "--quiet", "--message", message, "--", *paths)
