"""WordPiece over normalised text: a vocabulary from a file, or trained on the pool.

Normalisation goes beyond BERT's where its Chinese vocabulary has no entry for what people type: curly quotes, ellipses
and dashes become plain ones, skin tones go, a run of one emoji counts once. Symbols stand alone, so that an unknown
emoji does not turn the word it is glued to into [UNK] as well.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from framefold.data.tokens import SPECIAL_NAMES, SpecialTokens
from framefold.errors import UserError
from framefold.params.text import TextParams
from framefold.storage import read_json, write_json

SYMBOL = r"\p{So}"  # emoji and other pictograms
REPLACEMENTS = (
    ("[“”„«»]", '"'),
    ("[‘’]", "'"),
    ("…+", "."),
    ("[—–]+", "-"),
    ("[\U0001f3fb-\U0001f3ff]", ""),  # skin tones
    (rf"({SYMBOL})(?=\1)", ""),
)
MIN_COUNT = 2  # of an entry in a trained vocabulary: what is seen once is chance, and teaches what [UNK] is like
COUNTED_TOGETHER = 50_000  # distinct words: most repeat soon, and memory stays constant
LONGEST_WORD = 100  # characters; BERT's own limit, beyond it a word is [UNK]
Texts = Callable[[], Iterable[str]]


class Tokenizer:
    """Text to WordPiece ids. `special` holds the special ids and the size of the vocabulary."""

    def __init__(self, inner: tokenizers.Tokenizer, lowercase: bool):
        self.inner, self.lowercase = inner, lowercase
        vocabulary = inner.get_vocab()
        ids = {name: vocabulary[token] for name, token in SPECIAL_NAMES.items()}
        self.special = SpecialTokens(**ids, size=len(vocabulary))

    @classmethod
    def of_vocabulary(cls, entries: list[str], lowercase: bool) -> Self:
        """Entry i gets id i."""
        vocabulary = {entry: i for i, entry in enumerate(entries)}
        model = models.WordPiece(vocabulary, unk_token=SPECIAL_NAMES["unk"], max_input_chars_per_word=LONGEST_WORD)
        return cls(_pipeline(model, lowercase), lowercase)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """From a folder that `save` wrote."""
        folder = Path(folder)
        config = read_json(folder / "config.json")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), config["lowercase"])
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"{folder}: not a tokenizer ({error}); rebuild it with `dvc repro tokenize`") from None

    def save(self, folder: Path) -> None:
        """Write vocab.txt (line i is id i), tokenizer.json and config.json into `folder`."""
        entries = sorted(self.inner.get_vocab().items(), key=lambda item: item[1])
        (folder / "vocab.txt").write_text("".join(f"{entry}\n" for entry, _ in entries), encoding="utf-8")
        self.inner.save(str(folder / "tokenizer.json"))
        ids = {name: getattr(self.special, name) for name in SPECIAL_NAMES}
        write_json(folder / "config.json", {**ids, "size": self.special.size, "lowercase": self.lowercase})

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without special tokens, uncut."""
        return [encoding.ids for encoding in self.inner.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_with_spans(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """The same ids, and where each token begins and ends in its text, in characters."""
        return [
            (encoding.ids, encoding.offsets) for encoding in self.inner.encode_batch(texts, add_special_tokens=False)
        ]

    @cached_property
    def continues(self) -> npt.NDArray[np.bool_]:
        """(V,): the entries that go on with a word (`##`)."""
        found = np.zeros(self.special.size, np.bool_)
        found[[i for entry, i in self.inner.get_vocab().items() if entry.startswith("##") and len(entry) > 2]] = True
        return found


def train_or_load(params: TextParams, texts: Texts) -> Tokenizer:
    """The tokenizer that params ask for; `texts()` starts a new pass over the pool's text and is used in training only.

    Raises UserError for a vocabulary that cannot be used.
    """
    if params.vocab is None:
        return Tokenizer.of_vocabulary(train_vocabulary(texts, params.vocab_size), lowercase=True)
    path = Path(params.vocab)
    path = path / "vocab.txt" if path.is_dir() else path
    return Tokenizer.of_vocabulary(read_vocabulary(path), lowercase=_lowercase_of(path.parent))


def read_vocabulary(path: Path) -> list[str]:
    """Entries of a vocab.txt in file order.

    Raises UserError if it cannot be read, has empty or repeated lines, or lacks a special token.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would also split at U+2028, an entry
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"text.vocab: {path} cannot be read as UTF-8 text ({error}); give a vocab.txt") from None
    entries = [line.removesuffix("\r") for line in lines]
    while entries and not entries[-1]:
        entries.pop()
    if "" in entries:
        raise UserError(
            f"{path}: line {entries.index('') + 1} is empty, so ids would shift; restore the original vocab.txt"
        )
    repeated = [entry for entry, n in Counter(entries).items() if n > 1]
    if repeated:
        raise UserError(f"{path}: {repeated[0]!r} stands there twice; restore the original vocab.txt")
    missing = sorted(set(SPECIAL_NAMES.values()) - set(entries))
    if missing:
        raise UserError(f"{path}: special tokens {' '.join(missing)} are missing; a BERT vocab.txt is needed")
    return entries


def train_vocabulary(texts: Texts, size: int) -> list[str]:
    """WordPiece entries learned from two passes over the texts, at most `size`, the same for the same texts.

    Characters come first (the most frequent ones, if not all fit), merged pairs fill the rest. The trainer of the
    library numbers characters in the order of a randomly seeded hash map, and ties between pairs follow the numbers:
    here all characters are numbered beforehand, by handing them over in the place of special tokens.
    """
    base = list(SPECIAL_NAMES.values())
    base += _characters(texts, size - len(base))
    pipeline = _pipeline(models.WordPiece(unk_token=SPECIAL_NAMES["unk"]), lowercase=True)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=base, limit_alphabet=0, min_frequency=MIN_COUNT, show_progress=False
    )
    pipeline.train_from_iterator(iter(texts()), trainer)
    return [entry for entry, _ in sorted(pipeline.get_vocab().items(), key=lambda item: item[1])]


def _characters(texts: Texts, budget: int) -> list[str]:
    """Characters by falling frequency, each with its `##` form if it is ever not the first of its word."""
    pipeline = _pipeline(models.WordPiece(unk_token=SPECIAL_NAMES["unk"]), lowercase=True)
    words, first, inner = Counter[str](), Counter[str](), Counter[str]()
    for text in texts():
        split = pipeline.pre_tokenizer.pre_tokenize_str(pipeline.normalizer.normalize_str(text))
        words.update(word for word, _ in split)
        if len(words) > COUNTED_TOGETHER:
            count_characters(words, first, inner)
    count_characters(words, first, inner)
    entries: list[str] = []
    for character, count in sorted((first + inner).items(), key=lambda item: (-item[1], item[0])):
        forms = [character, f"##{character}"] if character in inner else [character]
        if count >= MIN_COUNT and len(entries) + len(forms) <= budget:
            entries += forms
    return entries


def count_characters(words: Counter[str], first: Counter[str], inner: Counter[str]) -> None:
    """Add the first and the other characters of counted words, which are then forgotten."""
    for word, count in words.items():
        first[word[0]] += count
        for character in word[1:]:
            inner[character] += count
    words.clear()


def _pipeline(model: models.WordPiece, lowercase: bool) -> tokenizers.Tokenizer:
    pipeline = tokenizers.Tokenizer(model)
    replacements = [normalizers.Replace(Regex(pattern), content) for pattern, content in REPLACEMENTS]
    pipeline.normalizer = normalizers.Sequence([*replacements, normalizers.BertNormalizer(lowercase=lowercase)])
    symbols = pre_tokenizers.Split(Regex(SYMBOL), behavior="isolated")
    pipeline.pre_tokenizer = pre_tokenizers.Sequence([symbols, pre_tokenizers.BertPreTokenizer()])
    return pipeline


def _lowercase_of(folder: Path) -> bool:
    """As tokenizer_config.json beside the vocabulary says; Chinese BERT models lower-case."""
    path = folder / "tokenizer_config.json"
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping, got {json.dumps(content)[:40]}; restore the original file")
    return bool(content.get("do_lower_case", True))
