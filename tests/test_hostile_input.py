"""Every hostile input ends as it should: rejected with a reason, a legal sample, or one line that says what to do.

Run: .venv/bin/python -m pytest tests/test_hostile_input.py
"""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mini_root import MiniRoot, jpeg
from PIL import Image

from framefold.data.frames import FrameError, decode_jpeg, read_frames
from framefold.data.manifest import SplitManifest
from framefold.data.samples import SPLITS
from stages import ingest, split

Plant = Callable[[MiniRoot], str]  # plants one hostile video among 28 good ones, returns its id


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MiniRoot:
    return MiniRoot(tmp_path, monkeypatch).fill()


def rejected_ids() -> dict[str, str]:
    table = pq.read_table("data/rejected.parquet").to_pydict()
    assert all(file.startswith("annotations/") for file in table["file"])
    return dict(zip(table["id"], table["reason"], strict=True))


def sample_ids() -> set[str]:
    return {i for name in SPLITS for i in pq.read_table(f"data/samples/{name}.parquet").column("id").to_pylist()}


def usable_frames(mini: MiniRoot, video_id: str) -> tuple[int, list[str]]:
    """What extract_frames gets of a test video: decodable frames, and reasons for those refused."""
    entry = SplitManifest(mini.root, "test").find(video_id)
    assert entry is not None
    found = read_frames(mini.root, entry, 32)
    reasons = [reason for _, reason in found.problems]
    count = 0
    for _, data in found.frames:
        try:
            decode_jpeg(data, 64)
            count += 1
        except FrameError as error:
            reasons.append(str(error))
    return count, reasons


def zip_bytes(change: Callable[[bytes], bytes]) -> Plant:
    def plant(mini: MiniRoot) -> str:
        video_id = mini.add("test")
        path = mini.write_zip("test", video_id, [jpeg(1), jpeg(2)])
        path.write_bytes(change(path.read_bytes()))
        return video_id

    return plant


def members(**content: bytes) -> Plant:
    def plant(mini: MiniRoot) -> str:
        video_id = mini.add("test")
        mini.write_members(
            "test", video_id, {name.replace("__", "../").replace("_", "."): data for name, data in content.items()}
        )
        return video_id

    return plant


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8000, 5000)).save(buffer, "JPEG")
    return buffer.getvalue()


