"""Reading `annotations/<split>.json`: one JSON array, streamed record by record, validated and normalised.

A record that cannot be used is yielded as a Rejection with its reason; only a file that is broken as JSON stops the
run. Missing text is legal: an absent or null `title`, `asr` or `ocr` counts as empty. Other wrong types are rejections.
"""

import codecs
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from framefold.data.ids import is_id
from framefold.errors import UserError

CHUNK = 1 << 20  # bytes read at a time
MAX_RECORD = 4 << 20  # characters of one record; what is longer is a broken file, and memory stays constant
MAX_INT_DIGITS = 1000  # Python refuses to convert integers above some 4,000 digits
MAX_SHOWN = 40  # characters of a broken id that are reported
SPACES = re.compile(r"[ \t\r\n]*")
# Control and format characters (zero width, direction marks, variation selectors) and the mark of lost bytes, U+FFFD.
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffd\U000e0001-\U000e01ef]"
)


class Record(NamedTuple):
    """One usable video; texts are normalised. `category_id` is None where the split has no labels."""

    id: str
    title: str
    asr: str
    ocr: str
    category_id: str | None


class Rejection(NamedTuple):
    """A record that cannot be used; `id` as far as it can be shown."""

    id: str
    reason: str


class _Reject(Exception):
    pass


def read_annotations(path: Path, labeled: bool, max_text: int) -> Iterator[Record | Rejection]:
    """Yield one Record or Rejection per element of the array, in file order.

    `max_text`: characters kept of each text. Raises UserError when the file is missing or no whole JSON array.
    """
    for number, value in enumerate(iterate_array(path)):
        try:
            yield parse_record(value, labeled, max_text)
        except _Reject as reject:
            yield Rejection(shown_id(value, number), str(reject))


def parse_record(value: Any, labeled: bool, max_text: int) -> Record:
    if not isinstance(value, dict):
        raise _Reject(f"record is {kind(value)}, not an object")
    if not isinstance(value.get("id"), str) or not is_id(value["id"]):
        raise _Reject("id is not a string of 1 to 20 digits")
    title, asr = text_field(value, "title"), text_field(value, "asr")
    lines = ocr_lines(value)
    category = category_field(value) if labeled else None
    try:
        "\n".join([title, asr, *lines]).encode("utf-8")
    except UnicodeEncodeError:
        raise _Reject("text is not valid UTF-8") from None
    return Record(
        value["id"], normalize(title, max_text), normalize(asr, max_text), join_ocr(lines, max_text), category
    )


def text_field(value: dict[str, Any], name: str) -> str:
    text = value.get(name)
    if text is not None and not isinstance(text, str):
        raise _Reject(f"{name} is {kind(text)}, not a string")
    return text or ""


def ocr_lines(value: dict[str, Any]) -> list[str]:
    """The texts of `ocr` in order of time."""
    entries = value.get("ocr")
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise _Reject(f"ocr is {kind(entries)}, not a list")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str) or type(entry.get("time")) is not int:
            raise _Reject('ocr holds something else than {"time": integer, "text": string}')
    return [entry["text"] for entry in sorted(entries, key=lambda entry: entry["time"])]


def category_field(value: dict[str, Any]) -> str:
    category = value.get("category_id")
    if not isinstance(category, str):
        raise _Reject(f"category_id is {kind(category)}, not a string")
    return category


def normalize(text: str, max_text: int) -> str:
    """NFKC, invisible characters removed, whitespace collapsed, cut to `max_text` characters."""
    text = text[: 4 * max_text]  # NFKC takes quadratic time on hostile text, so most of an endless one goes first
    return " ".join(INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).split())[:max_text].rstrip()


def join_ocr(lines: list[str], max_text: int) -> str:
    """Lines in order of time, each said once, joined by a space."""
    kept: dict[str, None] = {}
    length = 0
    for line in lines:
        line = normalize(line, max_text)
        if line and line not in kept:
            kept[line] = None
            length += len(line) + 1
        if length > max_text:
            break
    return " ".join(kept)[:max_text].rstrip()


def kind(value: Any) -> str:
    names = {type(None): "missing", bool: "true or false", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")


def shown_id(value: Any, number: int) -> str:
    video_id = value.get("id") if isinstance(value, dict) else None
    if isinstance(video_id, str | int):
        return str(video_id)[:MAX_SHOWN].encode("ascii", errors="backslashreplace").decode()
    return f"record {number}"


# JSON


def parse_int(text: str) -> int | float:
    return int(text) if len(text) <= MAX_INT_DIGITS else float(text)


class ArrayReader:
    """Holds a window of a JSON text and decodes one element of its top-level array at a time."""

    def __init__(self, path: Path):
        self.path = path
        # Broken UTF-8 becomes lone surrogates, so that one bad record does not take the file with it.
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape")
        self.parse = json.JSONDecoder(parse_int=parse_int).raw_decode
        self.buffer, self.position, self.dropped, self.ended = "", 0, 0, False

    def __iter__(self) -> Iterator[Any]:
        try:
            with open(self.path, "rb") as self.file:
                yield from self.elements()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); check data.root and the file") from None

    def elements(self) -> Iterator[Any]:
        if self.peek() != "[":
            raise self.broken("expected a JSON array `[`")
        self.position += 1
        if self.peek() == "]":
            return self.finish()
        while True:
            yield self.element()
            separator = self.peek()
            if separator == "]":
                return self.finish()
            if separator != ",":
                raise self.broken("expected `,` or `]` after a record" if separator else "the array is not closed")
            self.position += 1

    def finish(self) -> None:
        self.position += 1
        if self.peek():
            raise self.broken("text after the end of the array")

    def peek(self) -> str:
        """The next character that is not a space, or "" at the end of the file."""
        while True:
            spaces = SPACES.match(self.buffer, self.position)
            self.position = spaces.end() if spaces else self.position
            if self.position < len(self.buffer) or not self.fill():
                return self.buffer[self.position : self.position + 1]

    def element(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.parse(self.buffer, self.position)
                if end < len(self.buffer) or not self.fill():  # a number at the border may go on
                    self.position = end
                    return value
            except json.JSONDecodeError as error:
                if len(self.buffer) - self.position > MAX_RECORD or not self.fill():
                    raise self.broken(error.msg, error.pos - self.position) from None
            except RecursionError:
                raise self.broken("nested too deeply") from None

    def fill(self) -> bool:
        """Drop what is decoded and read on, at least as much again as is held; False at the end of the file."""
        self.dropped += self.position
        self.buffer, self.position = self.buffer[self.position :], 0
        if self.ended:
            return False
        data = self.file.read(max(CHUNK, len(self.buffer)))
        self.ended = not data
        self.buffer += self.decoder.decode(data, final=self.ended)
        return True

    def broken(self, problem: str, ahead: int = 0) -> UserError:
        place = self.dropped + self.position + ahead
        return UserError(f"{self.path}: broken JSON at character {place}: {problem}; copy or repair the file")


def iterate_array(path: Path) -> Iterator[Any]:
    """Yield the elements of a file that holds one JSON array, a few megabytes in memory at most."""
    return iter(ArrayReader(path))
