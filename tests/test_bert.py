"""The text encoder computes what BertModel computes: pytest tests/test_bert.py"""

from typing import Any

import pytest
import torch

from framefold.errors import UserError
from framefold.models.bert import BertConfig, BertEncoder
from framefold.models.heads import MlmHead
from framefold.models.text import split_checkpoint
from framefold.models.weights import load_strict

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.3,  # larger than in practice, so that every term of the computation shows
}
Pair = tuple[Any, BertEncoder, MlmHead]


@pytest.fixture(scope="module")
def pair() -> Pair:
    """The library's model with random weights, biases and norms included, and ours with the same."""
    torch.manual_seed(0)
    reference = transformers.BertForPreTraining(transformers.BertConfig(**SIZES)).eval()
    for parameter in reference.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    config = BertConfig.from_dict(SIZES, "test")
    ours, head = BertEncoder(config), MlmHead(config)
    encoder_state, head_state = split_checkpoint(reference.state_dict(), "test")
    load_strict(ours, encoder_state, "test")
    load_strict(head, head_state or {}, "test")
    return reference, ours.eval(), head.eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 90, (5, 17), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([17, 1, 9, 16, 3])
    return ids, torch.arange(17) < lengths[:, None]


@torch.no_grad()
def assert_equal_states(pair: Pair, mask: torch.Tensor, **inputs: torch.Tensor) -> None:
    expected = pair[0].bert(attention_mask=mask.long(), **inputs).last_hidden_state
    found = pair[1](attention_mask=mask, **inputs)
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-5, rtol=0)


def test_states_equal_bert(pair: Pair) -> None:
    """Token ids and padding of several lengths."""
    ids, mask = batch()
    assert_equal_states(pair, mask, input_ids=ids)


def test_states_equal_bert_with_types_and_positions(pair: Pair) -> None:
    ids, mask = batch()
    types, positions = ids % 2, (ids * 7) % 24
    assert_equal_states(pair, mask, input_ids=ids, token_type_ids=types, position_ids=positions)


def test_states_equal_bert_from_embeddings(pair: Pair) -> None:
    """Vectors in place of word embeddings: how frames enter."""
    ids, mask = batch()
    vectors = torch.randn(5, 17, 32, generator=torch.Generator().manual_seed(2))
    assert_equal_states(pair, mask, inputs_embeds=vectors, token_type_ids=torch.ones_like(ids))


@torch.no_grad()
def test_one_type_for_all_equals_a_tensor_of_it(pair: Pair) -> None:
    ids, mask = batch()
    by_number = pair[1](ids, attention_mask=mask, token_type_ids=1)
    torch.testing.assert_close(by_number, pair[1](ids, attention_mask=mask, token_type_ids=torch.ones_like(ids)))


@torch.no_grad()
def test_mlm_logits_equal_bert_at_masked_positions(pair: Pair) -> None:
    """Only the masked positions are computed, in the order of the sequence."""
    reference, ours, head = pair
    ids, mask = batch()
    masked = mask & (ids % 3 == 0)
    expected = reference(input_ids=ids, attention_mask=mask.long()).prediction_logits[masked]
    positions = masked.flatten().nonzero().squeeze(1)
    found = head(ours(ids, attention_mask=mask), positions, ours.embeddings.word_embeddings)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_gradients_equal_bert(pair: Pair) -> None:
    ids, mask = batch()
    weight = torch.randn(5, 17, 32, generator=torch.Generator().manual_seed(3)) * mask.unsqueeze(-1)
    grads = []
    for model in (pair[0].bert, pair[1]):
        out = model(input_ids=ids, attention_mask=mask if model is pair[1] else mask.long())
        states = out if isinstance(out, torch.Tensor) else out.last_hidden_state
        embeddings = model.embeddings.word_embeddings.weight
        grads.append(torch.autograd.grad((states * weight).sum(), [embeddings])[0])
    torch.testing.assert_close(grads[1], grads[0], atol=1e-4, rtol=1e-4)


def test_row_without_any_token_stays_finite(pair: Pair) -> None:
    """A row of padding alone gives no NaN, neither in its states nor in anyone's gradient."""
    ids, mask = batch()
    mask = mask.clone()
    mask[2] = False
    states = pair[1](ids, attention_mask=mask)
    gradients = torch.autograd.grad(states[mask].sum(), list(pair[1].parameters()), allow_unused=True)
    assert states.isfinite().all()
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_too_long_text_names_both_lengths(pair: Pair) -> None:
    ids = torch.zeros(1, 25, dtype=torch.long)
    with pytest.raises(UserError, match="25 positions needed, it has 24"):
        pair[1](ids, attention_mask=torch.ones_like(ids, dtype=torch.bool))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu', only 'gelu' is supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"num_attention_heads": 5}, "5 heads do not divide 32 hidden units"),
    ],
)
def test_other_architectures_are_refused(change: dict[str, Any], message: str) -> None:
    """What would be computed differently is an error, never a silent approximation."""
    with pytest.raises(UserError, match=message):
        BertConfig.from_dict(SIZES | change, "config.json")


def test_incomplete_config_names_the_missing_keys() -> None:
    content = {name: value for name, value in SIZES.items() if name not in ("hidden_size", "vocab_size")}
    with pytest.raises(UserError, match=r"config\.json: \['hidden_size', 'vocab_size'\] missing"):
        BertConfig.from_dict(content, "config.json")
