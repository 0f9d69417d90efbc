"""Where words begin in Chinese text, by jieba: for whole-word masking (Chinese BERT-wwm, Cui et al. 2021)."""

from functools import cache

import jieba
import numpy as np
import numpy.typing as npt

Spans = list[tuple[int, int]]  # where tokens begin and end in their text, in characters


@cache
def _segmenter() -> jieba.Tokenizer:
    """With the dictionary that comes with the package, read anew in half a second.

    Left to itself, jieba would load any `jieba.cache` that lies in the temp folder, write one there, and log it.
    """
    segmenter = jieba.Tokenizer()
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    return segmenter


def word_starts(text: str, spans: Spans, continues: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which of the tokens at `spans` of `text` begin a word, (tokens,) bool; the first one does.

    A token is of the word that holds its first character. continues (tokens,): WordPiece's `##` pieces, which never
    begin one, whatever the segmenter thinks of a Latin word. Text after the last token is not looked at.
    """
    if not spans:
        return np.zeros(0, np.bool_)
    ends = np.cumsum([len(word) for word in _segmenter().cut(text[: spans[-1][1]])])
    word = np.searchsorted(ends, [start for start, _ in spans], side="right")  # (tokens,)
    begins = np.append(True, word[1:] != word[:-1])
    return begins & ~continues | (np.arange(len(spans)) == 0)