HOSTILE_FRAMES: dict[str, tuple[Plant, int, str]] = {  # plant, usable frames left, part of the reason
    "truncated zip": (zip_bytes(lambda data: data[: len(data) // 2]), 0, "zip cannot be read"),
    "0-byte zip": (zip_bytes(lambda data: b""), 0, "0 bytes"),
    "zip without images": (members(notes_txt=b"no pictures"), 0, ""),
    "corrupt JPEG": (members(a_jpg=jpeg(1), b_jpg=jpeg(2)[:200], c_jpg=b"not a picture"), 1, "not a whole image"),
    "0-byte JPEG": (members(a_jpg=b"", b_jpg=jpeg(1)), 1, "not a whole image"),
    "40 MP bomb": (members(a_jpg=bomb(), b_jpg=jpeg(1)), 1, "8000 x 5000 pixels"),
    "../ member": (members(__up_jpg=jpeg(1), b_jpg=jpeg(2)), 1, "path leaves the zip"),
    "no frames at all": (lambda mini: mini.add("test", frames=[]), 0, ""),
}


@pytest.mark.parametrize("case", HOSTILE_FRAMES)
def test_bad_frames_leave_a_legal_sample(mini: MiniRoot, case: str) -> None:
    """The run goes on, the video stays as a sample (perhaps without frames), the reason goes to the frames' rejects."""
    plant, usable, reason = HOSTILE_FRAMES[case]
    video_id = plant(mini)
    mini.finish()
    ingest.main()
    assert video_id in sample_ids()
    assert not rejected_ids()
    count, reasons = usable_frames(mini, video_id)
    assert count == usable
    assert any(reason in text for text in reasons) if reason else not reasons


def record(split_name: str, **fields: object) -> Plant:
    return lambda mini: mini.add(split_name, **fields)  # type: ignore[arg-type] - wrong types are the point


def same_id_twice(mini: MiniRoot) -> str:
    return mini.add("unlabeled", id=mini.records["test"][0]["id"])


def without_zip(mini: MiniRoot) -> str:
    video_id = mini.add("test")
    mini.write_zip("test", video_id, []).unlink()
    return video_id


HOSTILE_RECORDS: dict[str, tuple[Plant, str]] = {
    "title of a wrong type": (record("test", title=["x"]), "title is a list"),
    "asr of a wrong type": (record("test", asr=3), "asr is a number"),
    "ocr of a wrong type": (record("test", ocr="text"), "ocr is a string"),
    "ocr line of a wrong type": (record("test", ocr=[{"time": "0", "text": "x"}]), "ocr holds something else"),
    "duplicate id": (same_id_twice, "duplicate id"),
    "malformed category": (record("labeled", category="12345"), "category_id is not 4 digits"),
    "no category": (record("labeled", category_id=None), "category_id is missing"),
    "zip missing from the manifest": (without_zip, "zip missing from frames.manifest"),
}


@pytest.mark.parametrize("case", HOSTILE_RECORDS)
def test_bad_record_is_rejected_with_its_reason(mini: MiniRoot, case: str) -> None:
    """Exactly the bad record goes to rejected.parquet; all others become samples."""
    plant, reason = HOSTILE_RECORDS[case]
    good = {item["id"] for records in mini.records.values() for item in records}
    video_id = plant(mini)
    mini.finish()
    ingest.main()
    rejects = rejected_ids()
    assert list(rejects) == [video_id]
    assert reason in rejects[video_id]
    assert sample_ids() == good


@pytest.mark.parametrize("video_id", [123, "", "12a", "1" * 21, "١٢", None, "../../etc"])
def test_bad_id_is_rejected(mini: MiniRoot, video_id: object) -> None:
    """Ids are strings of 1 to 20 ASCII digits; anything else never becomes a path."""
    mini.finish()
    mini.write_annotations(
        "test", json.dumps([*mini.records["test"], {"id": video_id, "title": "x"}, [], "x"]).encode()
    )
    ingest.main()
    reasons = pq.read_table("data/rejected.parquet").column("reason").to_pylist()
    assert reasons == [
        "id is not a string of 1 to 20 digits",
        "record is a list, not an object",
        "record is a string, not an object",
    ]


def test_unknown_category_is_rejected_when_a_label_map_is_given(mini: MiniRoot) -> None:
    """A well-formed category that the map does not hold is a reject."""
    video_id = mini.add("labeled", "9999")
    Path("map.txt").write_text("0000\n0100\n")
    mini.finish(data__categories="map.txt")
    ingest.main()
    assert rejected_ids() == {video_id: "unknown category"}


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"\\ud800"])
def test_invalid_utf8_rejects_its_record_alone(mini: MiniRoot, bad: bytes) -> None:
    """Broken bytes, or half a surrogate pair, in one title do not take the file with them."""
    video_id = mini.add("test", title="BAD")
    mini.finish()
    content = json.dumps(mini.records["test"], ensure_ascii=False).encode()
    mini.write_annotations("test", content.replace(b'"BAD"', b'"a' + bad + b'b"'))
    ingest.main()
    assert rejected_ids() == {video_id: "text is not valid UTF-8"}


def test_empty_text_is_a_legal_sample(mini: MiniRoot) -> None:
    """No title, no speech, no screen text: kept, and duplicates of nothing."""
    ids = [mini.add("test", title=title) for title in ("", " \u200b ", "")]
    mini.finish()
    ingest.main()
    table = pq.read_table("data/samples/test.parquet").to_pandas().set_index("id")
    assert set(table.loc[ids, "title"]) == {""}
    assert table.loc[ids, "group"].nunique() == 3


def test_class_with_one_sample_gets_a_fold_and_never_the_holdout(mini: MiniRoot) -> None:
    """A class of a single video is no obstacle; it trains wherever it does not validate."""
    video_id = mini.add("labeled", "0900")
    mini.finish()
    ingest.main()
    split.main()
    folds = dict(zip(*pq.read_table("data/folds.parquet", columns=["id", "fold"]).to_pydict().values(), strict=True))
    assert 0 <= folds[video_id] < 5


def test_zip_changed_after_the_manifest_says_to_refresh_it(mini: MiniRoot, capsys: pytest.CaptureFixture[str]) -> None:
    """The run ends with one line that names the zip and the command."""
    mini.finish()
    video_id = mini.records["test"][0]["id"]
    mini.write_zip("test", video_id, [jpeg(77)])
    with pytest.raises(SystemExit):
        ingest.main()
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert video_id in lines[0]
    assert "framefold manifest" in lines[0]
