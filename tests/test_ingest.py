"""Annotations to samples. Run: .venv/bin/python -m pytest tests/test_ingest.py"""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mini_root import MiniRoot, words

from framefold.data.annotations import CHUNK, Record, Rejection, iterate_array, normalize, read_annotations
from framefold.data.samples import SCHEMA
from framefold.errors import UserError
from stages import ingest


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MiniRoot:
    return MiniRoot(tmp_path, monkeypatch)


def one(tmp_path: Path, value: object, labeled: bool = False) -> Record | Rejection:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([value]), encoding="utf-8")
    return next(read_annotations(path, labeled, 100))


def test_samples_keep_order_ids_and_labels(mini: MiniRoot) -> None:
    """Row order is that of the annotation file, ids beyond int64 are strings, labels index the sorted categories."""
    ids = [mini.add("labeled", category) for category in ("0301", "0100", "0301", "0200")]
    mini.fill(labeled=0).finish()
    ingest.main()
    table = pq.read_table("data/samples/labeled.parquet")
    assert table.schema.equals(SCHEMA)
    assert table.column("id").to_pylist() == ids
    assert table.column("label").to_pylist() == [2, 0, 2, 1]
    categories = json.loads(Path("data/samples/categories.json").read_text())
    assert categories == {"categories": ["0100", "0200", "0301"], "level1": ["01", "02", "03"]}
    assert set(pq.read_table("data/samples/test.parquet").column("label").to_pylist()) == {-1}


def test_given_label_map_decides_what_a_label_means(mini: MiniRoot) -> None:
    """With data.categories, labels index that file, classes without a sample included."""
    mini.add("labeled", "0301")
    mini.fill(labeled=0)
    Path("map.txt").write_text("0100  # food\n\n0200\n0301\n")
    mini.finish(data__categories="map.txt")
    ingest.main()
    assert pq.read_table("data/samples/labeled.parquet").column("label").to_pylist() == [2]


def test_ingest_twice_and_with_any_workers_gives_the_same_bytes(
    mini: MiniRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs do not depend on the number of processes."""
    monkeypatch.setattr("framefold.data.frame_hashes.POOL_FROM", 1)
    monkeypatch.setattr("framefold.data.frame_hashes.CHUNK", 7)
    mini.fill().finish()
    outputs = []
    for workers in ("1", "2"):
        monkeypatch.setenv("FRAMEFOLD_WORKERS", workers)
        ingest.main()
        paths = [*sorted(Path("data/samples").iterdir()), Path("data/rejected.parquet"), Path("metrics/ingest.json")]
        outputs.append([path.read_bytes() for path in paths])
    assert outputs[0] == outputs[1]


def test_text_is_normalised() -> None:
    """NFKC, invisible characters gone, spaces collapsed, cut; twice is as good as once."""
    text = "ＡＢＣ\u200b　１２３\t\n  ①\x07 end\ufeff"
    assert normalize(text, 100) == "ABC 123 1 end"
    assert normalize(normalize(text, 100), 100) == normalize(text, 100)
    assert normalize("a b" * 100, 5) == "a ba"


def test_ocr_lines_are_said_once_in_order_of_time(tmp_path: Path) -> None:
    """Repeats of a line over time are dropped, whatever their order in the file."""
    ocr = [{"time": 5, "text": "二 "}, {"time": 0, "text": "一"}, {"time": 9, "text": "一"}, {"time": 9, "text": "三"}]
    record = one(tmp_path, {"id": "1", "title": "", "asr": "", "ocr": ocr})
    assert isinstance(record, Record)
    assert record.ocr == "一 二 三"


def test_absent_and_null_text_is_legal(tmp_path: Path) -> None:
    """Missing text is a sample, not a rejection."""
    assert one(tmp_path, {"id": "1", "title": None}) == Record("1", "", "", "", None)


def test_reader_does_not_care_where_the_chunks_end(tmp_path: Path) -> None:
    """Records of every length across the borders of the read window come out whole."""
    values = [{"id": str(n), "text": "视频" * (n * 997 % 90_000)} for n in range(40)] + [12, "x", None, -1.5e3]
    path = tmp_path / "a.json"
    text = json.dumps(values, ensure_ascii=False, indent=1)
    assert len(text.encode()) > 3 * CHUNK
    path.write_text("\ufeff" + text, encoding="utf-8")
    assert list(iterate_array(path)) == values


@pytest.mark.parametrize(
    "content", ["", "{}", "[1, 2", "[1 2]", "[1,]", "[1] x", '[{"a": 1', '["abc', "[nope]", "[" * 99_999]
)
def test_broken_file_is_one_line_with_file_and_place(tmp_path: Path, content: str) -> None:
    """A file that is no JSON array stops the run and says where."""
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"a\.json: broken JSON at character \d+.*copy or repair") as error:
        list(iterate_array(path))
    assert "\n" not in str(error.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """An absent annotation file is an error with its path."""
    with pytest.raises(UserError, match=r"gone\.json"):
        list(iterate_array(tmp_path / "gone.json"))


def test_too_many_rejects_fail_the_run_and_can_be_looked_at(mini: MiniRoot, capsys: pytest.CaptureFixture[str]) -> None:
    """Above ingest.max_rejected the run ends with counts by reason, and rejected.parquet is there to read."""
    mini.fill()
    for _ in range(5):
        mini.add("test", title=7)
    mini.finish(ingest__max_rejected=0.01)
    with pytest.raises(SystemExit):
        ingest.main()
    error = capsys.readouterr().err
    assert "5 of 33 records" in error
    assert "5 title is a number" in error
    assert pq.read_table("data/rejected.parquet").num_rows == 5
    assert not Path("data/samples").exists()
    assert not list(Path("data").glob(".*"))


def test_metrics_count_what_came_in(mini: MiniRoot) -> None:
    """Counts per split, rejects per reason, missing modalities, duplicates within and across splits."""
    mini.fill()
    copy = words(999)
    mini.add("labeled", title=copy)
    mini.add("unlabeled", title=copy)
    mini.add("test", title="", frames=[])
    mini.add("test", asr=[])
    mini.finish()
    ingest.main()
    counts = json.loads(Path("metrics/ingest.json").read_text())
    assert counts["records"] == {"labeled": 21, "unlabeled": 5, "test": 6}
    assert counts["rejected"]["test"] == {"asr is a list, not a string": 1}
    assert counts["missing"]["test"]["everything"] == 1
    assert counts["duplicates"] == {"groups": 1, "videos": 2, "groups_across_splits": 1, "largest": 2}


def test_feature_layout_is_ingested_without_frames(mini: MiniRoot) -> None:
    """zip_feats: counts of frames come from the arrays, duplicates from text alone."""
    import io
    import shutil
    import zipfile

    import numpy as np

    mini.fill(labeled=6, others=2)
    shutil.rmtree(mini.root / "zip_frames")
    (mini.root / "zip_feats").mkdir()
    for split, records in mini.records.items():
        with zipfile.ZipFile(mini.root / "zip_feats" / f"{split}.zip", "w") as archive:
            for record in records:
                buffer = io.BytesIO()
                np.save(buffer, np.zeros((3, 4), np.float16))
                archive.writestr(f"{record['id']}.npy", buffer.getvalue())
    mini.finish()
    ingest.main()
    assert pq.read_table("data/samples/labeled.parquet").column("frames").to_pylist() == [3] * 6
