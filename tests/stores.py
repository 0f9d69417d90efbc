"""A small project for tests of the training stages: stores of generated videos, by the library's writers."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml

from framefold.data.features import write_store
from framefold.data.folds import HOLDOUT, Folds, teacher_fold
from framefold.data.folds import SCHEMA as FOLDS_SCHEMA
from framefold.data.origins import ORIGIN, origin_of
from framefold.data.pseudo_labels import MEAN, NOBODY, ORIGINS, Assignment, write_labels
from framefold.data.shards import KeptShards
from framefold.data.tokens import token_writer
from framefold.inference.predictions import write_predictions
from framefold.models.registry import build_model, save_model
from framefold.params.base import validate
from framefold.params.models import SingleStreamParams, StudentParams
from framefold.params.teacher import TeacherParams
from framefold.storage import read_parquet, write_json, write_parquet

ROOT = Path(__file__).parents[1]
SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
VOCAB, DIM = 120, 16
SHARD_VIDEOS = 1024
CATEGORIES = ["0101", "0102", "0103", "0201", "0202", "0203"]
SIZES = {"labeled": 120, "unlabeled": 160, "test": 20}


def small_params() -> dict[str, Any]:
    """The committed params at sizes that train in seconds."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    text = {"folder": None, "sha256": None}
    text["sizes"] = {
        "layers": 1,
        "hidden": 32,
        "heads": 2,
        "intermediate": 64,
        "max_positions": 64,
        "dropout": 0.1,
        "topics": False,
    }
    params["student"]["text"], params["teacher"]["text"] = text, copy.deepcopy(text)
    params["precision"], params["folds"] = "fp32", [0, 1, 2]
    params["split"]["n_folds"], params["teacher"]["n_folds"], params["teacher"]["folds"] = 3, 3, [0, 1, 2]
    params["teacher"]["training"]["epochs"], params["finetune"]["epochs"] = 4, 4
    params["pretrain"]["epochs"] = {"single_stream": 2, "dual_stream": 2}
    params["pretrain"]["batch_size"], params["finetune"]["batch_size"] = 32, 16
    params["models"]["dual_stream"]["layers"] = 1
    return params


def make_project(
    root: Path, params: dict[str, Any] | None = None, seed: int = 0, sizes: dict[str, int] = SIZES
) -> None:
    """params.yaml, tokenizer config, samples, folds, tokens and features under `root`."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(params or small_params(), sort_keys=False), encoding="utf-8")
    write_json(root / "models/tokenizer/config.json", SPECIAL | {"size": VOCAB, "lowercase": True})
    write_json(root / "data/samples/categories.json", {"categories": CATEGORIES, "level1": ["01", "02"]})
    groups = make_groups(rng, sizes)
    labels = {split: rng.integers(0, len(CATEGORIES), size) for split, size in sizes.items()}
    for number, split in enumerate(sizes):
        ids = [f"{number + 1}{row:06d}" for row in range(sizes[split])]
        write_samples(root, split, ids, groups[split], labels[split])
        write_stores(root, split, ids, labels[split], rng)
    label, group = labels["labeled"], groups["labeled"]
    fold = np.where(group % 10 == 9, -1, group % 3)  # whole groups
    columns = [[f"1{row:06d}" for row in range(len(label))], label.astype(np.int32), group, fold.astype(np.int32)]
    write_parquet(root / "data/folds.parquet", table(columns, FOLDS_SCHEMA))


def make_groups(rng: np.random.Generator, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Every tenth video is a copy of a labelled one."""
    groups, start = {}, 0
    for split, size in sizes.items():
        own = np.arange(start, start + size)
        own[::10] = rng.integers(0, sizes["labeled"], len(own[::10])) if split != "labeled" else own[::10]
        groups[split], start = own, start + size
    return groups


def write_samples(root: Path, split: str, ids: list[str], group: np.ndarray, label: np.ndarray) -> None:
    known = label if split == "labeled" else np.full(len(ids), -1)
    names = [CATEGORIES[one] if one >= 0 else None for one in known]
    content = {"id": ids, "category_id": pa.array(names, pa.string()), "label": known.astype(np.int32), "group": group}
    write_parquet(root / f"data/samples/{split}.parquet", pa.table(content))


def write_stores(root: Path, split: str, ids: list[str], label: np.ndarray, rng: np.random.Generator) -> None:
    """Titles and frames that tell the class, noisily; some videos lack asr, ocr or frames."""
    titles = [class_tokens(one, rng, 3, 10) for one in label]
    others = [[class_tokens(one, rng, 0, 6) for one in label] for _ in range(2)]
    with token_writer(root / f"data/tokens/{split}.arrow", VOCAB) as writer:
        writer.write(pa.array(ids), [pa.array(part, pa.list_(pa.int64())) for part in (titles, *others)])
    centres = np.random.default_rng(7).normal(size=(len(CATEGORIES), DIM))
    counts = rng.integers(0, 5, len(ids))
    kept, keys = KeptShards(root / "feature-parts" / split, DIM), []
    for start in range(0, len(ids), SHARD_VIDEOS):
        part = slice(start, start + SHARD_VIDEOS)
        frames = centres[np.repeat(label[part], counts[part])]
        frames = (frames + rng.normal(size=frames.shape)).astype(np.float16)
        keys.append(str(start))
        kept.write(keys[-1], ids[part], counts[part], frames, [])
    write_store(root / f"data/features/small/{split}", kept, keys, {"encoder": "small"})


