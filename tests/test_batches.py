"""Batches: their content, their order, and that both depend on nothing but (seed, epoch, video).

pytest tests/test_batches.py
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

from framefold.data.batches import EpochBatches, VideoDataset, sample_rng, video_keys
from framefold.data.features import FeatureStore, write_store
from framefold.data.order import bucketed_order, token_cuts
from framefold.data.shards import KeptShards
from framefold.data.tokens import SpecialTokens, TokenStore, token_writer
from framefold.errors import UserError
from framefold.params.models import InputParams

SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4, size=100)
N, DIM = 60, 5
TEXTS = [  # title, asr, ocr of the first videos; the others are drawn
    ([10, 11, 12, 13], [20], [30, 31]),
    ([], [], []),
    ([], [20, 21], []),
    ([10], [], [30]),
]
FRAMES = [2, 0, 5, 1]


def texts() -> list[tuple[list[int], ...]]:
    rng = np.random.default_rng(0)
    drawn = [tuple(rng.integers(5, 100, rng.integers(0, 9)).tolist() for _ in range(3)) for _ in range(N - len(TEXTS))]
    return TEXTS + drawn


def counts() -> np.ndarray:
    return np.array(FRAMES + np.random.default_rng(1).integers(0, 8, N - len(FRAMES)).tolist())


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenStore, FeatureStore]:
    """Frame f of video v is the vector of all 10 v + f."""
    folder = tmp_path_factory.mktemp("stores")
    ids = pa.array([str(10**19 + row) for row in range(N)])
    with token_writer(folder / "tokens.arrow", 100) as writer:
        columns = zip(*texts(), strict=True)
        writer.write(ids, [pa.array(column, type=pa.list_(pa.int32())) for column in columns])
    frames = np.concatenate([10 * row + np.arange(count) for row, count in enumerate(counts())])
    features = np.repeat(frames[:, None], DIM, axis=1).astype(np.float16)
    kept = KeptShards(folder / "parts", DIM)
    kept.write("all", ids.to_pylist(), counts(), features, [])
    write_store(folder / "features", kept, ["all"], {})
    return TokenStore(folder / "tokens.arrow"), FeatureStore(folder / "features")


def dataset(
    stores: tuple[TokenStore, FeatureStore], rows: object = None, soft: np.ndarray | None = None, **budgets: int
) -> VideoDataset:
    inputs = InputParams(**{"title": 3, "asr": 3, "ocr": 3, "max_frames": 4, **budgets})
    own = np.arange(N) if rows is None else np.asarray(rows)
    return VideoDataset(*stores, own, inputs, own % 7, soft, SPECIAL)


def test_text_is_cut_per_segment_and_empty_segments_vanish(stores: tuple[TokenStore, FeatureStore]) -> None:
    """[CLS] title [SEP] asr [SEP] ocr [SEP], each within its budget; a video without text is [CLS] [SEP]."""
    batch = dataset(stores).batch(np.arange(4))
    assert batch["input_ids"].tolist() == [
        [2, 10, 11, 12, 3, 20, 3, 30, 31, 3],
        [2, 3, 0, 0, 0, 0, 0, 0, 0, 0],
        [2, 20, 21, 3, 0, 0, 0, 0, 0, 0],
        [2, 10, 3, 30, 3, 0, 0, 0, 0, 0],
    ]
    assert batch["text_mask"].sum(1).tolist() == [10, 2, 4, 5]
    assert batch["text_mask"].equal(batch["input_ids"] != 0)


def test_budget_of_zero_leaves_a_segment_out(stores: tuple[TokenStore, FeatureStore]) -> None:
    batch = dataset(stores, title=0, ocr=0).batch(np.arange(2))
    assert batch["input_ids"].tolist() == [[2, 20, 3], [2, 3, 0]]


def test_frames_are_padded_to_the_batch(stores: tuple[TokenStore, FeatureStore]) -> None:
    """A video without frames has none, not a frame of zeros; a batch of such videos has F = 0."""
    batch = dataset(stores).batch(np.array([0, 1, 3]))
    assert batch["frames"][:, :, 0].tolist() == [[0, 1], [0, 0], [30, 0]]
    assert batch["frame_mask"].tolist() == [[True, True], [False, False], [True, False]]
    assert dataset(stores).batch(np.array([1]))["frames"].shape == (1, 0, DIM)
    assert dataset(stores, max_frames=0).batch(np.arange(4))["frames"].shape == (4, 0, DIM)


def test_labels_follow_the_dataset_and_soft_labels_the_store(stores: tuple[TokenStore, FeatureStore]) -> None:
    """A subset of rows keeps its videos' own labels; types are those that models read."""
    soft = np.arange(N * 3).reshape(N, 3).astype(np.float16)
    batch = dataset(stores, rows=[9, 4, 2], soft=soft).batch(np.array([2, 0]))
    assert batch["row"].tolist() == [2, 9]
    assert batch["index"].tolist() == [2, 0]
    assert batch["label"].tolist() == [2, 2]
    assert batch["soft"].tolist() == soft[[2, 9]].tolist()
    types = {name: tensor.dtype for name, tensor in batch.items()}
    assert types["soft"] == types["frames"] == torch.float32
    assert types["text_mask"] == types["frame_mask"] == torch.bool
    assert {types[name] for name in ("index", "row", "key", "label", "input_ids")} == {torch.int64}


