"""Published BERT folders load as they are, or say why not: pytest tests/test_text_weights.py"""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from head_params import head_params
from safetensors.torch import save_file
from torch import Tensor

from framefold.data.tokenizer import train_or_load
from framefold.errors import UserError
from framefold.models.registry import build_with_mlm_head
from framefold.models.text import load_text_encoder
from framefold.params.models import SingleStreamParams, TextModelParams
from framefold.params.text import TextParams
from framefold.storage import sha256_of

transformers = pytest.importorskip("transformers")

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"美食探店旅行日记宠物"]
CONFIG: dict[str, Any] = {
    "architectures": ["BertForMaskedLM"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
    "pooler_fc_size": 768,
}
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def published() -> State:
    """A checkpoint with everything that published ones have: pooler, both heads, position_ids."""
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(transformers.BertConfig(**CONFIG))
    state = {name: value + 0.01 * torch.randn_like(value) for name, value in model.state_dict().items()}
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"].clone()
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"].clone()
    return state | {"bert.embeddings.position_ids": torch.arange(20)[None]}


def write_folder(folder: Path, state: State, file: str = "pytorch_model.bin", **config: Any) -> TextModelParams:
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "vocab.txt").write_text("".join(f"{entry}\n" for entry in VOCABULARY), encoding="utf-8")
    if file.endswith(".bin"):
        torch.save(state, folder / file)
    else:
        save_file({name: value.contiguous() for name, value in state.items()}, folder / file)
    return TextModelParams(folder=str(folder), sha256=None, sizes=None)


def legacy(state: State) -> State:
    """Names as in checkpoints converted from TensorFlow, e.g. chinese-roberta-wwm-ext's pytorch_model.bin."""
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, value in state.items():
        end = next((old for old in names if name.endswith(old)), None)
        renamed[name.removesuffix(end) + names[end] if end else name] = value
    return renamed


def without_prefix(state: State) -> State:
    """As BertModel alone saves itself."""
    return {name.removeprefix("bert."): value for name, value in state.items() if name.startswith("bert.")}


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("form", [dict, legacy, without_prefix])
@torch.no_grad()
def test_published_folder_loads(tmp_path: Path, published: State, file: str, form: Any) -> None:
    """Both file formats, old and new names, with or without prefix: the states are those of the library's model."""
    params = write_folder(tmp_path, form(published), file)
    encoder, head = load_text_encoder(params, len(VOCABULARY))
    reference = transformers.BertModel(transformers.BertConfig(**CONFIG), add_pooling_layer=False).eval()
    reference.load_state_dict(
        {n: v for n, v in without_prefix(published).items() if n.startswith(("emb", "enc"))}, False
    )
    ids = torch.randint(0, len(VOCABULARY), (3, 9))
    states = encoder.eval()(ids, attention_mask=torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(states, reference(ids).last_hidden_state, atol=1e-5, rtol=0)
    assert (head is None) == (form is without_prefix)


def test_folder_serves_vocabulary_and_model(tmp_path: Path, published: State) -> None:
    """`text.vocab` and `student.text.folder` on one folder: tokenizer, backbone and pretrained MLM head fit."""
    params = write_folder(tmp_path, published)
    text = TextParams(vocab=str(tmp_path), vocab_size=100, max_tokens=8, words=False, max_unknown=0.1)
    tokenizer = train_or_load(text, list)
    arch_params = SingleStreamParams(**head_params(hidden=8, dropout=0.0))
    model, head = build_with_mlm_head("single_stream", params, arch_params, tokenizer.special.size, 6, 3)
    assert torch.equal(model.word_embeddings.weight, published["bert.embeddings.word_embeddings.weight"])
    assert torch.equal(head.transform.dense.weight, published["cls.predictions.transform.dense.weight"])
    assert torch.equal(head.bias, published["cls.predictions.bias"])


def test_half_precision_weights_become_float32(tmp_path: Path, published: State) -> None:
    params = write_folder(tmp_path, {name: value.half() for name, value in without_prefix(published).items()})
    encoder, _ = load_text_encoder(params, len(VOCABULARY))
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_safetensors_is_preferred(tmp_path: Path, published: State) -> None:
    write_folder(tmp_path, {}, "pytorch_model.bin")
    load_text_encoder(write_folder(tmp_path, published, "model.safetensors"), len(VOCABULARY))


def failing(folder: Path, state: State, message: str, **config: Any) -> None:
    with pytest.raises(UserError, match=message):
        load_text_encoder(write_folder(folder, state, **config), len(VOCABULARY))


def test_missing_and_left_over_weights_are_named(tmp_path: Path, published: State) -> None:
    """Never silently random: the message holds the names of both."""
    state = dict(published)
    state["bert.encoder.layer.7.output.dense.bias"] = state.pop("bert.encoder.layer.1.output.dense.bias")
    failing(
        tmp_path,
        state,
        r"missing: encoder\.layer\.1\.output\.dense\.bias; left over: encoder\.layer\.7\.output\.dense\.bias",
    )


def test_config_of_another_size_names_both_shapes(tmp_path: Path, published: State) -> None:
    failing(tmp_path, published, r"\(20, 16\) in the file, \(24, 16\) in the model", max_position_embeddings=24)


def test_other_vocabulary_names_both_sizes(tmp_path: Path, published: State) -> None:
    params = write_folder(tmp_path, published)
    with pytest.raises(UserError, match=f"has {len(VOCABULARY)} tokens, the tokenizer 21128; set text.vocab to"):
        load_text_encoder(params, 21128)


def test_untied_output_layer_is_refused(tmp_path: Path, published: State) -> None:
    weight = published["cls.predictions.decoder.weight"] + 1
    failing(tmp_path, published | {"cls.predictions.decoder.weight": weight}, "only tied checkpoints are supported")


def test_digest_is_checked(tmp_path: Path, published: State) -> None:
    params = write_folder(tmp_path, published)
    right = sha256_of(tmp_path / "pytorch_model.bin")
    load_text_encoder(params.model_copy(update={"sha256": right.upper()}), len(VOCABULARY))
    with pytest.raises(UserError, match=f"sha256 is {right}, params say 00"):
        load_text_encoder(params.model_copy(update={"sha256": "00"}), len(VOCABULARY))


class Payload:
    """Unpickled, it creates a file: what a hostile checkpoint would do."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_hostile_checkpoint_runs_nothing(tmp_path: Path, published: State) -> None:
    params = write_folder(tmp_path, published | {"x": Payload(tmp_path / "touched")})  # type: ignore[dict-item]
    with pytest.raises(UserError, match=r"pytorch_model\.bin: cannot be read as weights"):
        load_text_encoder(params, len(VOCABULARY))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not weights", pickle.dumps([1, 2], 2)], ids=["empty", "garbage", "no tensors"]
)
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_broken_file_is_one_line(tmp_path: Path, published: State, content: bytes, file: str) -> None:
    params = write_folder(tmp_path, published, file)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=file) as error:
        load_text_encoder(params, len(VOCABULARY))
    assert "\n" not in str(error.value)


def test_folder_without_weights_says_which_are_looked_for(tmp_path: Path, published: State) -> None:
    params = write_folder(tmp_path, published)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"holds none of model\.safetensors, pytorch_model\.bin"):
        load_text_encoder(params, len(VOCABULARY))


def test_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        load_text_encoder(TextModelParams(folder=str(tmp_path), sha256=None, sizes=None), 10)
