"""Words written down as a title, speech recognition (asr) and on-screen text (ocr), and the edits of a re-upload."""

from typing import Any

import numpy as np

from framefold.data.demo.text import FILLERS, PUNCTUATION, SPEECH_ERRORS, WATERMARKS, Language, Words

HASHTAGS = 3  # at most, the last words of a title
FILLER = 0.15  # titles that end with a stock phrase
PUNCTUATED = 0.18  # words of a title that are followed by a mark
SPLIT_SECONDS = 5  # between two on-screen texts
MAX_SCREENS = 4  # samplings of the on-screen text, each repeating what is still there
WATERMARKED = 0.6  # videos with on-screen text that carry a watermark


def transcribe(rng: np.random.Generator, language: Language, words: Words, on_screen: bool) -> dict[str, Any]:
    """`title`, `asr` and `ocr` of the official layout."""
    title = [language.words[index] for index in words.title]
    caption = [language.words[index] for index in words.caption] or title[: rng.integers(2, 5)]
    return {
        "title": write_title(rng, title),
        "asr": write_speech(rng, language, [language.words[index] for index in words.speech]),
        "ocr": write_screen(rng, "".join(caption)) if on_screen else [],
    }


def write_title(rng: np.random.Generator, words: list[str]) -> str:
    if not words:
        return ""
    plain = max(len(words) - int(rng.integers(HASHTAGS + 1)), 1)
    marks = [choose(rng, PUNCTUATION) if rng.random() < PUNCTUATED else "" for _ in words[:plain]]
    text = "".join(word + mark for word, mark in zip(words[:plain], marks, strict=True))
    text += choose(rng, FILLERS) if rng.random() < FILLER else ""
    return text + "".join(f"#{word}" for word in words[plain:])


def write_speech(rng: np.random.Generator, language: Language, words: list[str]) -> str:
    """Recognition hears some characters wrong."""
    characters = np.array(list("".join(words)), dtype="U1")
    wrong = rng.random(len(characters)) < SPEECH_ERRORS
    characters[wrong] = rng.choice(language.alphabet, int(wrong.sum()))
    return "".join(characters)


def write_screen(rng: np.random.Generator, caption: str) -> list[dict[str, Any]]:
    """The caption on every sampling while it stands, and a watermark that never goes."""
    watermark = choose(rng, WATERMARKS) if rng.random() < WATERMARKED else ""
    lines = []
    for screen in range(rng.integers(1, MAX_SCREENS + 1)):
        shown = [caption if rng.random() < 0.8 or not watermark else "", watermark]
        lines += [{"time": screen * SPLIT_SECONDS, "text": text} for text in shown if text]
    return lines


def edit(rng: np.random.Generator, record: dict[str, Any]) -> dict[str, Any]:
    """The text of a re-upload: its title touched up, its watermark another's, speech as it was."""
    title = record["title"]
    if title:
        edits = (
            f"【转】{title}",
            f"{title}{choose(rng, PUNCTUATION)}",
            f"{title}#转发",
            title[1:],
            title.rsplit("#", 1)[0],
        )
        title = choose(rng, edits) or title
    watermark = choose(rng, WATERMARKS)
    ocr = [line | {"text": watermark if line["text"] in WATERMARKS else line["text"]} for line in record["ocr"]]
    return {"title": title, "asr": record["asr"], "ocr": ocr}


def choose(rng: np.random.Generator, options: tuple[str, ...] | list[str]) -> str:
    return options[int(rng.integers(len(options)))]
