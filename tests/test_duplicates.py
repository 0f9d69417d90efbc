"""What counts as the same video twice. Run: .venv/bin/python -m pytest tests/test_duplicates.py"""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from mini_root import PARAMS as PARAMS_FILE
from mini_root import MiniRoot, jpeg, words
from PIL import Image, ImageEnhance

from framefold.data.duplicates import candidate_pairs, group_duplicates
from framefold.data.frame_hashes import SIDE, perceptual_hashes
from framefold.data.shingles import MAX_SHINGLES, ShingleStore, ShingleWriter, jaccard, shingle_sets
from framefold.params.base import load
from framefold.params.ingest import DuplicateParams
from stages import ingest

PARAMS = load(DuplicateParams, "ingest.duplicates", PARAMS_FILE)


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MiniRoot:
    return MiniRoot(tmp_path, monkeypatch).fill(labeled=8)


def edited(data: bytes, quality: int = 60) -> bytes:
    """The picture as a re-upload shows it: cropped by a pixel, brighter, compressed again."""
    image = Image.open(io.BytesIO(data))
    image = image.crop((1, 1, image.width, image.height)).resize(image.size)
    buffer = io.BytesIO()
    ImageEnhance.Brightness(image).enhance(1.1).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def shingle_set(text: str) -> np.ndarray:
    return shingle_sets([text])[0]


def groups() -> dict[str, int]:
    tables = [pq.read_table(f"data/samples/{split}.parquet") for split in ("labeled", "unlabeled", "test")]
    return {k: v for t in tables for k, v in zip(t["id"].to_pylist(), t["group"].to_pylist(), strict=True)}


def joined(mini: MiniRoot, first: str, second: str) -> bool:
    """Whether the two, and no others, make one group."""
    mini.finish()
    ingest.main()
    found = groups()
    others = [group for video, group in found.items() if video not in (first, second)]
    assert len(set(others)) == len(others)
    return found[first] == found[second]


def test_same_frames_make_a_duplicate_whatever_the_text(mini: MiniRoot) -> None:
    """Both frames edited, another title, another split: found."""
    frames = [jpeg(1001), jpeg(1002), jpeg(1003)]
    first = mini.add("labeled", frames=frames)
    assert joined(mini, first, mini.add("test", frames=[edited(frame) for frame in frames]))


def test_one_common_frame_is_no_evidence(mini: MiniRoot) -> None:
    """A shared intro does not make two videos one."""
    first = mini.add("labeled", frames=[jpeg(1001), jpeg(1002)])
    assert not joined(mini, first, mini.add("test", frames=[jpeg(1001), jpeg(1003)]))


def test_same_text_makes_a_duplicate_whatever_the_frames(mini: MiniRoot) -> None:
    """Two pictures of one caption: the caption would leak the label. Case and punctuation do not count."""
    first = mini.add("labeled", title=words(1001) + "ABC")
    assert joined(mini, first, mini.add("unlabeled", title="【转】" + words(1001) + " #abc!"))


def test_short_text_never_decides_alone(mini: MiniRoot) -> None:
    """Two videos called the same two words are not the same."""
    first = mini.add("labeled", title="早上好")
    assert not joined(mini, first, mini.add("test", title="早上好"))


def test_edited_title_and_one_frame_together_decide(mini: MiniRoot) -> None:
    """Half the title and one frame kept: a re-upload."""
    first = mini.add("labeled", title=words(1001) + words(1002, 8), frames=[jpeg(1001), jpeg(1002)])
    second = mini.add("test", title=words(1001) + words(1003, 8), frames=[jpeg(1001), jpeg(1004)])
    assert joined(mini, first, second)


def test_edited_title_alone_is_not_enough(mini: MiniRoot) -> None:
    """The same half of a title over other frames: another video."""
    first = mini.add("labeled", title=words(1001) + words(1002, 8))
    assert not joined(mini, first, mini.add("test", title=words(1001) + words(1003, 8)))


