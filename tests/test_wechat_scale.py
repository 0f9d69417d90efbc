"""profiles/wechat.yaml at its true sizes, without its data, its weights or a GPU.

Run, with the table: .venv/bin/python -m pytest -m medium -s tests/test_wechat_scale.py

Models and batches are built on the meta device, where tensors have shapes but no values: shapes are checked and
operations counted as they would run. One training step per model is then really taken, at full width and length with
one layer.
"""

import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from framefold.data.tokens import SpecialTokens
from framefold.models.bert import BertConfig, BertEncoder
from framefold.models.heads import MlmHead
from framefold.models.registry import architecture
from framefold.models.vision import VisionEncoder, load_vision_encoder
from framefold.objectives.itm import mismatched_pairs
from framefold.params.base import load
from framefold.params.encoders import EncoderParams
from framefold.params.finetune import FinetuneParams
from framefold.params.models import InputParams, StudentParams
from framefold.params.pretrain import PretrainParams
from framefold.params.profiles import apply_profile
from framefold.params.split import SplitParams
from framefold.params.teacher import TeacherParams
from framefold.params.training import AdversarialParams, OptimizationParams
from framefold.scratch import Scratch
from framefold.training.loop import train
from framefold.training.pretraining import PretrainingModel
from framefold.training.sharing import Share
from framefold.training.tasks import ClassificationTask, PretrainingTask
from framefold.training.views import Masking

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[1]
LABELED, UNLABELED, TEST, CLASSES = 100_000, 1_000_000, 25_000, 200
FRAMES = 31 * (LABELED + UNLABELED + TEST)  # about 35 million: most videos have all 32
VOCABULARY = 21_128
SPECIAL = SpecialTokens(pad=0, unk=100, cls=101, sep=102, mask=103, size=VOCABULARY)
SIZES = {  # config.json of chinese-roberta-wwm-ext and -large
    "pretrained/chinese-roberta-wwm-ext": {"layers": 12, "hidden": 768, "heads": 12, "intermediate": 3072},
    "pretrained/chinese-roberta-wwm-ext-large": {"layers": 24, "hidden": 1024, "heads": 16, "intermediate": 4096},
}
BF16_FLOPS = (
    400e12  # a second that one H100 or H200 does of these shapes: 40 % of its peak. An assumption, not a measurement
)

Batch = dict[str, Tensor]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wechat")
    shutil.copy(ROOT / "params.yaml", root)
    shutil.copytree(ROOT / "profiles", root / "profiles")
    apply_profile("wechat", [], root)
    return root / "params.yaml"


