"""Whole words: where jieba sees them begin, how the store keeps that, how they hide: pytest tests/test_words.py"""

import itertools
import logging
import random
import shutil
import tempfile
from pathlib import Path

import jieba
import numpy as np
import pyarrow as pa
import pytest
from test_batches import DIM, SPECIAL, dataset, stores  # noqa: F401
from test_tokenize import SPECIAL as NAMES
from test_tokenize import make_project, samples, write_vocab

from framefold.data import words
from framefold.data.batches import VideoDataset
from framefold.data.features import FeatureStore, write_store
from framefold.data.shards import KeptShards
from framefold.data.tokenization import write_tokens
from framefold.data.tokenizer import Tokenizer, train_or_load
from framefold.data.tokens import SEGMENTS, TokenStore, token_writer
from framefold.errors import UserError
from framefold.objectives.mlm import mask_tokens
from framefold.params.base import load
from framefold.params.models import InputParams
from framefold.params.pretrain import PretrainParams
from framefold.params.text import TextParams
from framefold.storage import sha256_of
from framefold.training.views import Masking, masking_of
from stages.tokenize import main as run_stage

CHARACTERS = "今天去广州塔旅行真的好吃美食探店开箱评测手机视频分享日记宠物猫咪"
SPECIAL_IDS, MASK, VOCAB = np.arange(5), 4, 1000


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    pieces = ["v", "##log", "iphone", "##13", "##pro", "2022", "年", "！", "#", "##", ".", "-", "nba"]
    return Tokenizer.of_vocabulary([*NAMES, *CHARACTERS, *pieces], lowercase=True)


def sentence(draw: random.Random) -> str:
    parts = [
        *CHARACTERS,
        "广州塔",
        "美食",
        "评测",
        "vlog",
        " ",
        "iPhone13Pro",
        "2022年",
        "！！",
        "💰",
        "……",
        "龘",
        "#",
        "##",
        "nba-",
    ]
    return "".join(draw.choices(parts, k=draw.randrange(0, 25)))


def test_tokens_of_a_known_sentence_fall_into_its_words(tokenizer: Tokenizer) -> None:
    """`##` pieces belong to the word before them; the unknown emoji and punctuation stand alone."""
    text = "今天去广州旅行vlog💰iphone13pro评测"
    ((ids, spans),) = tokenizer.encode_with_spans([text])
    starts = words.word_starts(text, spans, tokenizer.continues[ids])
    pieces = [text[start:end] for start, end in spans]
    first = [place for place, begins in enumerate(starts) if begins]
    found = ["".join(pieces[a:b]) for a, b in zip(first, [*first[1:], len(pieces)], strict=True)]
    assert found == ["今天", "去", "广州", "旅行", "vlog", "💰", "iphone13pro", "评测"]


def test_a_token_begins_a_word_where_the_segmenter_begins_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Against jieba's own spans, loaded its own way, character by character; over random sentences."""
    reference, draw = jieba.Tokenizer(), random.Random(0)
    reference.tmp_dir = str(tmp_path)
    for text in (sentence(draw) for _ in range(300)):
        ((ids, spans),) = tokenizer.encode_with_spans([text])
        last = spans[-1][1] if spans else 0
        owner = {at: word for word, start, end in spanned(reference, text[:last]) for at in range(start, end)}
        expected, before = [], None
        for token, (start, _) in zip(ids, spans, strict=True):
            entry = tokenizer.inner.id_to_token(token)
            expected.append(before is None or (owner[start] != before and not (entry[:2] == "##" and entry != "##")))
            before = owner[start]
        assert words.word_starts(text, spans, tokenizer.continues[np.array(ids, int)]).tolist() == expected, text


def spanned(reference: jieba.Tokenizer, text: str) -> list[tuple[int, int, int]]:
    """(number of the word, start, end)"""
    return [(number, start, end) for number, (_, start, end) in enumerate(reference.tokenize(text))]


