"""The report of a study, from the committed files alone: .venv/bin/python -m pytest tests/test_study_report.py"""

import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from small_study import CATEGORIES, SIZES, SmallStudy, labels_of, make, options, videos

from framefold.errors import UserError
from framefold.evaluation.metrics import official_scores, paired_difference
from framefold.study.arms import ResamplingParams
from framefold.study.command import report, run
from framefold.study.picture import Interval, Scale, draw
from framefold.study.records import Records
from framefold.study.worth import Difference, Results, Worth

BOOTSTRAP = ResamplingParams(resamples=300, seed=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> SmallStudy:
    study = make(tmp_path_factory.mktemp("study"))
    run(options(), study.root, study.commands)
    return study


@pytest.fixture
def study(finished: SmallStudy, tmp_path: Path) -> SmallStudy:
    """What git has, and no more: neither the clone nor the prepared outcomes."""
    ignored = shutil.ignore_patterns(".ablation", ".git")
    shutil.copytree(finished.root, tmp_path / "project", ignore=ignored)
    return SmallStudy(tmp_path / "project", tmp_path / "nothing")


def page(study: SmallStudy) -> str:
    report(options(), study.root)
    return (study.root / "docs/experiments.md").read_text(encoding="utf-8")


def row(text: str, arm: str) -> list[str]:
    """Cells of the first table row of an arm."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {arm} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def score(arm: str, seed: int, part: str) -> float:
    """From the labels that the outcome was prepared with."""
    rows = (videos().part == part) & (labels_of(arm, seed) >= 0)
    return official_scores(videos().label[rows], labels_of(arm, seed)[rows], CATEGORIES)["score"]


def test_scores_are_means_over_seeds_with_their_deviation(study):
    """Against a computation from the labels that were prepared."""
    both = [score("no_smoothing", seed, "test") for seed in (0, 1)]
    assert row(page(study), "no_smoothing")[2] == "2"
    assert row(page(study), "no_smoothing")[5] == f"{np.mean(both):.4f} ± {np.std(both, ddof=1):.4f}"


def test_a_method_left_out_is_worth_what_its_absence_costs(study):
    """default minus no_smoothing: positive, as for a method that is added and helps."""
    cell = row(page(study), "no_smoothing")[8]
    expected = np.mean([score("default", seed, "test") - score("no_smoothing", seed, "test") for seed in (0, 1)])
    assert float(cell.split(" ")[0]) == pytest.approx(expected, abs=6e-5)
    assert expected > 0.03


def test_the_verdict_follows_the_interval(study):
    text = page(study)
    assert row(text, "pgd")[9:11] == ["hurts, one seed", "hurts, one seed"]
    assert row(text, "averaging")[9:11] == ["helps", "helps"]
    assert row(text, "smoothing")[9:11] == ["nothing seen", "nothing seen"]
    assert row(text, "default")[9:11] == ["–", "–"]


def test_a_rung_is_compared_with_the_one_before_and_with_the_first(study):
    cells = row(page(study), "averaging")
    before, first = (
        np.mean([score("averaging", seed, "test") - score(rival, seed, "test") for seed in (0, 1)])
        for rival in ("smoothing", "bare")
    )
    assert float(cells[8].split(" ")[0]) == pytest.approx(before, abs=6e-5)
    assert float(cells[11].split(" ")[0]) == pytest.approx(first, abs=6e-5)


def test_arms_are_compared_on_the_videos_that_both_have(finished):
    """`bare` has out-of-fold labels of 100 videos only; beside them the holdout."""
    worth = Results(Records(finished.root, "tiny")).worth("smoothing", "bare", "labeled", BOOTSTRAP)
    rows = np.zeros(sum(SIZES.values()), dtype=bool)
    rows[:100] = rows[SIZES["out_of_fold"] : SIZES["out_of_fold"] + SIZES["holdout"]] = True
    differences = [
        np.subtract(
            *(
                official_scores(videos().label[rows], labels_of(arm, seed)[rows], CATEGORIES)["score"]
                for arm in ("smoothing", "bare")
            )
        )
        for seed in (0, 1)
    ]
    assert worth is not None
    assert worth.difference == pytest.approx(np.mean(differences))
    assert worth.spread == pytest.approx(np.std(differences, ddof=1))


def test_arms_are_compared_over_the_seeds_that_both_have(finished):
    worth = Results(Records(finished.root, "tiny")).worth("pgd", "default", "test", BOOTSTRAP)
    assert worth is not None
    assert worth.difference == pytest.approx(score("pgd", 0, "test") - score("default", 0, "test"))
    assert worth.spread is None


def test_runs_of_two_kinds_of_machine_are_not_held_against_each_other(study):
    """Of the two seeds one is left; the scores themselves are means over both."""
    path = study.root / "metrics/ablation.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    moved = [line.replace("AVX2", "AMX") if line.startswith("tiny,no_smoothing,1,") else line for line in lines]
    assert moved != lines
    path.write_text("\n".join(moved) + "\n", encoding="utf-8")
    worth = Results(Records(study.root, "tiny")).worth("default", "no_smoothing", "test", BOOTSTRAP)
    assert worth is not None
    assert worth.each == (pytest.approx(score("default", 0, "test") - score("no_smoothing", 0, "test")),)
    text = page(study)
    assert row(text, "no_smoothing")[2] == "2"
    assert "±" not in row(text, "no_smoothing")[8]
    assert "(on AMX, AVX2; commits " in text


def test_seeds_that_disagree_or_stand_alone_are_told():
    assert Worth(0.02, 0.01, 0.03, (0.05, -0.01)).verdict == "helps, not with every seed"
    assert Worth(-0.02, -0.03, -0.01, (-0.02, -0.03)).verdict == "hurts"
    assert Worth(0.02, 0.0, 0.04, (0.02, 0.02)).verdict == "nothing seen"
    assert Worth(0.02, 0.01, 0.04, (0.02,)).verdict == "helps, one seed"


def noisy(seed: int, runs: int, between: float, n: int = 800) -> Difference:
    """Runs of two arms that are worth the same on average; `between`: how far the accuracy of a run strays."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, len(CATEGORIES), n)
    accuracy = 0.6 + between * rng.normal(size=(2, runs))
    hits = rng.random((2, runs, n)) < accuracy[..., None]
    labels = np.where(hits, truth, rng.integers(0, len(CATEGORIES), (2, runs, n)))
    return Difference(truth, labels[0], labels[1], CATEGORIES)


@pytest.mark.parametrize("between", [0.0, 0.05])
def test_intervals_cover_what_seeds_and_videos_do(between):
    """Of arms that are worth the same, about one in twenty is called a difference, however much seeds stray."""
    worths = [noisy(seed, runs=8, between=between).worth(BOOTSTRAP) for seed in range(40)]
    assert sum(worth.verdict != "nothing seen" for worth in worths) <= 7  # 2 on average; more once in 1,000


def test_seeds_that_stray_widen_the_interval_as_their_standard_error_does():
    """Against the sum of both variances: of the mean over resampled videos, and of the mean of so many seeds."""
    difference = noisy(1, runs=6, between=0.08)
    worth = difference.worth(ResamplingParams(resamples=4000, seed=0))
    pair = difference.truth, difference.first, difference.second, CATEGORIES
    videos_alone = paired_difference(*pair, 4000, 0)
    expected = np.hypot((videos_alone["high"] - videos_alone["low"]) / 3.92, worth.spread / 6**0.5)
    assert (worth.high - worth.low) / 3.92 == pytest.approx(expected, rel=0.1)
    assert worth.difference == pytest.approx(videos_alone["difference"])


@pytest.mark.parametrize("column", ["params", "code"])
def test_runs_of_other_params_or_code_are_left_out_and_named(study, caplog, column):
    rows = (study.root / "metrics/ablation.csv").read_text(encoding="utf-8").splitlines()
    place = rows[0].split(",").index(column)
    digest = next(line for line in rows if line.startswith("tiny,pgd,0,")).split(",")[place]
    changed = [line.replace(digest, "0" * 12) if line.startswith("tiny,pgd,") else line for line in rows]
    (study.root / "metrics/ablation.csv").write_text("\n".join(changed) + "\n", encoding="utf-8")
    text = page(study)
    assert "| pgd |" not in text
    assert "pgd-0: made with other params or code, left out" in caplog.text
    report(options(keep_stale=True), study.root)
    kept = (study.root / "docs/experiments.md").read_text(encoding="utf-8")
    assert "| pgd |" in kept
    assert "**1 of them were made with other params or code than the present ones.**" in kept


def test_models_of_the_recipe_and_the_linear_probe_stand_beside(study):
    text = page(study)
    mean = np.mean([score("default", seed, "test") for seed in (0, 1)])
    assert row(text, "linear probe, both")[3] == f"{mean:.3f} [0.100, 0.900]"


def test_optimism_stands_there_of_the_arms_that_the_study_names(study):
    table = page(study).partition("how optimistic out of fold is")[2]
    cells = row(table, "default")
    assert cells[3:6] == ["dual_stream", "+0.100 [-0.100, +0.300]", "+0.100 [-0.100, +0.300]"]
    assert "| pgd |" not in table


def test_a_second_report_replaces_the_first_and_nothing_else(study):
    first = page(study)
    assert first.startswith("# Experiments\n\nWhat was measured.\n")
    path = study.root / "docs/experiments.md"
    path.write_text(first.replace("| bare |", "| beer |") + "\n## After\n", encoding="utf-8")
    assert page(study) == first + "\n## After\n"


def test_two_datasets_have_a_place_each(study):
    path = study.root / "docs/experiments.md"
    other = "<!-- ablation of other -->\n| bare |\n<!-- end of the ablation of other -->"
    path.write_text(f"# Experiments\n\n{other}\n", encoding="utf-8")
    assert other in page(study)
    assert other in page(study)


def test_the_report_is_the_same_every_time(study):
    picture = study.root / "docs/ablation-tiny.svg"
    assert (page(study), picture.read_bytes()) == (page(study), picture.read_bytes())


def test_labels_that_do_not_give_the_scores_of_the_table_are_refused(study):
    folder = study.root / "metrics/ablation/tiny"
    shutil.copy(folder / "bare-0.parquet", folder / "default-0.parquet")
    with pytest.raises(UserError, match=r"default-0\.parquet: scores .* the table says"):
        page(study)


def test_without_results_there_is_no_report(study):
    shutil.rmtree(study.root / "metrics")
    with pytest.raises(UserError, match="nothing is recorded of tiny"):
        page(study)
    assert "ablation" not in (study.root / "docs/experiments.md").read_text()


def test_an_unfinished_study_is_reported_as_far_as_it_goes(study):
    table = study.root / "metrics/ablation.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if not line.startswith(("tiny,no_smoothing", "tiny,bare"))))
    text = page(study)
    assert "| no_smoothing |" not in text
    assert row(text, "smoothing")[8] == "–"


# The picture


def test_the_picture_shows_every_interval_where_it_belongs(study):
    page(study)
    root = ElementTree.parse(study.root / "docs/ablation-tiny.svg").getroot()
    names = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"smoothing", "averaging", "no_smoothing", "pgd"} <= set(names)
    assert "bare" not in names


def test_a_point_lies_between_the_ends_of_its_interval_and_zero_has_a_line():
    picture = draw([Interval("g", "a<b", [(0.01, -0.01, 0.04), None])], ["labelled", "test"])
    root = ElementTree.fromstring(picture)
    space = "{http://www.w3.org/2000/svg}"
    point = list(root.iter(f"{space}circle"))[-1]
    line = next(each for each in root.iter(f"{space}line") if each.get("stroke-width") == "2")
    low, at, high = (float(str(value)) for value in (line.get("x1"), point.get("cx"), line.get("x2")))
    assert (at - low) / (high - low) == pytest.approx(0.4, abs=0.01)
    zero = next(each for each in root.iter(f"{space}line") if each.get("stroke") == "#444444")
    assert (float(str(zero.get("x1"))) - low) / (high - low) == pytest.approx(0.2, abs=0.01)


def test_ticks_are_few_round_numbers_with_zero_among_them():
    for low, high in ((-0.003, 0.004), (-0.02, 0.3), (-0.2, 0.01)):
        ticks = Scale(low, high).ticks()
        assert 3 <= len(ticks) <= 10
        assert 0 in ticks
        assert low <= min(ticks)
        assert max(ticks) <= high