def test_evaluation_takes_uniform_frames_and_training_a_keyed_subset(stores: tuple[TokenStore, FeatureStore]) -> None:
    """Which frames of a long video are used: fixed in evaluation; in training anew each epoch, in their order."""
    videos = dataset(stores, max_frames=2)
    assert videos.batch(np.array([2]))["frames"][0, :, 0].tolist() == [21, 23]
    draws = [tuple(videos.batch(np.array([2]), (0, epoch))["frames"][0, :, 0].tolist()) for epoch in range(30)]
    assert len(set(draws)) > 5
    assert all(20 <= first < second <= 24 for first, second in draws)
    in_company = videos.batch(np.array([4, 2, 0]), (0, 7))["frames"][1, :2, 0]
    assert tuple(in_company.tolist()) == draws[7]


def test_every_frame_and_every_pair_of_frames_is_shown_equally_often(stores: tuple[TokenStore, FeatureStore]) -> None:
    """2 frames of 5 in each of 2,000 epochs: shares of 2/5 and 1/10, within 4 standard errors."""
    videos = dataset(stores, max_frames=2)
    drawn = np.stack([videos.frames(np.array([2]), (0, epoch))[0][0, :, 0] for epoch in range(2000)]).astype(int) - 20
    pairs = np.zeros((5, 5))
    np.add.at(pairs, tuple(drawn.T), 1 / 2000)
    for shares, expected in ((pairs.sum(0) + pairs.sum(1), 2 / 5), (pairs[np.triu_indices(5, 1)], 1 / 10)):
        assert np.abs(shares - expected).max() < 4 * np.sqrt(expected * (1 - expected) / 2000)


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_video_comes_once_in_batches_of_like_size(stores: tuple[TokenStore, FeatureStore], shuffle: bool) -> None:
    batches = EpochBatches(dataset(stores), 8, seed=0, epoch=0, shuffle=shuffle)
    assert len(batches) == 8
    seen = [batches[i]["index"] for i in range(len(batches))]
    assert sorted(torch.cat(seen).tolist()) == list(range(N))
    assert {len(part) for part in seen} == {7, 8}
    assert [batches.global_size(i) for i in range(8)] == [len(part) for part in seen]


def test_order_depends_on_seed_and_epoch_alone(stores: tuple[TokenStore, FeatureStore]) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = EpochBatches(dataset(stores), 8, seed=seed, epoch=epoch)
        return torch.cat([batches[i]["row"] for i in range(len(batches))]).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*key)) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}) == 4


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def noisy(batch: dict[str, torch.Tensor], seed: int, epoch: int) -> dict[str, torch.Tensor]:
    """A transform that draws per video, keyed."""
    draws = [sample_rng(seed, epoch, key).random() for key in batch["key"].tolist()]
    return batch | {"noise": torch.tensor(draws)}