def test_the_dictionary_is_loaded_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    """No cache is written to the temp folder, none that lies there is believed, and nothing is logged."""
    (tmp_path / "jieba.cache").write_bytes(b"not a dictionary")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    words._segmenter.cache_clear()
    with caplog.at_level(logging.DEBUG):
        assert words.word_starts("广州塔", [(0, 1), (1, 2), (2, 3)], np.zeros(3, bool)).tolist() == [True, False, True]
    assert [path.name for path in tmp_path.iterdir()] == ["jieba.cache"]
    assert (tmp_path / "jieba.cache").read_bytes() == b"not a dictionary"
    assert (caplog.text, *capfd.readouterr()) == ("", "", "")


def test_store_gives_every_row_its_own_words(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Rows in batches of different sizes, cut to max_tokens; the tokens are those of a store without words."""
    draw = random.Random(1)
    table = samples([sentence(draw) for _ in range(50)])
    batches = [table.slice(a, b - a).combine_chunks().to_batches()[0] for a, b in ((0, 7), (7, 37), (37, 50))]
    for name, with_words in (("with", True), ("without", False)):
        write_tokens(tokenizer, batches, tmp_path / name, max_tokens=9, words=with_words)
    store, plain = TokenStore(tmp_path / "with"), TokenStore(tmp_path / "without")
    assert (store.has_words, plain.has_words) == (True, False)
    for row in range(50):
        for name, ids, starts, same in zip(
            SEGMENTS, store.segments(row), store.word_starts(row), plain.segments(row), strict=True
        ):
            text = table[name][row].as_py()
            ((all_ids, spans),) = tokenizer.encode_with_spans([text])
            continues = tokenizer.continues[np.array(all_ids[:9], int)]
            assert starts.tolist() == words.word_starts(text, spans[:9], continues).tolist()
            assert ids.tolist() == same.tolist() == all_ids[:9]


def test_stage_is_repeatable_and_words_change_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests, tokens = [], []
    monkeypatch.chdir(tmp_path)
    for with_words in (True, True, False):
        make_project(tmp_path, words=with_words)
        run_stage()
        digests.append({path.name: sha256_of(path) for path in Path("data/tokens").iterdir()})
        store = TokenStore("data/tokens/unlabeled.arrow")
        tokens.append([[part.tolist() for part in store.segments(row)] for row in range(len(store))])
        shutil.rmtree("models")
    assert digests[0] == digests[1] != digests[2]
    assert tokens[0] == tokens[2]


# batches ----------------------------------------------------------------------------------------------------


def worded(folder: Path) -> VideoDataset:
    """Three videos: title, asr and ocr with the words that the second column tells."""
    texts = [([10, 11, 12, 13], [20], [30, 31]), ([], [], []), ([], [20, 21], [])]
    starts = [([1, 0, 1, 0], [1], [1, 0]), ([], [], []), ([], [1, 1], [])]
    ids = pa.array([str(10**19 + row) for row in range(3)])
    with token_writer(folder / "tokens.arrow", 100, words=True) as writer:
        lists = [[pa.array(part, pa.list_(pa.int32())) for part in zip(*rows, strict=True)] for rows in (texts, starts)]
        writer.write(ids, *lists)
    kept = KeptShards(folder / "parts", DIM)
    kept.write("all", ids.to_pylist(), np.zeros(3, np.int32), np.empty((0, DIM), np.float16), [])
    write_store(folder / "features", kept, ["all"], {})
    inputs = InputParams(title=3, asr=3, ocr=3, max_frames=4)
    both = TokenStore(folder / "tokens.arrow"), FeatureStore(folder / "features")
    return VideoDataset(*both, np.arange(3), inputs, None, None, SPECIAL)


def test_batches_say_where_words_begin(tmp_path: Path) -> None:
    """[CLS] and [SEP] are words of their own; padding begins none; the budget cuts words as it cuts tokens."""
    batch = worded(tmp_path).batch(np.arange(3))
    assert batch["input_ids"][0].tolist() == [2, 10, 11, 12, 3, 20, 3, 30, 31, 3]
    assert batch["word_starts"].int().tolist() == [
        [1, 1, 0, 1, 1, 1, 1, 1, 0, 1],
        [1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
    ]


def test_a_store_without_words_gives_batches_without(stores: tuple[TokenStore, FeatureStore]) -> None:  # noqa: F811
    assert "word_starts" not in dataset(stores).batch(np.arange(4))


def test_whole_words_need_a_store_that_has_them(
    tmp_path: Path,
    stores: tuple[TokenStore, FeatureStore],  # noqa: F811
) -> None:
    params = load(PretrainParams).masking.model_copy(update={"unit": "word"})
    with pytest.raises(UserError, match=r"pretrain\.masking\.unit: .* has no words; set text\.words=true"):
        masking_of(params, dataset(stores))
    videos = worded(tmp_path)
    masked = masking_of(params.model_copy(update={"rate": 0.5}), videos)(videos.batch(np.arange(3)), 0, 0)
    assert "word_starts" not in masked
    assert len(masked["token_places"])


@pytest.mark.parametrize("unit", ["token", "ngram"])
def test_other_units_do_not_look_at_words(tmp_path: Path, unit: str) -> None:
    params = load(PretrainParams).masking.model_copy(update={"unit": unit})
    batch = worded(tmp_path).batch(np.arange(3))
    plain = {name: tensor for name, tensor in batch.items() if name != "word_starts"}
    one, other = (Masking(params, SPECIAL)(each, 0, 0) for each in (batch, plain))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


# masks ----------------------------------------------------------------------------------------------------


def texts(rows: int, lengths: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[CLS] title [SEP] asr [SEP] of words of one to four tokens; every tenth token is [UNK]. ids, mask, starts."""
    rng, width = np.random.default_rng(seed), max(lengths) + 3
    ids, mask, starts = np.zeros((rows, width), int), np.zeros((rows, width), bool), np.zeros((rows, width), bool)
    for row in range(rows):
        size = lengths[row % len(lengths)]
        cut = size // 2
        tokens = np.where(rng.random(size) < 0.1, 1, rng.integers(5, VOCAB, size))
        begins = rng.random(size) < 0.4
        begins[[0, cut] if 0 < cut < size else [0]] = True
        ids[row, : size + 3] = [2, *tokens[:cut], 3, *tokens[cut:], 3]
        starts[row, : size + 3] = [True, *begins[:cut], True, *begins[cut:], True]
        mask[row, : size + 3] = True
    return ids, mask, starts


def hidden(unit: str, lengths: list[int], rate: float = 0.2, rows: int = 4000, **changed: int) -> tuple:
    ids, mask, starts = texts(rows, lengths)
    settings = {"max_ngram": 3 if unit == "ngram" else 1, "seed": 0, "epoch": 0} | changed
    masked, chosen = mask_tokens(
        ids,
        mask,
        special=SPECIAL_IDS,
        mask_id=MASK,
        vocab_size=VOCAB,
        rate=rate,
        keys=np.arange(rows),
        word_starts=starts if unit == "word" else None,
        **settings,
    )
    return ids, mask, starts, masked, chosen


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4])
@pytest.mark.parametrize("unit", ["token", "ngram", "word"])
def test_the_share_of_hidden_tokens_is_the_rate(unit: str, rate: float) -> None:
    """Within four standard errors of the mean over videos; each video's own share has the rate as its mean."""
    ids, mask, _, _, chosen = hidden(unit, [40, 33], rate)
    tokens = (mask & ~np.isin(ids, SPECIAL_IDS)).sum(1)
    excess = chosen.sum(1) - rate * tokens
    assert abs(excess.mean()) < 4 * excess.std() / np.sqrt(len(excess))
    assert excess.std() < 2  # the budget holds for every video, up to a word
    assert abs(chosen.sum() / tokens.sum() - rate) < 0.003