def test_black_frames_are_no_evidence(mini: MiniRoot) -> None:
    """Flat pictures have no hash: films that begin and end black stay apart."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (5, 5, 5)).save(buffer, "JPEG")
    black = buffer.getvalue()
    first = mini.add("labeled", frames=[black, jpeg(1), black])
    assert not joined(mini, first, mini.add("test", frames=[black, jpeg(2), black]))


def test_boilerplate_text_joins_nobody(mini: MiniRoot) -> None:
    """A caption that more than max_bucket videos share says nothing about any of them."""
    for _ in range(12):
        mini.add("unlabeled", title="感谢平台推荐上热门，记得点赞关注加收藏")
    mini.finish(ingest__duplicates__max_bucket=10)
    ingest.main()
    assert len(set(groups().values())) == len(groups())


def test_groups_connect_chains_and_are_unique_over_splits(mini: MiniRoot) -> None:
    """A like B by text, B like C by frames: one group of three, and no number is used twice for others."""
    frames = [jpeg(1001), jpeg(1002)]
    chain = [mini.add("labeled", title=words(1001)), mini.add("test", title=words(1001), frames=frames)]
    chain.append(mini.add("unlabeled", frames=frames))
    mini.finish()
    ingest.main()
    found = groups()
    assert len({found[video] for video in chain}) == 1
    assert len(set(found.values())) == len(found) - 2


def test_near_duplicates_are_found_among_thousands(tmp_path: Path) -> None:
    """At 3,000 texts, 97 % of the pairs at a similarity around 0.85 are found, and no stranger is joined."""
    rng = np.random.default_rng(0)
    writer = ShingleWriter(tmp_path)
    for number in range(1500):
        text = list(words(number, 50))
        writer.add("".join(text))
        for position in rng.integers(0, 50, 2):
            text[position] = "变"
        writer.add("".join(text))
    writer.close()
    n = 3000
    store = ShingleStore([tmp_path])
    found = group_duplicates(
        store, np.zeros((n, 2), np.uint64), np.zeros((n, 2), bool), np.ones(n, bool), PARAMS, lambda: None
    )
    similar = np.array([store.similarity(row, row + 1) >= 0.8 for row in range(0, n, 2)])
    store.close()
    assert similar.sum() > 1000
    assert (found[1::2] == found[::2])[similar].mean() > 0.97
    assert set(np.unique(found)) <= set(range(n))
    assert (found // 2 == np.arange(n) // 2).all()


def test_frame_hashes_six_bits_apart_are_all_found() -> None:
    """The candidate search misses no pair within its guarantee."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 63, (2000, 2), dtype=np.uint64)
    for row in range(0, 2000, 2):
        for slot in range(2):
            flips = sum(1 << int(bit) for bit in rng.choice(64, 6, replace=False))
            hashes[row + 1, slot] = hashes[row, slot] ^ np.uint64(flips)

    class NoText:
        counts = np.zeros(2000, np.uint16)

        def band(self, number: int) -> np.ndarray:
            return np.zeros(2000, np.uint32)

    found = group_duplicates(NoText(), hashes, np.ones((2000, 2), bool), np.ones(2000, bool), PARAMS, lambda: None)  # type: ignore[arg-type]
    assert (found == np.arange(2000) // 2 * 2).all()


def test_hash_is_stable_under_recompression_and_differs_between_pictures() -> None:
    """The same picture stays within the weak distance; others are far away."""

    def thumbnail(data: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data)).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))

    originals = np.stack([thumbnail(jpeg(seed)) for seed in range(60)])
    copies = np.stack([thumbnail(edited(jpeg(seed))) for seed in range(60)])
    (a, usable), (b, _) = perceptual_hashes(originals), perceptual_hashes(copies)
    distances = np.bitwise_count(a[:, None] ^ b[None, :])
    assert usable.all()
    assert (np.diag(distances) <= 10).mean() > 0.95
    assert distances[~np.eye(60, dtype=bool)].min() > 10


def test_similarity_is_exact_for_sets_that_are_kept_whole() -> None:
    """Jaccard against its definition, and an estimate within 0.1 for longer texts."""
    a, b = shingle_set(words(1, 60)), shingle_set(words(1, 60)[:40] + words(2, 20))
    assert jaccard(a, b) == len({*a} & {*b}) / len({*a} | {*b})
    assert jaccard(a, shingle_set("")) == 0
    long_a, long_b = (words(3, 3000) + words(seed, 1000) for seed in (4, 5))
    pairs = [{text[i : i + 2] for i in range(len(text) - 1)} for text in (long_a, long_b)]
    exact = len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1])
    assert len(shingle_set(long_a)) == MAX_SHINGLES
    assert jaccard(shingle_set(long_a), shingle_set(long_b)) == pytest.approx(exact, abs=0.1)


def test_candidates_are_all_pairs_of_a_bucket_and_none_of_a_crowd() -> None:
    """Every pair that shares a key, but for keys that too many share."""
    keys = np.array([5, 7, 5, 9, 5, 7, 1, 1, 1, 1], np.uint32)
    rows = np.arange(10, dtype=np.int32) * 10
    pairs = {(int(x), int(y)) for a, b in candidate_pairs(keys, rows, 3) for x, y in zip(a, b, strict=True)}
    assert pairs == {(0, 20), (0, 40), (20, 40), (10, 50)}
