"""Results of a study on disk: .venv/bin/python -m pytest tests/test_study_records.py"""

import csv
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_study import labels_of, videos, write_outcome

from framefold.errors import UserError
from framefold.study import records as module
from framefold.study.records import FINAL, MODELS, OPTIMISM, Made, Records

MADE = Made("p" * 12, "c" * 12, "d" * 12, "AVX2 fp32", 61.7)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path, "tiny")


def outcome(folder: Path, arm: str, seed: int = 0, scored=None) -> Path:
    write_outcome(folder / "outcome", scored or videos(), labels_of(arm, seed))
    return folder / "outcome"


def add(records: Records, arm: str, seed: int = 0) -> None:
    records.add(arm, seed, MADE, outcome(records.root, arm, seed))


def test_what_was_added_is_found_again(records):
    add(records, "default", 3)
    assert records.made() == {("default", 3): Made(MADE.params, MADE.code, MADE.commit, MADE.machine, 62)}


def test_a_result_takes_the_place_of_the_earlier_one_alone(records):
    for arm in ("bare", "default"):
        add(records, arm)
    records.add("bare", 0, Made("new", "new", "new", "new", 1), outcome(records.root, "default"))
    rows = {(row["arm"], row["split"]): row for row in records.rows()}
    assert len(records.rows()) == 6
    assert rows["bare", "test"]["score"] == rows["default", "test"]["score"]
    assert (rows["bare", "test"]["params"], rows["default", "test"]["params"]) == ("new", MADE.params)


def test_datasets_share_the_tables(records):
    add(records, "bare")
    before = (records.root / FINAL).read_text()
    other = Records(records.root, "other")
    add(other, "bare")
    assert (records.root / FINAL).read_text().startswith(before)
    assert {row["dataset"] for row in other.rows()} == {"other"}


def test_the_models_behind_the_ensemble_stand_in_a_table_of_their_own(records):
    add(records, "bare")
    assert [(row["model"], row["split"]) for row in records.model_rows()] == [
        (model, split) for model in ("dual_stream", "probe_both") for split in ("out_of_fold", "holdout", "test")
    ]


@pytest.mark.parametrize("victim", [FINAL, MODELS])
def test_an_interrupted_append_leaves_the_table_as_it_was(records, victim, monkeypatch):
    """The process is stopped when all is written aside and nothing is replaced yet."""
    add(records, "bare")
    before = (records.root / victim).read_bytes()
    replace = os.replace

    def interrupted(source, target):
        if Path(target).name == victim.name:
            raise SystemExit(143)
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(SystemExit):
        add(records, "default")
    assert (records.root / victim).read_bytes() == before
    monkeypatch.undo()
    assert list(records.made()) == [("bare", 0)]
    add(records, "default")
    assert list(records.made()) == [("bare", 0), ("default", 0)]
    assert len(list(csv.reader((records.root / victim).open()))) == 1 + 2 * (3 if victim == FINAL else 6)
    assert list((records.root / "metrics").rglob("*.aside")) == []


def test_a_row_of_scores_is_the_last_that_is_written(records, monkeypatch):
    """Where there is one, labels and models are there."""
    written = []
    monkeypatch.setattr(module, "copy", lambda source, target: written.append(target.name))
    monkeypatch.setattr(module, "replace_rows", lambda path, *rest: written.append(path.name))
    add(records, "bare")
    assert written == ["truth.parquet", "bare-0.parquet", MODELS.name, OPTIMISM.name, FINAL.name]


def test_results_on_other_videos_are_refused(records):
    add(records, "bare")
    before = (records.root / FINAL).read_bytes()
    with pytest.raises(UserError, match="scored on other videos or labels"):
        records.add("default", 0, MADE, outcome(records.root, "default", scored=videos(seed=8)))
    assert (records.root / FINAL).read_bytes() == before


def test_a_table_with_other_columns_is_refused(records):
    (records.root / "metrics").mkdir()
    (records.root / FINAL).write_text("dataset,arm,score\n")
    with pytest.raises(UserError, match="expected the columns dataset,arm,seed,split,score"):
        records.rows()


def test_labels_are_small_and_say_where_there_are_none(records):
    """A few KB of git a run."""
    add(records, "bare")
    path = records.labels_path("bare", 0)
    column = pq.read_table(path)["label"]
    expected = labels_of("bare", 0)
    assert column.null_count == (expected < 0).sum() > 0
    assert np.array_equal(column.fill_null(0).to_numpy(), expected.clip(min=0))
    assert path.stat().st_size < 4000
