"""What a video says: words drawn from its class, then written down as a title, speech recognition and on-screen text.

Every word of a video is an independent draw from one mixture: general words, words of the reading, of the theme,
and, now and then, of the look, so that titles say something about the picture. Some videos are small talk: general
words only. The lexicons are coined from common Chinese characters; characters carry meaning, each lexicon having a
family of its own, and families overlap.
"""

from dataclasses import dataclass

import numpy as np

from framefold.data.demo.world import World

ALPHABET = 700  # characters that words are coined from
GENERAL_WORDS, READING_WORDS, THEME_WORDS, LOOK_WORDS = 600, 60, 110, 40
GENERAL_FAMILY, READING_FAMILY, THEME_FAMILY, LOOK_FAMILY = 400, 40, 44, 24  # characters a lexicon is coined from
LONG_WORD = 0.15  # share of words of three characters, not two
WORD_OFFSET, WORD_EXPONENT = 5.0, 0.7  # frequency of a lexicon's words, ~ (rank + offset) ** -exponent
BORROWED = 0.30  # of the theme words, drawn from the other themes of the same reading
#          general, reading, theme, look
TITLE_MIX = (0.57, 0.16, 0.10, 0.17)
SPEECH_MIX = (0.74, 0.12, 0.08, 0.06)
SMALL_TALK = 0.10  # videos whose text has general words only

TITLE_WORDS, SPEECH_WORDS, CAPTION_WORDS = (6, 11), (5, 13), (2, 5)  # at least, below
NO_TITLE, NO_SPEECH, NO_SCREEN_TEXT = 0.04, 0.55, 0.35
SPEECH_ERRORS = 0.12  # characters that speech recognition gets wrong
OWN_CAPTION = 0.4  # captions with words of their own; the others repeat a piece of the title
FILLERS = (
    "家人们谁懂啊",
    "记得点赞关注",
    "太好看了吧",
    "一定要看到最后",
    "建议收藏",
    "双击加关注",
    "今日份分享",
    "每天一点小快乐",
)
PUNCTUATION = ("，", "！", "。", "～", "😂", " ")
WATERMARKS = ("视频号", "@小鱼日记", "@今日看点", "原创出品", "剪辑助手", "@大山视频")


@dataclass(frozen=True)
class Words:
    """The words that were drawn, as indices into the lexicon; an absent modality has none."""

    title: np.ndarray
    speech: np.ndarray
    caption: np.ndarray


class Language:
    """Lexicon and emission probabilities of a world; the same seed coins the same words."""

    def __init__(self, world: World, seed: int):
        rng = np.random.default_rng([seed, 1])
        self.alphabet = rng.permutation(common_characters())[:ALPHABET]
        self.words: list[str] = []
        readings, looks = int(world.reading.max()) + 1, (int(world.scenery.max()) + 1) * world.variants
        general = self.coin(rng, 1, GENERAL_WORDS, GENERAL_FAMILY)
        reading = self.coin(rng, readings, READING_WORDS, READING_FAMILY)
        theme = self.coin(rng, readings * world.variants, THEME_WORDS, THEME_FAMILY)
        look = self.coin(rng, looks, LOOK_WORDS, LOOK_FAMILY)
        topics = [self.emission(lexicon) for lexicon in (general, reading, theme, look)]
        topics[2] = borrow(topics[2], world.variants)
        parts = [topics[0][0 * world.theme], topics[1][world.reading], topics[2][world.theme], topics[3][world.look]]
        self.small_talk = topics[0][0]  # (V,) probabilities
        self.title = sum(share * part for share, part in zip(TITLE_MIX, parts, strict=True))  # (C, V)
        self.speech = sum(share * part for share, part in zip(SPEECH_MIX, parts, strict=True))  # (C, V)

    def coin(self, rng: np.random.Generator, lexicons: int, size: int, family: int) -> list[np.ndarray]:
        """New words for each of `lexicons`; returns their indices, most frequent first."""
        known, indices = set(self.words), []
        for _ in range(lexicons):
            characters = rng.permutation(self.alphabet)[:family]
            start = len(self.words)
            while len(self.words) < start + size:
                word = "".join(rng.choice(characters, 3 if rng.random() < LONG_WORD else 2))
                if word not in known:
                    known.add(word)
                    self.words.append(word)
            indices.append(np.arange(start, start + size))
        return indices

    def emission(self, lexicons: list[np.ndarray]) -> np.ndarray:
        """(lexicons, V) probabilities; V counts the words coined in all, so call it when no more follow."""
        table = np.zeros((len(lexicons), len(self.words)))
        for row, indices in zip(table, lexicons, strict=True):
            row[indices] = (np.arange(len(indices)) + WORD_OFFSET) ** -WORD_EXPONENT
        return table / table.sum(axis=1, keepdims=True)

    def draw(self, rng: np.random.Generator, label: int) -> Words:
        title, speech = (self.small_talk,) * 2 if rng.random() < SMALL_TALK else (self.title[label], self.speech[label])
        present = rng.random(3) >= (NO_TITLE, NO_SPEECH, NO_SCREEN_TEXT)
        own_caption = present[2] and rng.random() < OWN_CAPTION
        return Words(
            title=sample(rng, title, int(rng.integers(*TITLE_WORDS)) * int(present[0])),
            speech=sample(rng, speech, int(rng.integers(*SPEECH_WORDS)) * int(present[1])),
            caption=sample(rng, title, int(rng.integers(*CAPTION_WORDS)) * int(own_caption)),
        )


def common_characters() -> list[str]:
    """The 3,755 characters of GB 2312's first level."""
    rows = (bytes([high, low]).decode("gb2312", "ignore") for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF))
    return [character for character in rows if character]


def borrow(theme: np.ndarray, variants: int) -> np.ndarray:
    """Mix into every theme the words of the other themes of its reading."""
    rows = theme.reshape(-1, variants, theme.shape[1])
    others = (rows.sum(axis=1, keepdims=True) - rows) / max(variants - 1, 1)
    return ((1 - BORROWED) * rows + BORROWED * others).reshape(theme.shape)


def sample(rng: np.random.Generator, probabilities: np.ndarray, n: int) -> np.ndarray:
    cumulative = np.cumsum(probabilities)
    return np.searchsorted(cumulative, rng.random(n) * cumulative[-1], side="right")