def global_noise(batch: dict[str, torch.Tensor], seed: int, epoch: int) -> dict[str, torch.Tensor]:
    """The planted defect: a transform that draws from the process's global generator."""
    return batch | {"noise": torch.rand(len(batch["key"]))}


@pytest.mark.parametrize(("transform", "agree"), [(noisy, True), (global_noise, False)])
def test_workers_and_starting_point_do_not_change_batches(
    stores: tuple[TokenStore, FeatureStore], transform: object, agree: bool
) -> None:
    """Batch 3 is the same in order, alone, and from worker processes; a transform that is not keyed is caught."""
    batches = EpochBatches(dataset(stores, max_frames=2), 8, seed=5, epoch=2, transform=transform)  # type: ignore[arg-type]
    in_order = [batches[i] for i in range(len(batches))]
    workers = DataLoader(
        batches, batch_size=None, sampler=range(3, len(batches)), num_workers=2, generator=torch.Generator()
    )
    assert same(batches[3], in_order[3]) is agree
    assert all(same(batch, expected) for batch, expected in zip(workers, in_order[3:], strict=True)) is agree


def test_ranks_share_each_batch(stores: tuple[TokenStore, FeatureStore]) -> None:
    """The parts of two processes make up the global batch; more processes than samples is an error."""
    batches = EpochBatches(dataset(stores), 8, seed=0, epoch=0)
    for i in range(len(batches)):
        parts = torch.cat([batches.shard(rank, 2)[i]["row"] for rank in range(2)])
        assert sorted(parts.tolist()) == sorted(batches[i]["row"].tolist())
    with pytest.raises(UserError, match="a batch of 7 samples for 8 processes"):
        batches.shard(0, 8)


def test_buckets_save_padding(stores: tuple[TokenStore, FeatureStore]) -> None:
    """Batches of like lengths: much less padding than in random order, though still shuffled."""
    keys = np.random.default_rng(0).integers(0, 100, 4000)
    order = bucketed_order(keys, 50 * 8, np.random.default_rng(0))
    spread = np.ptp(keys[order].reshape(-1, 8), axis=1).mean()
    assert spread < 10 < np.ptp(keys.reshape(-1, 8), axis=1).mean()
    assert sorted(order.tolist()) == list(range(4000))


BUDGET = 60


def token_batches(stores: tuple[TokenStore, FeatureStore], epoch: int = 0, rows: object = None) -> EpochBatches:
    return EpochBatches(dataset(stores, rows), 12, seed=0, epoch=epoch, batch_tokens=BUDGET)


def test_token_budget_holds_padding_included(stores: tuple[TokenStore, FeatureStore]) -> None:
    """Every video once; padded text and frames together within the budget; as many samples as that allows."""
    batches = token_batches(stores)
    made = [batches[i] for i in range(len(batches))]
    assert sorted(torch.cat([batch["index"] for batch in made]).tolist()) == list(range(N))
    assert [batches.global_size(i) for i in range(len(batches))] == [len(batch["index"]) for batch in made]
    for batch in made:
        samples, width = batch["input_ids"].shape
        assert samples * (width + batch["frames"].shape[1]) <= BUDGET
        assert samples <= 12
    sizes = batches.samples.sizes()[batches.order]  # type: ignore[attr-defined]
    for start, end in zip(batches.cuts[:-3], batches.cuts[1:-2], strict=True):  # the last two share their samples
        more = sizes[start : end + 1]
        assert len(more) > 12 or len(more) * more.max(axis=0).sum() > BUDGET


def test_sample_above_the_token_budget_is_a_batch_of_its_own() -> None:
    sizes = np.array([[4, 0], [5, 1], [40, 9], [6, 2], [6, 2]])
    assert token_cuts(sizes, most=10, tokens=20, least=1).tolist() == [0, 2, 3, 5]


