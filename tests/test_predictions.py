"""Predictions on disk and in order: .venv/bin/pytest tests/test_predictions.py"""

import numpy as np
import pytest
import torch

from framefold.errors import UserError
from framefold.inference import predict
from framefold.inference.predict import predict_logits
from framefold.inference.predictions import (
    mean_logits,
    read_aligned,
    read_predictions,
    softmax,
    write_predictions,
)
from framefold.inference.submission import complete_submission

LONG_IDS = ["99999999999999999999", "1", "18446744073709551616"]  # beyond int64 and uint64


class Numbered:
    """A dataset whose sample i is the number i, with lengths in no order."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def lengths(self, positions: np.ndarray) -> np.ndarray:
        return (positions * 7) % 11

    def batch(self, positions: np.ndarray) -> dict[str, torch.Tensor]:
        return {"x": torch.from_numpy(positions)}


class Echo(torch.nn.Module):
    """Its logits name the sample that they belong to."""

    n_classes = 2

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([batch["x"], -batch["x"]], dim=1).float()


def test_what_is_written_is_read_again(tmp_path):
    logits = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    write_predictions(tmp_path / "p.parquet", LONG_IDS, logits)
    ids, read = read_predictions(tmp_path / "p.parquet")
    assert ids == LONG_IDS
    assert read.dtype == np.float32
    assert np.array_equal(read, logits)


def test_no_videos_are_legal_predictions(tmp_path):
    """A data set without a holdout has an empty file."""
    write_predictions(tmp_path / "p.parquet", [], np.zeros((0, 5), dtype=np.float32))
    assert read_predictions(tmp_path / "p.parquet")[1].shape == (0, 5)


def test_rows_are_matched_by_id_and_other_videos_are_refused(tmp_path):
    write_predictions(tmp_path / "p.parquet", LONG_IDS, np.arange(3.0)[:, None])
    assert read_aligned(tmp_path / "p.parquet", LONG_IDS[::-1]).tolist() == [[2.0], [1.0], [0.0]]
    with pytest.raises(UserError, match="not the videos expected"):
        read_aligned(tmp_path / "p.parquet", ["1", "2", "3"])


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_logits_come_in_the_order_of_the_dataset(monkeypatch, batch_size):
    """Whatever the lengths, the batch size and the number of blocks."""
    monkeypatch.setattr(predict, "BLOCK", 16)
    logits = predict_logits(Echo(), Numbered(50), batch_size, "cpu")
    assert logits[:, 0].tolist() == list(range(50))


def test_batches_do_not_depend_on_what_comes_after_their_block(monkeypatch):
    """The first videos of a longer list are predicted in the same batches: results repeat to the byte."""
    monkeypatch.setattr(predict, "BLOCK", 16)
    seen: list[list[int]] = []

    class Recording(Numbered):
        def batch(self, positions):
            seen.append(positions.tolist())
            return super().batch(positions)

    predict_logits(Echo(), Recording(32), 4, "cpu")
    short = list(seen)
    seen.clear()
    predict_logits(Echo(), Recording(50), 4, "cpu")
    assert seen[: len(short)] == short


def test_softmax_and_mean_survive_large_logits():
    logits = np.array([[1e4, 0.0], [-1e4, 0.0]], dtype=np.float32)
    assert softmax(logits).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert mean_logits([logits, logits + 2]).tolist() == (logits + 1).tolist()


def test_every_test_id_is_submitted_once_in_file_order(tmp_path):
    """Also those that ingest rejected; records without an id are not."""
    annotations = tmp_path / "test.json"
    annotations.write_text('[{"id": "3"}, {"id": "1", "title": 5}, {"id": 7}, {"id": "3"}, "x", {"id": "2"}]')
    rows = complete_submission(annotations, {"2": "0101", "3": "0202"}, usual="0303")
    assert rows == [("3", "0202"), ("1", "0303"), ("2", "0101")]