@pytest.mark.parametrize("lengths", [[1], [3], [6]])
def test_short_texts_lose_words_at_the_same_rate(lengths: list[int]) -> None:
    ids, mask, _, _, chosen = hidden("word", lengths, 0.2, rows=20_000)
    tokens = (mask & ~np.isin(ids, SPECIAL_IDS)).sum()
    assert chosen.sum() / tokens == pytest.approx(0.2, abs=0.012)


def test_words_are_hidden_as_a_whole_and_equally_often() -> None:
    """Against a plain loop over the words; [UNK] inside of one stays, long words are hidden as often as short ones."""
    ids, _, starts, _, chosen = hidden("word", [40, 33])
    shares: dict[int, list[bool]] = {}
    for row in range(len(ids)):
        begins = [*np.flatnonzero(starts[row]).tolist(), ids.shape[1]]
        for start, end in itertools.pairwise(begins):
            ordinary = [place for place in range(start, end) if ids[row, place] >= 5]
            if ordinary:
                assert len(set(chosen[row, ordinary].tolist())) == 1
                shares.setdefault(min(len(ordinary), 5), []).append(bool(chosen[row, ordinary[0]]))
    assert not chosen[ids < 5].any()
    assert sorted(shares) == [1, 2, 3, 4, 5]
    assert all(abs(np.mean(part) - 0.2) < 0.03 for part in shares.values())