def test_no_run_is_smaller_than_the_processes() -> None:
    """Two processes: a sample above the budget has company, and none is left over at the end."""
    sizes = np.array([[40, 9]] * 2 + [[9, 1]] * 5)
    assert token_cuts(sizes, most=10, tokens=20, least=2).tolist() == [0, 2, 4, 7]


def test_last_two_runs_share_their_samples() -> None:
    """No small last batch has a louder voice than the others, unless the budget will have it so."""
    assert token_cuts(np.array([[8, 2]] * 9), most=10, tokens=80, least=1).tolist() == [0, 4, 9]
    assert token_cuts(np.array([[2, 0]] * 8 + [[20, 0]]), most=10, tokens=20, least=1).tolist() == [0, 8, 9]


def test_token_batches_depend_on_seed_and_epoch_alone(
    stores: tuple[TokenStore, FeatureStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers, a later start and another process agree; epochs differ, in their number of batches too."""
    monkeypatch.setattr("framefold.data.batches.BUCKET", 1)
    batches = token_batches(stores)
    workers = DataLoader(
        batches, batch_size=None, sampler=range(2, len(batches)), num_workers=2, generator=torch.Generator()
    )
    again = token_batches(stores)
    assert all(same(batch, again[i]) for i, batch in enumerate(workers, start=2))
    assert len({len(token_batches(stores, epoch)) for epoch in range(20)}) > 1


def test_processes_share_token_batches(stores: tuple[TokenStore, FeatureStore]) -> None:
    """Two processes have the batches of one, where these are large enough for both; padded to the same frames."""
    batches = token_batches(stores)
    for i in range(len(batches)):
        parts = [batches.shard(rank, 2)[i] for rank in range(2)]
        assert sorted(torch.cat([part["row"] for part in parts]).tolist()) == sorted(batches[i]["row"].tolist())
        assert len({part["frames"].shape[1] for part in parts}) == 1


def test_every_second_run_descends_under_a_token_budget() -> None:
    """So that a batch over the boundary of two runs holds like lengths."""
    keys = np.random.default_rng(0).integers(0, 1000, 400)
    order = keys[bucketed_order(keys, 100, np.random.default_rng(0), turning=True)]
    assert all(abs(order[end] - order[end - 1]) < 60 for end in (100, 200, 300))


def test_no_videos_are_no_batches(stores: tuple[TokenStore, FeatureStore]) -> None:
    assert len(EpochBatches(dataset(stores, rows=[]), 8, seed=0, epoch=0, shuffle=False)) == 0
    assert len(token_batches(stores, rows=[])) == 0


def test_keys_are_stable_and_fit_int64() -> None:
    """A key is part of what a training run is: fixed by the id alone, in every process and version."""
    keys = video_keys(["1", "18446744073709551616"])
    assert keys.tolist() == [4259241206155935355, 2351661351024191731]
    assert len(set(video_keys([str(i) for i in range(10000)]).tolist())) == 10000


def test_stores_that_do_not_match_are_refused(stores: tuple[TokenStore, FeatureStore], tmp_path: Path) -> None:
    """Row i must be the same video everywhere: swapped ids, or soft labels of another pool, are an error."""
    tokens, _ = stores
    swapped = tokens.ids.to_pylist()
    swapped[0], swapped[1] = swapped[1], swapped[0]
    kept = KeptShards(tmp_path / "parts", DIM)
    kept.write("all", swapped, np.zeros(N, np.int32), np.empty((0, DIM), np.float16), [])
    write_store(tmp_path / "features", kept, ["all"], {})
    with pytest.raises(UserError, match="row 0 is video"):
        dataset((tokens, FeatureStore(tmp_path / "features")))
    with pytest.raises(UserError, match="59 soft labels for the 60 videos"):
        dataset(stores, soft=np.zeros((N - 1, 3), np.float16))
