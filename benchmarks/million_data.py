"""Generated raw data for `benchmarks.million`: annotations, feature archives and zips of frames, the same every time.

Everything is streamed to disk. Texts are Chinese words of a lexicon with a long tail, so that tokens and shingles
repeat as they do in real titles; every fiftieth video says what the one before it says.
"""

import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SPLITS = ("labeled", "unlabeled", "test")
BLOCK = 4096  # records generated together
LEXICON, CHARACTERS, TAIL = 50_000, 2_000, 0.7  # words of two characters; frequency falls with rank ** -TAIL
WORDS = {"title": 40, "asr": 20, "ocr": 20}  # mean of a text; lengths are uniform from 0 to twice that
COPY_EVERY = 50
CATEGORIES = 200  # as in the real data
MAX_FRAMES, FEATURE_DIM = 6, 128  # of a video's given features
SHUFFLE = 3**18  # has no divisor in common with 10: row * SHUFFLE mod 10^12 gives every row another number

Text = tuple[str, str, str]


def video_id(split: str, row: int) -> str:
    """20 digits; neighbours in the annotations are none by id."""
    return str(10**19 + SPLITS.index(split) * 10**12 + row * SHUFFLE % 10**12)


# Annotations


def write_annotations(path: Path, split: str, n: int) -> None:
    """`<split>.json` with `n` records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row, (title, asr, ocr) in enumerate(iterate_texts(split, n)):
            record = {"id": video_id(split, row), "title": f"{title}{row}", "asr": asr}  # a word that is seen once
            record |= {"category_id": f"{row % CATEGORIES // 10:02d}{row % 10:02d}"} if split == "labeled" else {}
            line = json.dumps(record | {"ocr": [{"time": 0, "text": ocr}] if ocr else []}, ensure_ascii=False)
            file.write(("[" if row == 0 else ",\n") + line)
        file.write("]")


def iterate_texts(split: str, n: int) -> Iterator[Text]:
    """(title, asr, ocr) of `n` videos."""
    rng = np.random.default_rng(SPLITS.index(split))
    lexicon = np.random.default_rng(7).integers(0x4E00, 0x4E00 + CHARACTERS, (LEXICON, 2), dtype=np.uint32)
    weights = np.arange(1, LEXICON + 1) ** -TAIL
    steps = np.cumsum(weights) / weights.sum()
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        texts = list(zip(*(draw_texts(rng, lexicon, steps, mean, size) for mean in WORDS.values()), strict=True))
        for place, text in enumerate(texts):
            yield texts[place - 1] if (start + place) % COPY_EVERY == 1 and place else text


def draw_texts(rng: np.random.Generator, lexicon: np.ndarray, steps: np.ndarray, mean: int, n: int) -> list[str]:
    lengths = rng.integers(0, 2 * mean + 1, n)
    chosen = np.searchsorted(steps, rng.random(int(lengths.sum()))).clip(max=len(lexicon) - 1)
    everything = lexicon[chosen].astype("<u4").tobytes().decode("utf-32-le")
    ends = 2 * np.cumsum(lengths)
    return [everything[end - 2 * length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


# Zips, written by hand: the standard library takes a minute for a million members, and a gigabyte to remember them


class ZipWriter:
    """Stored members one after the other, then a directory with zip64 records; the file stays below 4 GiB."""

    local = struct.Struct("<4s5H3L2H").pack
    entry = struct.Struct("<4s6H3L5H2L").pack
    end64 = struct.Struct("<4sQ2H2L4Q4sLQL4s4H2LH").pack
    UNIX_EPOCH_OF_ZIP = 0x21  # 1 January 1980

    def __init__(self) -> None:
        self.directory, self.offset, self.members = bytearray(), 0, 0

    def member(self, name: bytes, data: bytes, crc: int) -> bytes:
        """Bytes to write for a member: its header and data."""
        common = 0, 0, 0, self.UNIX_EPOCH_OF_ZIP, crc, len(data), len(data), len(name), 0
        self.directory += self.entry(b"PK\x01\x02", 20, 20, *common, 0, 0, 0, 0, self.offset) + name
        written = self.local(b"PK\x03\x04", 20, *common) + name + data
        self.offset += len(written)
        self.members += 1
        return written

    def end(self) -> bytes:
        size, n = len(self.directory), self.members
        end64 = b"PK\x06\x06", 44, 45, 45, 0, 0, n, n, size, self.offset
        locator = b"PK\x06\x07", 0, self.offset + size, 1
        plain = b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0
        return bytes(self.directory) + self.end64(*end64, *locator, *plain)


def write_feature_archive(path: Path, split: str, n: int) -> None:
    """`zip_feats/<split>.zip`: `n` members of 0 to MAX_FRAMES frames, few different ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = [(data, zlib.crc32(data)) for data in map(npy, range(10 * (MAX_FRAMES + 1)))]
    archive = ZipWriter()
    with path.open("wb") as file:
        for row in range(n):
            file.write(archive.member(f"{video_id(split, row)}.npy".encode(), *members[row % len(members)]))
        file.write(archive.end())


def npy(seed: int) -> bytes:
    buffer = io.BytesIO()
    shape = seed % (MAX_FRAMES + 1), FEATURE_DIM
    np.save(buffer, np.random.default_rng(seed).normal(size=shape).astype(np.float16))
    return buffer.getvalue()