@pytest.mark.parametrize("unit", ["token", "ngram", "word"])
def test_hidden_tokens_become_mask_random_or_stay_80_10_10(unit: str) -> None:
    ids, _, _, masked, chosen = hidden(unit, [40])
    after, before = masked[chosen], ids[chosen]
    error = 4 * np.sqrt(0.16 / len(after))
    assert abs(np.mean(after == MASK) - 0.8) < error
    assert abs(np.mean(after == before) - 0.1) < error + 1 / VOCAB  # a random token may be the one that stood there
    assert abs(np.mean((after != before) & (after != MASK)) - 0.1) < error + 1 / VOCAB
    assert np.array_equal(masked[~chosen], ids[~chosen])


def test_single_tokens_are_hidden_independently_and_ngrams_are_not() -> None:
    """Both of two neighbours: as often as any two of about 36 tokens of which 7.2 are hidden; of spans far oftener."""
    shares = []
    for unit in ("token", "ngram"):
        ids, _, _, _, chosen = hidden(unit, [40])
        pairs = (ids[:, 1:] >= 5) & (ids[:, :-1] >= 5)
        shares.append((chosen[:, 1:] & chosen[:, :-1] & pairs).sum() / pairs.sum())
    assert shares[0] == pytest.approx(7.2 * 6.2 / (36 * 35), rel=0.1)
    assert shares[1] > 2 * shares[0]


def test_word_masks_do_not_depend_on_neighbours_or_padding() -> None:
    ids, mask, starts = texts(32, [5, 20, 12])
    settings = {"special": SPECIAL_IDS, "mask_id": MASK, "vocab_size": VOCAB, "rate": 0.3, "max_ngram": 1}
    keys = np.random.default_rng(0).integers(0, 2**62, 32)
    whole = mask_tokens(ids, mask, **settings, seed=0, epoch=3, keys=keys, word_starts=starts)
    part = (slice(8, 9), slice(0, 16))
    alone = mask_tokens(ids[part], mask[part], **settings, seed=0, epoch=3, keys=keys[8:9], word_starts=starts[part])
    assert alone[1].any()
    assert all(np.array_equal(one[part], other) for one, other in zip(whole, alone, strict=True))
    other = mask_tokens(ids, mask, **settings, seed=0, epoch=4, keys=keys, word_starts=starts)
    assert not np.array_equal(other[1], whole[1])


def test_a_trained_vocabulary_has_pieces_that_continue(tmp_path: Path) -> None:
    """Entries with `##`, but not the entry `##` itself, which text can hold."""
    params = TextParams(
        vocab=str(write_vocab(tmp_path, [*NAMES, "a", "##b", "##"])),
        vocab_size=9,
        max_tokens=4,
        words=True,
        max_unknown=1,
    )
    assert train_or_load(params, list).continues.tolist() == [False] * 6 + [True, False]
