"""A study as Markdown tables and a picture, from the committed files alone, so that it can be told on any machine.

The tables stand in docs/experiments.md between two comments; what was there between them is replaced.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from framefold.errors import UserError
from framefold.storage import write_aside
from framefold.study.arms import DEFAULT, Arm, Pool, ResamplingParams, Study
from framefold.study.outcome import ONE_FOLD
from framefold.study.picture import Interval, draw
from framefold.study.records import INTERVAL, SPLITS, Records, Row
from framefold.study.worth import Mean, Results, Worth, sides

PAGE = Path("docs/experiments.md")
TITLES = {
    "ladder": "From the bare model to the full recipe",
    "without": "The recipe without one method",
    "added": "The recipe with one method more",
}
METHOD = """Scores are means over seeds ± their standard deviation. What a method is worth: the score with it minus the
score without it, mean over the seeds that both arms have, each pair from the same kind of machine (so it need not be
the difference of two scores in the table, which may be means over other seeds); in brackets the 95 % interval of a
paired bootstrap over videos and seeds ({resamples} resamples; of one seed, over videos alone), then ± the standard
deviation over seeds. A method helps or hurts where the interval excludes zero; of {arms} arms some will by luck. No
verdict stands where a part cannot judge an arm: it was chosen by these labels, or learned more of them than its rival.
Test is only reported: nothing was chosen by it. An arm of one fold has an out-of-fold score on that fold's videos."""
NONE = "–"
DRAWN: tuple[Pool, ...] = ("labeled", "test")
PLACES: dict[Pool, str] = {"labeled": "out of fold + holdout", "holdout": "holdout", "test": "test"}


def write_report(study: Study, arms: Sequence[Arm], root: Path, runs: Collection[tuple[str, int]], stale: int) -> None:
    """Of `runs`, (arm, seed), of which so many are `stale`. UserError: there are none, or the records contradict each
    other."""
    results = Results(Records(root, study.dataset), runs)
    known = [arm for arm in arms if results.seeds(arm.name)]
    if not known:
        raise UserError(
            f"ablate: nothing is recorded of {study.dataset} with the present params and code; run "
            f"`framefold ablate {study.dataset}` first, give --report the same KEY=VALUE, or --keep-stale"
        )
    picture = Path(f"docs/ablation-{study.dataset}.svg")
    tables = page(study, known, results, picture, stale)
    drawn = draw(intervals(known, results, study.bootstrap), [PLACES[pool] for pool in DRAWN])
    put_between_markers(root / PAGE, study.dataset, tables)
    with write_aside(root / picture) as aside:
        aside.write_text(drawn, encoding="utf-8")


def page(study: Study, arms: Sequence[Arm], results: Results, picture: Path, stale: int) -> str:
    parts = [introduction(study, arms, results, stale), f"![What each method is worth]({picture.name})"]
    for kind, title in TITLES.items():
        own = [arm for arm in arms if arm.kind == kind or (kind == "without" and arm.name == DEFAULT)]
        if any(arm.kind == kind for arm in own):
            parts += [f"### {study.dataset}: {title.lower()}", table(own, results, study, kind == "ladder")]
    if models := models_table(results.counting(results.records.model_rows())):
        parts += [f"### {study.dataset}: models of the recipe, and the linear probe", models]
    named = [arm for arm in arms if arm.name in study.optimism]
    if optimism := optimism_table(named, results.counting(results.records.optimism_rows())):
        parts += [f"### {study.dataset}: how optimistic out of fold is", optimism]
    return "\n\n".join(parts)


def introduction(study: Study, arms: Sequence[Arm], results: Results, stale: int) -> str:
    rows = results.rows.values()
    commits = {row["commit"] for row in rows}
    hours = sum(float(row["seconds"]) for row in {(r["arm"], r["seed"]): r for r in rows}.values()) / 3600
    runs = len({(row["arm"], row["seed"]) for row in rows})
    machines = ", ".join(sorted({row["machine"] for row in rows}))
    mixed = f" **{stale} of them were made with other params or code than the present ones.**" if stale else ""
    return (
        f"`framefold ablate {study.dataset}` made these {runs} runs in {hours:.1f} hours "
        f"(on {machines}; commits {', '.join(sorted(commits))}), `framefold ablate {study.dataset} --report` these "
        f"tables; what these need besides stands in studies/{study.dataset}.yaml.{mixed}\n"
        f"{METHOD.format(resamples=study.bootstrap.resamples, arms=len(arms))}"
    )


