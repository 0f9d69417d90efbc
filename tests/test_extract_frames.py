"""Frame features: interrupted = uninterrupted, whatever the workers; what cannot be decoded is counted, never fatal.

pytest tests/test_extract_frames.py
"""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mini_root import MiniRoot, jpeg

from framefold import fingerprint
from framefold.data import extraction, shards
from framefold.data.decoding import Decoded
from framefold.data.extraction import EncodedFrames, Shard, fill_batches
from framefold.data.features import FeatureStore
from framefold.data.images import TORCHVISION
from framefold.data.manifest import write_manifest
from framefold.models.vision import FrameEncoder, load_encoder, load_vision_encoder, save_encoder
from framefold.params.base import load
from framefold.params.encoders import EncoderParams
from framefold.storage import read_json, write_json
from stages import extract_frames, ingest

SMALL = {"embed_dim": 8, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}}
TARGET, KEPT = Path("data/features/small/unlabeled"), Path(".shards/small-unlabeled")
BROKEN = b"\xff\xd8 this is no picture"


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


def cut_every(monkeypatch: pytest.MonkeyPatch, videos: int) -> None:
    """Shards of this many videos, whatever their ids."""
    monkeypatch.setattr(shards, "MIN_VIDEOS", videos)
    monkeypatch.setattr(shards, "MAX_VIDEOS", videos)


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MiniRoot:
    monkeypatch.setenv("FRAMEFOLD_DEVICE", "cpu")
    cut_every(monkeypatch, 4)
    return MiniRoot(tmp_path, monkeypatch).fill(labeled=20, others=10)


def prepare(mini: MiniRoot) -> None:
    """Samples and an encoder of random weights."""
    mini.finish(encoders__small__config=SMALL, encoders__small__adapt__epochs=0, encoders__small__batch_size=3)
    sys.argv = ["ingest"]
    ingest.main()
    torch.manual_seed(0)
    save_encoder("models/clip/small", load_vision_encoder(load(EncoderParams, "encoders.small")), adapted_epochs=0)


def run(*options: str) -> None:
    sys.argv = ["extract_frames", "--encoder", "small", "--split", "unlabeled", *options]
    extract_frames.main()


def features_made() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(TARGET.glob("shard-*.npy"))}


def start_anew() -> None:
    """No outputs, and no shards kept from before."""
    for folder in (TARGET, KEPT):
        shutil.rmtree(folder, ignore_errors=True)


def content() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(TARGET.iterdir())}


@pytest.fixture
def project(mini: MiniRoot) -> MiniRoot:
    mini.write_zip("unlabeled", mini.add("unlabeled"), [jpeg(1), BROKEN, jpeg(2)])
    mini.write_zip("unlabeled", mini.add("unlabeled"), [BROKEN])
    mini.add("unlabeled", frames=[jpeg(seed) for seed in range(9)])
    prepare(mini)
    return mini


