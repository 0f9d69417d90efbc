"""Masked language modelling (Devlin et al. 2019) of tokens, n-grams (as spans in SpanBERT, Joshi et al. 2020) or whole
words (Chinese BERT-wwm, Cui et al. 2021)."""

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

from framefold.objectives.keyed import Stream, uniforms

KEEP, RANDOM = 0.1, 0.1  # BERT: of the predicted tokens 10 % stay, 10 % become a random token, the rest [MASK]


def mask_tokens(
    input_ids: npt.NDArray[np.int64],
    text_mask: npt.NDArray[np.bool_],
    *,
    special: npt.NDArray[np.int64],
    mask_id: int,
    vocab_size: int,
    rate: float,
    max_ngram: int,
    seed: int,
    epoch: int,
    keys: npt.NDArray[np.int64],
    word_starts: npt.NDArray[np.bool_] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Hide spans of 1..max_ngram tokens, the shorter the likelier (p(n) ~ 1/n), until `rate` of the tokens are hidden;
    with word_starts (B, T) whole words instead.

    input_ids, text_mask (B, T); special: ids that are never chosen; keys (B,). The number of chosen tokens is
    rate * tokens in the mean: rounded up or down at random and at least one; of words, the one that would exceed it is
    chosen or not at random, and a short text may lose none. What happens to a video depends on (seed, epoch, its key)
    alone. Returns (masked ids (B, T), chosen positions (B, T) bool).
    """
    maskable = text_mask & ~np.isin(input_ids, special)
    wanted, chance = rate * maskable.sum(axis=1), uniforms(Stream.COUNT, seed, epoch, keys, 1)[:, 0]
    if word_starts is None:
        order = _span_order(maskable, max_ngram, seed, epoch, keys)
        count = np.floor(wanted + chance).astype(np.int64)
        chosen = order < np.minimum(np.maximum(count, 1), maskable.sum(axis=1))[:, None]
    else:
        chosen = _whole_words(maskable, word_starts, wanted, chance, seed, epoch, keys)
    return _replace(input_ids, chosen, special, mask_id, vocab_size, seed, epoch, keys), chosen


def masked_token_loss(logits: Tensor, targets: Tensor, total: Tensor) -> Tensor:
    """Mean cross-entropy at the chosen positions, a scalar; zero if there are none.

    logits (M, V), targets (M,). total (): how many the mean is over, those of other processes included.
    """
    return F.cross_entropy(logits.float(), targets, reduction="sum") / total


def _span_order(
    maskable: npt.NDArray[np.bool_], max_ngram: int, seed: int, epoch: int, keys: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """(B, T): the rank at which a token is hidden when spans are laid down one by one, at random places.

    A span of random length starts at every token; a token is hidden by the earliest of those that cover it. Spans end
    at special tokens and padding.
    """
    width = maskable.shape[1]
    turn = uniforms(Stream.PLACES, seed, epoch, keys, width)
    odds = np.cumsum(1 / np.arange(1, max_ngram + 1))
    length = 1 + np.searchsorted(odds / odds[-1], uniforms(Stream.LENGTHS, seed, epoch, keys, width), side="right")
    start = np.where(maskable, turn, np.inf)
    hidden_at, reaches = start.copy(), maskable.copy()
    for step in range(1, min(max_ngram, width)):
        reaches[:, step:] = reaches[:, step - 1 : -1] & maskable[:, step:]  # the span from `step` before is unbroken
        reaches[:, :step] = False
        covered = reaches[:, step:] & (length[:, :-step] > step)
        hidden_at[:, step:] = np.where(covered, np.minimum(hidden_at[:, step:], start[:, :-step]), hidden_at[:, step:])
    return _ranks(hidden_at)  # tokens of one span share its turn and stay in order


def _whole_words(
    maskable: npt.NDArray[np.bool_],
    word_starts: npt.NDArray[np.bool_],
    wanted: npt.NDArray[np.float64],
    chance: npt.NDArray[np.float64],
    seed: int,
    epoch: int,
    keys: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """(B, T): words in random order, as long as they are within `wanted` (B,) tokens.

    The word that goes beyond is taken with the probability that makes the mean exact: the part of it that is within.
    """
    rows, width = maskable.shape
    word = np.cumsum(
        word_starts, axis=1, dtype=np.int64
    )  # (B, T), number of the word; special tokens are words of their own
    turn = np.take_along_axis(uniforms(Stream.PLACES, seed, epoch, keys, width + 1), word, axis=1)
    rank = _ranks(np.where(maskable, turn, np.inf))
    flat = (word + np.arange(rows)[:, None] * (width + 1))[maskable]  # one number for each word of the batch
    length = np.bincount(flat, minlength=rows * (width + 1))[flat]
    before = np.full(rows * (width + 1), width)
    np.minimum.at(before, flat, rank[maskable])  # tokens of the words whose turn comes earlier
    row = np.nonzero(maskable)[0]
    chosen = np.zeros_like(maskable)
    chosen[maskable] = before[flat] + chance[row] * length < wanted[row]
    return chosen


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """(B, T): the place of each value among those of its row, in ascending order; equal ones stay in order."""
    ascending = np.argsort(values, axis=1, kind="stable")
    ranks = np.empty_like(ascending)
    np.put_along_axis(ranks, ascending, np.arange(values.shape[1])[None], axis=1)
    return ranks


def _replace(
    input_ids: npt.NDArray[np.int64],
    chosen: npt.NDArray[np.bool_],
    special: npt.NDArray[np.int64],
    mask_id: int,
    vocab_size: int,
    seed: int,
    epoch: int,
    keys: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    width = input_ids.shape[1]
    fate = uniforms(Stream.FATE, seed, epoch, keys, width)
    ordinary = np.setdiff1d(np.arange(vocab_size), special)
    random_ids = ordinary[(uniforms(Stream.TOKENS, seed, epoch, keys, width) * len(ordinary)).astype(np.int64)]
    hidden = np.where(fate < KEEP, input_ids, np.where(fate < KEEP + RANDOM, random_ids, mask_id))
    return np.where(chosen, hidden, input_ids)