def table(arms: Sequence[Arm], results: Results, study: Study, ladder: bool) -> str:
    """A row an arm; a ladder also says what all rungs so far are worth."""
    first, bootstrap = arms[0].name, study.bootstrap
    columns = ["arm", "what", "seeds", *(split.replace("_", " ") for split in SPLITS)]
    columns += [f"worth, {place}" for place in PLACES.values()]
    columns += [f"verdict, {PLACES[pool]}" for pool in study.verdicts]
    rows = []
    for arm in arms:
        what = arm.what if arm.rival in (None, DEFAULT) or ladder else f"{arm.what}; held against {arm.rival}"
        cells = [arm.name, what, str(len(results.seeds(arm.name)))]
        cells += [score_cell(results.score(arm.name, split)) for split in SPLITS]
        pair = sides(arm)
        worths = {pool: results.worth(*pair, pool, bootstrap) if pair else None for pool in PLACES}
        cells += [worth_cell(worth) for worth in worths.values()]
        cells += [verdict(worths[pool], pool in arm.verdicts) for pool in study.verdicts]
        if ladder:
            so_far = results.worth(arm.name, first, "test", bootstrap) if arm.name != first else None
            cells.append(worth_cell(so_far))
        rows.append(cells)
    return markdown([*columns, *(["since the first, test"] if ladder else [])], rows)


def verdict(worth: Worth | None, may_judge: bool) -> str:
    return worth.verdict if worth and may_judge else NONE


def models_table(rows: Sequence[Row]) -> str:
    """Of the recipe; means over seeds, of the scores and of the ends of their intervals."""
    own = [row for row in rows if row["arm"] == DEFAULT]
    names = sorted({row["model"] for row in own}, key=lambda name: (name.startswith("probe"), name))
    if not names:
        return ""
    cells = [
        [model_name(name), *(interval_cell([r for r in own if (r["model"], r["split"]) == (name, s)]) for s in SPLITS)]
        for name in names
    ]
    note = (
        "Out of fold each video is judged by one model, on holdout and test an architecture's score is that of its "
        "folds' blend:\ncompare out of fold with the mean of single fold models."
    )
    return f"{note}\n\n{markdown(['model', *(split.replace('_', ' ') for split in SPLITS)], cells)}"


def optimism_table(arms: Sequence[Arm], rows: Sequence[Row]) -> str:
    """Means over seeds, of the differences and of the ends of their intervals."""
    cells = []
    for arm in arms:
        own = [row for row in rows if row["arm"] == arm.name]
        for arch in dict.fromkeys(row["arch"] for row in own):
            parts = [[row for row in own if (row["arch"], row["split"]) == (arch, split)] for split in SPLITS[1:]]
            seeds = len({row["seed"] for row in own})
            cells.append([arm.name, arm.what, str(seeds), arch, *map(optimism_cell, parts)])
    if not cells:
        return ""
    note = (
        "The out-of-fold score of an architecture, moved to the other part's size, minus the mean score of its single "
        "fold models there:\none model a video on both sides, before class weights. What arms without pseudo-labels "
        "show is the difference between the parts, what others\nshow beyond that is optimism."
    )
    columns = ["arm", "what", "seeds", "architecture", *(f"against {split}" for split in SPLITS[1:])]
    return f"{note}\n\n{markdown(columns, cells)}"


def optimism_cell(rows: Sequence[Row]) -> str:
    if not rows:
        return NONE
    difference, low, high = (np.mean([float(row[name]) for row in rows]) for name in INTERVAL)
    return f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"


def model_name(name: str) -> str:
    if name.endswith(f"_{ONE_FOLD}"):
        return f"{name.removesuffix(f'_{ONE_FOLD}')}, mean of single fold models"
    return name.replace("probe_", "linear probe, ").replace("best_fold", "best single fold model")


def interval_cell(rows: Sequence[Row]) -> str:
    if not rows:
        return NONE
    score, low, high = (np.mean([float(row[name]) for row in rows]) for name in ("score", "score_low", "score_high"))
    return f"{score:.3f} [{low:.3f}, {high:.3f}]"


def score_cell(mean: Mean | None) -> str:
    if mean is None:
        return NONE
    return f"{mean.value:.4f}" + ("" if mean.spread is None else f" ± {mean.spread:.4f}")


def worth_cell(worth: Worth | None) -> str:
    if worth is None:
        return NONE
    text = f"{worth.difference:+.4f} [{worth.low:+.4f}, {worth.high:+.4f}]"
    return text + ("" if worth.spread is None else f" ± {worth.spread:.4f}")


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def intervals(arms: Sequence[Arm], results: Results, bootstrap: ResamplingParams) -> list[Interval]:
    """For the picture: what each arm's method is worth, on the labelled videos and on test."""
    found = []
    for arm in arms:
        pair = sides(arm)
        if pair is None:
            continue
        worths = [results.worth(*pair, pool, bootstrap) for pool in DRAWN]
        ends = [(worth.difference, worth.low, worth.high) if worth else None for worth in worths]
        found.append(Interval(TITLES[arm.kind], arm.name, ends))
    return found


def put_between_markers(path: Path, dataset: str, text: str) -> None:
    """In place of what is there; at the end of the page, under a heading, where the markers are missing."""
    begin, end = f"<!-- ablation of {dataset} -->", f"<!-- end of the ablation of {dataset} -->"
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    block = f"{begin}\n{text}\n{end}"
    after, found = re.subn(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: block, before, count=1, flags=re.DOTALL)
    if not found:
        after = f"{before.rstrip()}\n\n## Ablation: {dataset}\n\n{block}\n"
    with write_aside(path) as aside:
        aside.write_text(after, encoding="utf-8")