def batches_encoded(monkeypatch: pytest.MonkeyPatch, die_at: int | None = None) -> list[int]:
    """Sizes of the batches that the encoder sees from now on; the run is killed at batch number `die_at`."""
    sizes: list[int] = []
    encode = FrameEncoder.start

    def counted(self: FrameEncoder, pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        if len(sizes) == die_at:
            raise Killed
        sizes.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(FrameEncoder, "start", counted)
    return sizes


def frames_encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Frames of the shards that are made from now on."""
    frames: list[int] = []
    make = EncodedFrames._shard

    def counted(self: EncodedFrames, ids: list[str], videos: Iterable[Decoded]) -> Shard:
        shard = make(self, ids, videos)
        frames.append(len(shard.features))
        return shard

    monkeypatch.setattr(EncodedFrames, "_shard", counted)
    return frames


def test_rows_are_those_of_the_samples(project: MiniRoot) -> None:
    run()
    assert FeatureStore(TARGET).ids.equals(pq.read_table("data/samples/unlabeled.parquet").column("id"))


def test_features_are_those_of_the_encoder(project: MiniRoot) -> None:
    """Straight from the images, one by one, without batches, shards or workers; frames spaced uniformly."""
    run()
    encoder, store = load_encoder("models/clip/small"), FeatureStore(TARGET)
    for row, seeds in ((10, [1, 2]), (12, [0, 2, 3, 5, 6, 8])):
        pixels = np.stack([encoder.preprocess.pixels(jpeg(seed)) for seed in seeds])
        with torch.no_grad():
            expected = encoder(encoder.normalize(torch.from_numpy(pixels))).numpy()
        np.testing.assert_allclose(store.frames(row), expected, atol=2e-3, rtol=2e-3)


def test_broken_frames_are_skipped_and_counted(project: MiniRoot) -> None:
    run()
    store, rejected = FeatureStore(TARGET), pq.read_table(TARGET / "rejected.parquet").to_pydict()
    assert store.counts[10:12].tolist() == [2, 0]
    assert rejected["id"] == store.ids.to_pylist()[10:12]
    assert rejected["member"] == ["0001.jpg", "0000.jpg"]
    assert all(rejected["reason"])


def test_interrupted_ends_with_the_same_bytes(project: MiniRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the second shard: the first is not encoded again, and the store is that of an unbroken run."""
    with monkeypatch.context() as patch:
        sizes = batches_encoded(patch)
        run()
    expected = content()
    start_anew()
    with monkeypatch.context() as patch:
        batches_encoded(patch, die_at=4)
        with pytest.raises(Killed):
            run()
    with monkeypatch.context() as patch:
        left = batches_encoded(patch)
        run()
    assert content() == expected
    assert 0 < len(left) < len(sizes)


def test_batches_end_with_their_shard(project: MiniRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a resumed run cuts them where an unbroken one does."""
    batches: list[int] = []

    def counted(videos: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
        batches.append(0)
        for batch in fill_batches(videos, size):
            batches[-1] += 1
            yield batch

    monkeypatch.setattr(extraction, "fill_batches", counted)
    run()
    counts = FeatureStore(TARGET).counts
    assert batches == [-(-int(counts[start : start + 4].sum()) // 3) for start in range(0, len(counts), 4)]


def test_the_encoder_sees_one_size_alone(project: MiniRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that end a shard are filled up, though the number of its frames is no multiple of theirs."""
    sizes, frames = batches_encoded(monkeypatch), frames_encoded(monkeypatch)
    run()
    assert set(sizes) == {3}
    assert any(n % 3 for n in frames)
    assert sum(frames) == FeatureStore(TARGET).counts.sum()


@pytest.mark.parametrize("content", [0, 255, "noise"])
def test_features_do_not_depend_on_what_fills_a_batch_up(
    project: MiniRoot, monkeypatch: pytest.MonkeyPatch, content: int | str
) -> None:
    run()
    expected = features_made()
    start_anew()
    other = []

    def refilled(videos: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
        held = [video for video in videos if len(video)]
        frames = sum(map(len, held))
        for start, batch in zip(range(0, frames, size), fill_batches(held, size), strict=True):
            surplus = batch[frames - start :]
            if len(surplus):
                noise = np.random.default_rng(start).integers(0, 256, surplus.shape)
                batch[frames - start :] = noise if content == "noise" else content
                other.append(len(surplus))
            yield batch

    monkeypatch.setattr(extraction, "fill_batches", refilled)
    run()
    assert other
    assert features_made() == expected


@pytest.mark.parametrize("counts", [[2, 0, 5], [3, 3], [0, 0], [], [1]])
@pytest.mark.parametrize("of", [np.asarray, torch.tensor])
def test_batches_hold_every_frame_once_before_what_fills_them_up(counts: list[int], of: Callable) -> None:
    frames = np.arange(sum(counts))
    videos = [of(part) for part in np.split(frames, np.cumsum(counts)[:-1])] if counts else []
    batches = [np.asarray(batch) for batch in fill_batches(iter(videos), 3)]
    assert [len(batch) for batch in batches] == [3] * -(-sum(counts) // 3)
    assert np.concatenate([[], *batches])[: len(frames)].tolist() == frames.tolist()


def test_workers_do_not_change_a_byte(project: MiniRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    expected = content()
    start_anew()
    monkeypatch.setenv("FRAMEFOLD_WORKERS", "2")
    run()
    assert content() == expected


def test_frames_can_be_decoded_on_the_device(project: MiniRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same frames, nearly the same features, the same rejects; workers, which only read then, change nothing."""
    run()
    pillow, rejected = FeatureStore(TARGET), pq.read_table(TARGET / "rejected.parquet").to_pydict()
    config = read_json("models/clip/small/config.json")
    config["preprocess"]["decoder"] = TORCHVISION
    write_json("models/clip/small/config.json", config)
    expected = [pillow.frames(row).astype(np.float32) for row in range(len(pillow))]
    run()
    store, without_workers = FeatureStore(TARGET), content()
    assert store.counts.tolist() == pillow.counts.tolist()
    assert pq.read_table(TARGET / "rejected.parquet").to_pydict()["member"] == rejected["member"]
    for row, features in enumerate(expected):
        np.testing.assert_allclose(store.frames(row), features, atol=0.02)
    start_anew()
    monkeypatch.setenv("FRAMEFOLD_WORKERS", "2")
    run()
    assert content() == without_workers


# What is made again, and what is not


def rows_encoded(project: MiniRoot, monkeypatch: pytest.MonkeyPatch) -> int:
    """Frames that the next run encodes, after the manifest and the samples were brought up to date."""
    write_manifest(project.root)
    project.write_annotations("unlabeled", json.dumps(project.records["unlabeled"]).encode())
    sys.argv = ["ingest"]
    ingest.main()
    with monkeypatch.context() as patch:
        frames = frames_encoded(patch)
        run()
    return sum(frames)


def test_a_split_that_has_grown_costs_the_new_videos_alone(project: MiniRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirteen videos in shards of four: the fourth shard, of one video, is the one that changes."""
    run()
    counts = FeatureStore(TARGET).counts
    project.add("unlabeled", frames=[jpeg(100), jpeg(101)])
    project.add("unlabeled", frames=[jpeg(102)])
    assert rows_encoded(project, monkeypatch) == counts[12:].sum() + 3
    grown = content()
    start_anew()
    run()
    assert content() == grown


def test_a_changed_zip_costs_its_shard_alone(project: MiniRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    counts = FeatureStore(TARGET).counts
    project.write_zip("unlabeled", project.records["unlabeled"][5]["id"], [jpeg(seed) for seed in (1, 2, 3)])
    assert rows_encoded(project, monkeypatch) == counts[[4, 6, 7]].sum() + 3
    changed = content()
    start_anew()
    run()
    assert content() == changed


def test_another_encoder_takes_over_nothing(project: MiniRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    torch.manual_seed(1)
    save_encoder("models/clip/small", load_vision_encoder(load(EncoderParams, "encoders.small")), adapted_epochs=0)
    frames = frames_encoded(monkeypatch)
    run()
    assert sum(frames) == FeatureStore(TARGET).counts.sum()


def test_a_damaged_shard_is_made_again(
    project: MiniRoot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run()
    expected = content()
    damaged = sorted(KEPT.glob("*.npy"))[0]
    data = bytearray(damaged.read_bytes())
    damaged.unlink()  # the published store holds the same file
    data[-1] ^= 1
    damaged.write_bytes(data)
    sizes = batches_encoded(monkeypatch)
    run()
    assert content() == expected
    assert sizes
    assert "damaged, so it is dropped and made again" in caplog.text


def test_weights_that_were_only_checked_out_again_are_the_same(
    project: MiniRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard depends on the weights, not on when their file was written."""
    monkeypatch.setattr(fingerprint, "WHOLE", 100)  # as if the weights were large
    monkeypatch.setattr(fingerprint, "EDGE", 10)
    run()
    for path in Path("models/clip/small").iterdir():
        os.utime(path, (1, 1))
    sizes = batches_encoded(monkeypatch)
    run()
    assert sizes == []


def test_another_version_of_a_library_takes_over_nothing(project: MiniRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    monkeypatch.setattr(extract_frames, "installed_version", lambda name: "0.0" if name == "torchvision" else "1.0")
    frames = frames_encoded(monkeypatch)
    run()
    assert sum(frames) == FeatureStore(TARGET).counts.sum()


def test_an_empty_split_is_legal(mini: MiniRoot) -> None:
    mini.records["unlabeled"].clear()
    prepare(mini)
    run()
    assert len(FeatureStore(TARGET)) == 0


def test_what_no_split_needs_is_not_kept(project: MiniRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    project.write_zip("unlabeled", project.records["unlabeled"][5]["id"], [jpeg(1)])
    rows_encoded(project, monkeypatch)
    assert len(list(KEPT.glob("*.seal"))) == len(list(KEPT.glob("*.npy"))) == 4


# Several processes and machines


def test_parts_make_all_shards_between_them(project: MiniRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of three machines makes its own, none publishes; the stage then encodes nothing."""
    run()
    expected, frames = content(), FeatureStore(TARGET).counts.sum()
    start_anew()
    with monkeypatch.context() as patch:
        made = frames_encoded(patch)
        for part in ("3/3", "1/3", "2/3"):
            run("--part", part)
            assert not TARGET.exists()
        assert sum(made) == frames
    sizes = batches_encoded(monkeypatch)
    run()
    assert sizes == []
    assert content() == expected


def test_machines_share_a_folder(project: MiniRoot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FRAMEFOLD_SHARDS", str(tmp_path / "shared"))
    run("--part", "1/2")
    assert not KEPT.exists()
    left = frames_encoded(monkeypatch)
    run()
    assert 0 < sum(left) < FeatureStore(TARGET).counts.sum()


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_part_that_is_none_is_refused(project: MiniRoot, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--part", part)
    assert "I/N" in capsys.readouterr().err


@pytest.mark.medium
@pytest.mark.parametrize("processes", [2, 3])
def test_the_number_of_processes_does_not_change_a_byte(project: MiniRoot, processes: int) -> None:
    run()
    expected = content()
    start_anew()
    torchrun(processes)
    assert content() == expected


@pytest.mark.medium
def test_the_stage_can_start_itself_several_times(project: MiniRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """FRAMEFOLD_PROCESSES in place of a launcher. One shard: the other process has nothing to do and ends well."""
    cut_every(monkeypatch, 2048)
    run()
    expected = content()
    start_anew()
    root = Path(__file__).parent.parent
    own = {"PYTHONPATH": f"{root}:{root / 'src'}", "FRAMEFOLD_PROCESSES": "2"}
    own["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    command = [sys.executable, "-m", "stages.extract_frames", "--encoder", "small", "--split", "unlabeled"]
    result = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert content() == expected


def torchrun(processes: int) -> None:
    """The stage as processes side by side, with shards of four videos."""
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr=127.0.0.1",
        f"--nproc-per-node={processes}",
    ]
    code = Path("cut.py")
    code.write_text(
        "import runpy\nfrom framefold.data import shards\nshards.MIN_VIDEOS = shards.MAX_VIDEOS = 4\n"
        "runpy.run_module('stages.extract_frames', run_name='__main__', alter_sys=True)\n",
        encoding="utf-8",
    )
    root = Path(__file__).parent.parent
    environment = {
        **os.environ,
        "PYTHONPATH": f"{root}:{root / 'src'}",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    command = [sys.executable, *launcher, str(code), "--encoder", "small", "--split", "unlabeled"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_zip_changed_after_the_manifest_stops(project: MiniRoot, capsys: pytest.CaptureFixture[str]) -> None:
    project.write_zip("unlabeled", project.records["unlabeled"][0]["id"], [jpeg(77)])
    with pytest.raises(SystemExit):
        run()
    assert "framefold manifest" in capsys.readouterr().err
    assert not TARGET.exists()


def test_a_split_without_any_frame_is_legal(mini: MiniRoot) -> None:
    for record in mini.records["unlabeled"]:
        mini.write_zip("unlabeled", record["id"], [])
    prepare(mini)
    run()
    store = FeatureStore(TARGET)
    assert store.counts.tolist() == [0] * 10
    assert store.frames(3).shape == (0, 8)


@pytest.fixture
def given(mini: MiniRoot) -> dict[str, np.ndarray]:
    """Layout zip_feats: features per id of the unlabelled videos; some are unusable."""
    prepare(mini)
    (mini.root / "zip_frames").rename(mini.root / "elsewhere")
    ids = [record["id"] for record in mini.records["unlabeled"]]
    rng = np.random.default_rng(0)
    features = {video_id: rng.normal(size=(5, 8)).astype(np.float16) for video_id in ids}
    features[ids[1]] = rng.normal(size=(20, 8)).astype(np.float16)
    features[ids[2]][3, 3] = np.inf
    features[ids[3]] = rng.normal(size=(5, 7)).astype(np.float16)
    write_archives(mini.root, features)
    config = {"recipe": None, "preprocess": None, "dim": 8, "weights_sha256": None, "adapted_epochs": 0}
    write_json("models/clip/small/config.json", config)
    return features


def write_archives(root: Path, features: dict[str, np.ndarray]) -> None:
    (root / "zip_feats").mkdir()
    with zipfile.ZipFile(root / "zip_feats/unlabeled.zip", "w") as archive:
        for video_id, array in features.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{video_id}.npy", buffer.getvalue())
    write_manifest(root)


def test_given_features_are_copied_and_checked(given: dict[str, np.ndarray]) -> None:
    """At most max_frames, uniformly spaced; those that are not finite or of another size are rejects."""
    run()
    store, ids = FeatureStore(TARGET), list(given)
    np.testing.assert_array_equal(store.frames(0), given[ids[0]])
    np.testing.assert_array_equal(store.frames(1), given[ids[1]][[0, 4, 8, 11, 15, 19]])
    assert store.counts[2:5].tolist() == [0, 0, 5]
    assert pq.read_table(TARGET / "rejected.parquet").to_pydict()["reason"] == [
        "features are not finite",
        "7 dimensions in place of 8",
    ]


def test_an_encoder_of_frames_does_not_fit_given_features(
    given: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    save_encoder("models/clip/small", load_vision_encoder(load(EncoderParams, "encoders.small")), adapted_epochs=0)
    with pytest.raises(SystemExit):
        run()
    assert "zip_feats" in capsys.readouterr().err