def bert(folder: str, layers: int | None = None) -> BertEncoder:
    sizes = SIZES[folder]
    config = {
        "vocab_size": VOCABULARY,
        "hidden_size": sizes["hidden"],
        "num_hidden_layers": layers or sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["intermediate"],
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    return BertEncoder(BertConfig.from_dict(config, folder))


@dataclass(frozen=True)
class Model:
    """What one stage trains: how to build it (with all layers or fewer), and how large its batches are."""

    arch: str
    text_folder: str
    params: Any
    inputs: InputParams
    feature_dim: int
    batch_size: int

    def build(self, layers: int | None = None) -> Any:
        return architecture(self.arch)(bert(self.text_folder, layers), self.params, self.feature_dim, CLASSES)

    def batch(self, size: int) -> Batch:
        """Every video at full length; on the current default device."""
        tokens = 4 + self.inputs.title + self.inputs.asr + self.inputs.ocr
        ids = torch.full((size, tokens), 500)
        for position in (0, self.inputs.title + 1, self.inputs.title + self.inputs.asr + 2, tokens - 1):
            ids[:, position] = SPECIAL.cls if position == 0 else SPECIAL.sep
        return {
            "row": torch.arange(size),
            "key": torch.arange(size),
            "input_ids": ids,
            "text_mask": torch.ones(size, tokens, dtype=torch.bool),
            "frames": torch.randn(size, self.inputs.max_frames, self.feature_dim),
            "frame_mask": torch.ones(size, self.inputs.max_frames, dtype=torch.bool),
            "label": torch.zeros(size, dtype=torch.int64),
            "soft": torch.full((size, CLASSES), 1 / CLASSES),
        }


FEATURE_DIM = {"vit_b16": 512, "vit_l14": 768}


def student(arch: str, project: Path, batch_size: int) -> Model:
    params = load(StudentParams, path=project)
    size = load(architecture(arch).Params, path=project)
    assert params.text.folder is not None
    return Model(arch, params.text.folder, size, params.inputs, FEATURE_DIM[params.encoder], batch_size)


def teacher(project: Path) -> Model:
    params = load(TeacherParams, path=project)
    assert params.text.folder is not None
    size = params.training.batch_size
    return Model("single_stream", params.text.folder, params.model, params.inputs, FEATURE_DIM[params.encoder], size)


def pretraining_batch(project: Path) -> int:
    """Videos of full length in a batch of `pretrain`."""
    params, inputs = load(PretrainParams, path=project), load(StudentParams, path=project).inputs
    assert params.batch_tokens is not None
    return min(
        params.batch_size, params.batch_tokens // (4 + inputs.title + inputs.asr + inputs.ocr + inputs.max_frames)
    )


def pretraining(model: Model, params: PretrainParams, layers: int | None = None) -> PretrainingModel:
    backbone = model.build(layers)
    head = MlmHead(backbone.text.config)
    return PretrainingModel(backbone, head, params.weights[model.arch], params)  # type: ignore[index]


# Counting on the meta device


@dataclass(frozen=True)
class Cost:
    parameters: int
    flops: float  # of one sample
    activations: float  # bytes kept for the backward pass of one batch, in bf16, with fused attention


def count(module: nn.Module, run: Callable[[], Tensor], samples: int, backward: bool = True) -> Cost:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        attention = tensor.ndim >= 3 and tensor.shape[-1] == tensor.shape[-2]  # (.., T, T): no fused kernel keeps it
        if not attention and not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor.numel() * 2
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        result = run()
        if backward:
            result.backward()
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Cost(parameters, counter.get_total_flops() / samples, sum(kept.values()))


def classification_cost(model: Model, backward: bool = True) -> Cost:
    with torch.device("meta"), torch.set_grad_enabled(backward):
        module = model.build()
        task, batch = ClassificationTask(module, 0.1), model.batch(model.batch_size)
        share = Share(model.batch_size, model.batch_size)
        return count(module, lambda: task.loss(batch, share)[0], model.batch_size, backward)


def paired(batch: Batch, share: float) -> Batch:
    """With mismatched pairs as `MismatchedVideos` adds them."""
    rows, partners = map(torch.as_tensor, mismatched_pairs(share, len(batch["row"])))
    masks = {"pair_frame_mask": batch["frame_mask"][partners]}
    return batch | masks | {"pair_rows": rows, "pair_frames": batch["frames"][partners]}


def pretraining_cost(model: Model, params: PretrainParams, monkeypatch: pytest.MonkeyPatch) -> Cost:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no meta device
    size = model.batch_size
    with torch.device("meta"):
        module, batch = pretraining(model, params), paired(model.batch(size), params.mismatched.share)
        tokens, frames = (round(params.masking.rate * batch["text_mask"].numel()), batch["frame_mask"].numel())
        batch |= {"masked_ids": batch["input_ids"], "hidden_frames": batch["frame_mask"]}
        batch |= {"token_places": torch.arange(tokens), "token_targets": torch.arange(tokens)}
        batch |= {"frame_places": torch.arange(round(params.masking.frame_rate * frames))}
        return count(module, lambda: PretrainingTask(module).loss(batch, Share(size, size))[0], size)


@cache
def tower(name: str, project: Path) -> VisionEncoder:
    params = load(EncoderParams, f"encoders.{name}", project)
    with torch.device("meta"):
        return load_vision_encoder(params.model_copy(update={"weights": None}))


def tower_cost(name: str, project: Path, backward: bool) -> Cost:
    encoder, params = tower(name, project), load(EncoderParams, f"encoders.{name}", project)
    size = params.adapt.batch_size if backward else params.batch_size
    images = torch.zeros(size, 3, *2 * [encoder.preprocess.image_size], device="meta")
    with torch.set_grad_enabled(backward):
        return count(encoder, lambda: encoder(images).sum(), size, backward)


@dataclass(frozen=True)
class Row:
    stage: str
    cost: Cost
    samples: float  # forward (and backward) passes of one sample in the whole stage, over all its items
    trains: bool

    @property
    def flops(self) -> float:
        return self.cost.flops * self.samples

    @property
    def memory(self) -> float:
        """Bytes: fp32 weights, and in training gradients, two moments, EMA, and the activations of one batch."""
        return self.cost.parameters * (20 if self.trains else 4) + (self.cost.activations if self.trains else 0)

    def line(self) -> str:
        hours = self.flops / BF16_FLOPS / 3600
        return (
            f"{self.stage:<24} {self.cost.parameters / 1e6:>6.0f} M {self.cost.flops / 1e9:>6.0f} "
            f"{self.flops:>9.1e} {self.memory / 2**30:>5.0f} GiB {hours:>5.1f} h"
        )


@pytest.fixture(scope="module")
def table(project: Path) -> list[Row]:
    params, split = load(TeacherParams, path=project), load(SplitParams, path=project)
    pretrain, finetune = load(PretrainParams, path=project), load(FinetuneParams, path=project)
    known = LABELED * (1 - split.holdout)
    rows = []
    with pytest.MonkeyPatch.context() as patch:
        for name in FEATURE_DIM:
            epochs = load(EncoderParams, f"encoders.{name}", project).adapt.epochs
            if epochs:
                rows.append(Row(f"adapt_clip {name}", tower_cost(name, project, True), epochs * UNLABELED, True))
        rows += [Row(f"extract_frames {name}", tower_cost(name, project, False), FRAMES, False) for name in FEATURE_DIM]
        training = params.training.epochs * known * (params.n_folds - 1)
        rows.append(Row("train_teacher", classification_cost(teacher(project)), training, True))
        labelling = UNLABELED * len(params.folds)
        rows.append(Row("pseudo_label", classification_cost(teacher(project), backward=False), labelling, False))
        for arch in ("single_stream", "dual_stream"):
            cost = pretraining_cost(student(arch, project, pretraining_batch(project)), pretrain, patch)
            rows.append(Row(f"pretrain {arch}", cost, pretrain.epochs[arch] * UNLABELED, True))
        adversary = 2 if finetune.adversarial.method == "fgm" else 1 + finetune.adversarial.steps
        for arch in ("single_stream", "dual_stream"):
            cost = classification_cost(student(arch, project, finetune.batch_size))
            passes = finetune.epochs * known * (split.n_folds - 1) * adversary
            rows.append(Row(f"finetune {arch}", cost, passes, True))
    return rows


HEADER = f"{'stage, all items':<24} {'params':>8} {'GFLOP':>6} {'FLOP':>9} {'memory':>9} {'one GPU':>7}"


def lines_of(table: list[Row]) -> list[str]:
    total = sum(row.flops for row in table)
    end = f"{'total':<24} {'':>8} {'':>6} {total:>9.1e} {'':>9} {total / BF16_FLOPS / 3600:>5.1f} h"
    return [HEADER, *(row.line() for row in table), end]


def test_the_cost_in_the_profile_is_what_its_sizes_give(table: list[Row]):
    """The table in the comments of profiles/wechat.yaml is this one, to the digit."""
    lines = lines_of(table)
    print("\n" + "\n".join(lines))
    comments = (ROOT / "profiles" / "wechat.yaml").read_text(encoding="utf-8")
    stated = [line[4:] for line in comments.splitlines() if re.match(r"#   (stage, all|total|[a-z_]+ .* h$)", line)]
    assert [line.rstrip() for line in stated] == lines


def test_the_text_models_are_the_published_sizes():
    """Parameters without pooler: 101.7 and 324.5 million."""
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in bert(folder).parameters()) for folder in SIZES]
    assert [round(size / 1e6, 1) for size in sizes] == [101.7, 324.5]


