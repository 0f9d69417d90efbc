"""Masked language modelling with n-gram masking (Devlin et al. 2019; spans as in SpanBERT, Joshi et al. 2020)."""

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
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Hide spans of 1..max_ngram tokens, the shorter the likelier (p(n) ~ 1/n), until `rate` of the tokens are hidden.

    input_ids, text_mask (B, T); special: ids that are never chosen; keys (B,). The number of chosen tokens is
    rate * tokens, rounded up or down at random so that its mean is exact, and at least one. What happens to a video
    depends on (seed, epoch, its key) alone. Returns (masked ids (B, T), chosen positions (B, T) bool).
    """
    maskable = text_mask & ~np.isin(input_ids, special)
    order = _span_order(maskable, max_ngram, seed, epoch, keys)
    tokens = maskable.sum(axis=1)
    count = np.floor(rate * tokens + uniforms(Stream.COUNT, seed, epoch, keys, 1)[:, 0]).astype(np.int64)
    chosen = order < np.minimum(np.maximum(count, 1), tokens)[:, None]
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
    by_turn = np.argsort(hidden_at, axis=1, kind="stable")  # tokens of one span share its turn and stay in order
    order = np.empty_like(by_turn)
    np.put_along_axis(order, by_turn, np.arange(width)[None], axis=1)
    return order


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