def make_teachers(root: Path, params: dict[str, Any]) -> None:
    """What train_teacher leaves, with random weights and random out-of-fold predictions."""
    teacher = validate(TeacherParams, params["teacher"], "teacher", "params.yaml")
    labeled = read_parquet(root / "data/folds.parquet")
    ids, fold = np.array(labeled["id"].to_pylist()), labeled["fold"].to_numpy()
    for number in teacher.folds:
        folder = root / f"models/teacher/{number}"
        folder.mkdir(parents=True)
        torch.manual_seed(number)
        shape = VOCAB, DIM, len(CATEGORIES)
        save_model(folder, build_model("single_stream", teacher.text, teacher.model, *shape))
        own = teacher_fold(fold, teacher.n_folds)
        rows = np.flatnonzero((own != number) & (fold != HOLDOUT))
        write_json(folder / ORIGIN, origin_of(folds_of(root), rows, teacher.n_folds))
        logits = np.random.default_rng(number).normal(size=(int((own == number).sum()), len(CATEGORIES)))
        write_predictions(folder / "out_of_fold.parquet", ids[own == number].tolist(), logits)


def make_pretrained(root: Path, params: dict[str, Any], seeds: dict[str, int]) -> None:
    """What pretrain leaves of single_stream: variant -> a student with the random weights of a seed."""
    student = validate(StudentParams, params["student"], "student", "params.yaml")
    size = validate(SingleStreamParams, params["models"]["single_stream"], "models", "params.yaml")
    for variant, seed in seeds.items():
        torch.manual_seed(seed)
        folder = root / "models/pretrain/single_stream" / variant
        folder.mkdir(parents=True)
        save_model(folder, build_model("single_stream", student.text, size, VOCAB, DIM, len(CATEGORIES)))
        write_pretraining_origin(folder, None if variant == "all" else int(variant))


def write_pretraining_origin(folder: Path, teacher: int | None = None, **changes: Any) -> None:
    """What pretrain says of the labels that a variant (models/pretrain/<arch>/<variant>) was given."""
    seen = [fold for fold in range(3) if fold != teacher]
    origin = {"leaky": False, "folds": folds_of(folder.parents[3]).digest(), "teacher": teacher, "trained_folds": seen}
    write_json(folder / ORIGIN, origin | changes)


def folds_of(root: Path) -> Folds:
    table = read_parquet(root / "data/folds.parquet")
    return Folds(table["id"].combine_chunks(), *(table[name].to_numpy() for name in ("label", "group", "fold")))


def write_soft_labels(root: Path, sharpness: float = 4.0) -> None:
    """What pseudo_label leaves: soft labels that mostly know the class, some by one teacher, some rows without."""
    samples = read_parquet(root / "data/samples/unlabeled.parquet")
    size, rng = len(samples), np.random.default_rng(5)
    frames = rng.normal(size=(size, len(CATEGORIES)))
    frames[np.arange(size), rng.integers(0, len(CATEGORIES), size) // 2] += sharpness  # the last classes are rare
    probs = np.exp(frames) / np.exp(frames).sum(1, keepdims=True)
    teacher = np.where(np.arange(size) % 10 == 3, NOBODY, MEAN).astype(np.int32)
    probs[teacher == NOBODY] = 0
    folder = root / "data/pseudo"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "soft.npy", probs.astype(np.float16))
    hard = np.where(teacher == NOBODY, -1, probs.argmax(1)).astype(np.int32), probs.max(1).astype(np.float32)
    ids, usable = np.array(samples["id"].to_pylist()), np.arange(size) % 10 != 0
    write_labels(folder, lambda rows: ids[rows].tolist(), Assignment(teacher, usable), [hard])
    write_origins(root)


def write_origins(root: Path) -> None:
    """What pseudo_label says of the teachers whose labels it left."""
    trained = {fold: [other for other in range(3) if other != fold] for fold in range(3)}
    origins = {"folder": "models/teacher", "leaky": False, "n_folds": 3, "trained_folds": trained}
    write_json(root / "data/pseudo" / ORIGINS, origins | {"folds": folds_of(root).digest()})


def class_tokens(label: int, rng: np.random.Generator, low: int, high: int) -> np.ndarray:
    """Half of them from the class's own ten words."""
    count = int(rng.integers(low, high))
    own = 10 + 10 * label + rng.integers(0, 10, count)
    return np.where(rng.random(count) < 0.5, own, rng.integers(5, VOCAB, count))


def table(columns: list[Any], schema: pa.Schema) -> pa.Table:
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
