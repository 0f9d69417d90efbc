"""Vocabulary, token store and the stage tokenize: pytest tests/test_tokenize.py"""

import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import yaml
from memory import peak_memory

from framefold.data.tokenization import write_tokens
from framefold.data.tokenizer import Tokenizer, read_vocabulary, train_or_load, train_vocabulary
from framefold.data.tokens import SEGMENTS, TokenStore, check_aligned, read_special_tokens, token_writer
from framefold.errors import UserError
from framefold.params.text import TextParams
from framefold.storage import read_json, sha256_of, write_parquet
from stages import tokenize
from stages.tokenize import main as run_stage

ROOT = Path(__file__).resolve().parents[1]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOPICS = "美食探店旅行日记宠物搞笑舞蹈音乐汽车评测数码开箱穿搭护肤健身篮球足球游戏解说电影剪辑"


def sentences(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    words = ["vlog", "iphone", "nba", "2022", "😂😂", "👍", "“好”", "…", "#"]
    return ["".join(draw.choices(TOPICS, k=12)) + " " + " ".join(draw.choices(words, k=4)) for _ in range(n)]


def params(**changes: object) -> TextParams:
    return TextParams.model_validate(
        {"vocab": None, "vocab_size": 200, "max_tokens": 16, "words": False, "max_unknown": 0.02} | changes
    )


def write_vocab(folder: Path, entries: list[str]) -> Path:
    path = folder / "vocab.txt"
    path.write_text("".join(f"{entry}\n" for entry in entries), encoding="utf-8")
    return path


def samples(texts: list[str]) -> pa.Table:
    asr = [text if i % 3 else "" for i, text in enumerate(texts)]
    return pa.table({"id": [f"9{i:019d}" for i in range(len(texts))], "title": texts, "asr": asr, "ocr": texts[::-1]})


def make_project(folder: Path, **text: object) -> None:
    """A project root that holds samples and params, nothing else."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["text"] = params(**text).model_dump()
    (folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    for seed, (split, n) in enumerate({"labeled": 60, "unlabeled": 300, "test": 40}.items()):
        write_parquet(folder / f"data/samples/{split}.parquet", samples(sentences(n, seed)))


def test_trained_vocabulary_knows_new_text() -> None:
    """Text that was not in the training pool has under 5 % [UNK], and the vocabulary is no larger than asked."""
    tokenizer = train_or_load(params(), lambda: sentences(500, 0))
    ids = [i for text in tokenizer.encode_batch(sentences(200, 1)) for i in text]
    assert tokenizer.special.size <= 200
    assert ids.count(tokenizer.special.unk) / len(ids) < 0.05


def test_small_vocabulary_keeps_the_frequent_characters() -> None:
    entries = train_vocabulary(lambda: ["好" * 9 + "美食", "美食美食", "好店"] * 3, 8)
    assert entries == [*SPECIAL, "好", "美", "食"]


def test_training_is_repeatable() -> None:
    """Same texts, same ids: the library's own trainer gives other ids at every call."""
    assert train_vocabulary(lambda: sentences(300, 0), 150) == train_vocabulary(lambda: sentences(300, 0), 150)


def test_vocabulary_does_not_depend_on_how_words_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one or all together."""
    whole = train_vocabulary(lambda: sentences(300, 0), 150)
    monkeypatch.setattr("framefold.data.tokenizer.COUNTED_TOGETHER", 1)
    assert train_vocabulary(lambda: sentences(300, 0), 150) == whole


def test_words_are_merged() -> None:
    """A frequent word is one token, so the vocabulary is more than characters."""
    tokenizer = train_or_load(params(), lambda: sentences(500, 0))
    assert len(tokenizer.encode_batch(["iphone"])[0]) == 1


def test_given_vocabulary_keeps_its_ids(tmp_path: Path) -> None:
    """Line i is id i, odd entries included: U+2028 is an entry of real vocabularies, not a line end."""
    path = write_vocab(tmp_path, [*SPECIAL, "\u2028", "好", "a", "##b"])
    assert read_vocabulary(path)[5:7] == ["\u2028", "好"]
    tokenizer = train_or_load(params(vocab=str(tmp_path)), list)
    assert tokenizer.encode_batch(["好AB"]) == [[6, 7, 8]]
    assert (tokenizer.special.size, tokenizer.special.mask) == (9, 4)


def test_cased_vocabulary_keeps_case(tmp_path: Path) -> None:
    path = write_vocab(tmp_path, [*SPECIAL, "a", "A"])
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert train_or_load(params(vocab=str(path)), list).encode_batch(["A"]) == [[6]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n".join(SPECIAL[1:]) + "\n好\n", r"special tokens \[PAD\] are missing"),
        ("\n".join([*SPECIAL, "好", "", "店"]), "line 7 is empty"),
        ("\n".join([*SPECIAL, "好", "好"]), "'好' stands there twice"),
        (b"\xff\xfe\x00", "cannot be read as UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_unusable_vocabulary_is_an_error(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        train_or_load(params(vocab=str(path)), list)


def test_unknown_emoji_leaves_its_neighbours_known(tmp_path: Path) -> None:
    """`10💰` is 10 and one [UNK]; a run of one emoji is one token; curly quotes are known as plain ones."""
    path = write_vocab(tmp_path, [*SPECIAL, "10", "好", '"', "."])
    tokenizer = train_or_load(params(vocab=str(path)), list)
    assert tokenizer.encode_batch(["10💰💰👍🏻👍🏽", "“好”……"]) == [[5, 1, 1], [7, 6, 7, 8]]


def test_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    tokenizer = train_or_load(params(), lambda: sentences(300, 0))
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode_batch(sentences(20, 1)) == tokenizer.encode_batch(sentences(20, 1))
    assert read_special_tokens(tmp_path) == loaded.special == tokenizer.special


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_or_load(params(), lambda: sentences(500, 0))


def test_store_gives_every_row_its_own_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Rows spread over batches of different sizes read back as encoded, cut to max_tokens."""
    table = samples(sentences(50, 2))
    batches = [table.slice(a, b - a).combine_chunks().to_batches()[0] for a, b in ((0, 7), (7, 37), (37, 50))]
    write_tokens(tokenizer, batches, tmp_path / "x.arrow", max_tokens=9)
    store = TokenStore(tmp_path / "x.arrow")
    expected = [[ids[:9] for ids in tokenizer.encode_batch(table[name].to_pylist())] for name in SEGMENTS]
    found = [[store.segments(row)[k].tolist() for row in range(50)] for k in range(3)]
    assert found == expected
    assert store.ids.to_pylist() == table["id"].to_pylist()
    assert store.lengths().tolist() == [[len(column[row]) for column in expected] for row in range(50)]


def test_store_reads_in_place(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Segments are read-only views, two bytes a token, also in a worker that got the store pickled."""
    write_tokens(tokenizer, samples(sentences(30, 2)).to_batches(), tmp_path / "x.arrow", 16)
    store = pickle.loads(pickle.dumps(TokenStore(tmp_path / "x.arrow")))
    title = store.segments(3)[0]
    assert title.dtype == np.uint16
    assert not title.flags.owndata
    assert not title.flags.writeable


def test_store_of_a_vocabulary_beyond_16_bits(tmp_path: Path) -> None:
    entries = [*SPECIAL, *(f"w{i}" for i in range(70_000))]
    wide = Tokenizer.of_vocabulary(entries, lowercase=True)
    write_tokens(wide, samples(["w69999"]).to_batches(), tmp_path / "x.arrow", 4)
    assert TokenStore(tmp_path / "x.arrow").segments(0)[0].tolist() == [70_004]


def test_empty_split_is_a_store(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_tokens(tokenizer, [], tmp_path / "x.arrow", 4)
    store = TokenStore(tmp_path / "x.arrow")
    assert len(store) == 0
    assert store.lengths().shape == (0, 3)


@pytest.mark.parametrize("damage", [b"", b"ARROW1 and no more", None])
def test_damaged_store_is_one_line(tmp_path: Path, damage: bytes | None) -> None:
    if damage is not None:
        (tmp_path / "x.arrow").write_bytes(damage)
    with pytest.raises(UserError, match=r"x\.arrow: not a token store"):
        TokenStore(tmp_path / "x.arrow")


def test_a_large_pool_is_thinned_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third of seven and eleven records, counted on from split to split and from batch to batch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tokenize, "MAX_RECORDS", 6)
    monkeypatch.setattr(tokenize, "BATCH_SIZE", 4)
    for split, numbers in (("labeled", range(7)), ("unlabeled", range(7, 18))):
        table = pa.table({name: [f"{name}{number}" for number in numbers] for name in SEGMENTS})
        write_parquet(Path(f"data/samples/{split}.parquet"), table)
    texts = set(tokenize.pool_texts(lambda: None))
    assert texts == {f"{name}{number}" for name in SEGMENTS for number in range(0, 18, 3)}


def test_stores_of_different_videos_are_not_joined() -> None:
    """Chunks may differ, rows may not; the first row that differs is named."""

    def check(a: list[list[str]], b: list[list[str]]) -> None:
        check_aligned(map(pa.array, a), map(pa.array, b), "tokens and features")

    check([["1", "2"], ["3"]], [["1"], ["2", "3"]])
    check([], [])
    with pytest.raises(UserError, match="tokens and features: row 2 is video 3 against 4"):
        check([["1"], ["2", "3"]], [["1", "2", "4"]])
    with pytest.raises(UserError, match="2 videos against 1"):
        check([["1", "2"]], [["1"]])
    with pytest.raises(UserError, match="0 videos against 3"):
        check([], [["1", "2"], ["3"]])


def test_ids_of_some_rows_are_found_in_any_record_batch(tmp_path: Path) -> None:
    ids = [str(10**19 + row) for row in range(10)]
    with token_writer(tmp_path / "store.arrow", 100) as writer:
        for part in (slice(0, 4), slice(4, 4), slice(4, 10)):
            column = pa.array([[1]] * len(ids[part]), pa.list_(pa.int32()))
            writer.write(pa.array(ids[part], pa.string()), [column] * 3)
    store = TokenStore(tmp_path / "store.arrow")
    assert store.ids_at([9, 0, 4, 3, 4]) == [ids[row] for row in (9, 0, 4, 3, 4)]
    assert store.ids.to_pylist() == ids


def test_reading_a_store_does_not_keep_it_in_memory(tmp_path: Path) -> None:
    """40 MiB of tokens: all of them would count as this process's memory once they were read."""
    with token_writer(tmp_path / "store.arrow", 100) as writer:
        for start in range(0, 40_960, 1024):
            ids = pa.array([str(10**19 + row) for row in range(start, start + 1024)])
            tokens = pa.ListArray.from_arrays(
                np.arange(0, 1025 * 170, 170)[:1025].astype(np.int32), np.ones(174_080, int)
            )
            writer.write(ids, [tokens] * 3)
    store = TokenStore(tmp_path / "store.arrow")
    before = psutil.Process().memory_info().rss
    for row in range(len(store)):
        assert store.segments(row)[2][-1] == 1
    store.lengths()
    assert psutil.Process().memory_info().rss - before < 12 << 20


def test_stage_is_repeatable_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    digests = []
    for _ in range(2):
        run_stage()
        outputs = ["models/tokenizer/*", "data/tokens/*", "metrics/tokenize.json"]
        files = sorted(path for pattern in outputs for path in tmp_path.glob(pattern))
        digests.append({path.name: sha256_of(path) for path in files})
        shutil.rmtree(tmp_path / "models")
    assert len(digests[0]) == 7
    assert digests[0] == digests[1]


def test_stage_counts_what_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of [UNK], of cut and of empty texts stand in the metrics, per split and segment."""
    make_project(tmp_path, max_tokens=14)
    monkeypatch.chdir(tmp_path)
    run_stage()
    metrics, store = read_json("metrics/tokenize.json"), TokenStore("data/tokens/labeled.arrow")
    title, asr = metrics["labeled"]["title"], metrics["labeled"]["asr"]
    assert title["cut"] > 0.5
    assert title["length_q50"] > 14 >= store.lengths().max()
    assert asr["empty"] == pytest.approx(1 / 3)
    assert title["tokens"] == store.lengths()[:, 0].sum()


def test_stage_refuses_a_vocabulary_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mostly [UNK]: exit code 1, a message that names the split and the limit, and nothing published."""
    make_project(tmp_path, vocab=str(write_vocab(tmp_path, [*SPECIAL, "美"])))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run_stage()
    assert end.value.code == 1
    assert not [path for folder in ("models", "data/tokens", "metrics") for path in tmp_path.glob(f"{folder}/*")]


@pytest.mark.medium
def test_memory_does_not_grow_with_the_records(tmp_path: Path) -> None:
    """Ten times the records cost less than 32 MB more, in training the vocabulary and in encoding."""
    make_project(tmp_path)
    peaks = []
    for n in (2_000, 20_000):
        write_parquet(tmp_path / "data/samples/unlabeled.parquet", samples(sentences(2_000, 5) * (n // 2_000)))
        peaks.append(peak_memory(["stages.tokenize"], tmp_path))
    assert peaks[1] - peaks[0] < 32 * 2**20, f"peak {peaks} bytes"


def test_stage_starts_without_torch() -> None:
    code = "import sys, stages.tokenize; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