@pytest.mark.parametrize("name", FEATURE_DIM)
def test_the_towers_are_clip_as_published(name, project):
    """Parameters of the vision towers of ViT-B/16 and ViT-L/14, and the size of their features."""
    encoder = tower(name, project)
    millions = round(sum(p.numel() for p in encoder.parameters()) / 1e6, 1)
    assert (encoder.dim, millions, encoder.preprocess.image_size) == (
        FEATURE_DIM[name],
        {"vit_b16": 86.2, "vit_l14": 304.0}[name],
        224,
    )


def test_the_towers_use_the_activation_that_openai_trained_with(project):
    """OpenAI's weights in a tower with another GELU load without error and give worse features."""
    names = {type(module).__name__ for module in tower("vit_b16", project).modules()}
    assert "QuickGELU" in names
    assert "GELU" not in names


def test_all_inputs_fit_into_258_tokens_and_32_frames(project):
    for inputs in (load(StudentParams, path=project).inputs, load(TeacherParams, path=project).inputs):
        assert (inputs.title + inputs.asr + inputs.ocr + 4, inputs.max_frames) == (258, 32)


# One real step


class TwoVideos:
    """One batch of one epoch, for the training loop."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Batch:
        return self.batch

    def global_size(self, index: int) -> int:
        return 2

    def names(self, index: int) -> list[str]:
        return ["1", "2"]

    def shard(self, rank: int, world: int) -> "TwoVideos":
        return self


def moved(
    task: Any, batch: Batch, params: OptimizationParams, lr: dict[str, float], tmp_path: Path, **more: Any
) -> set[str]:
    """Names of the weights that one step of the real loop changes, warm-up left out."""
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    params = params.model_copy(update={"epochs": 1, "warmup": 0.0})
    with Scratch("wechat", {}) as scratch:
        result = train(
            task,
            lambda epoch: TwoVideos(batch),
            params,
            learning_rates=lr,
            seed=0,
            precision="fp32",
            scratch=scratch,
            **more,
        )
    return {name for name, value in result.model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.fixture
def in_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return tmp_path


@pytest.mark.parametrize("arch", ["single_stream", "dual_stream"])
def test_a_real_pretraining_step_at_full_width(arch, project, in_scratch):
    params = load(PretrainParams, path=project)
    model = student(arch, project, 2)
    batch = Masking(params.masking, SPECIAL)(paired(model.batch(2), params.mismatched.share), 0, 0)
    task = PretrainingTask(pretraining(model, params, layers=1))
    assert any(".text.encoder." in n for n in moved(task, batch, params.of(arch), params.lr.model_dump(), in_scratch))


@pytest.mark.parametrize("who", ["single_stream", "dual_stream", "teacher"])
def test_a_real_step_on_labels_at_full_width(who, project, in_scratch):
    """With the adversary of the profile, for the students."""
    model = teacher(project) if who == "teacher" else student(who, project, 2)
    params = load(TeacherParams, path=project).training if who == "teacher" else load(FinetuneParams, path=project)
    adversary: AdversarialParams = params.adversarial
    task = ClassificationTask(model.build(layers=1), 0.1)
    changed = moved(task, model.batch(2), params, params.lr.model_dump(), in_scratch, adversarial=adversary)
    assert {"text.encoder.layer.0.attention.self.query.weight", "head.out.weight"} <= changed
