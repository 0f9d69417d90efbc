"""Students that train a vision tower of their own, from JPEG frames to a bundle's predictions.

pytest tests/test_end_to_end.py; the stages with -m medium
"""

import contextlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from framefold.data.images import Preprocess, read_encoder_config
from framefold.data.manifest import write_manifest, zip_path
from framefold.data.pixels import PixelVideos, with_pixels
from framefold.data.videos import Videos, open_videos
from framefold.errors import UserError
from framefold.inference.predict_command import run
from framefold.models.backbone import FrameProjection
from framefold.models.end_to_end import attach_tower, load_student
from framefold.models.recomputation import recompute_layers
from framefold.models.registry import load_model, save_model
from framefold.models.vision import load_encoder
from framefold.params.base import load
from framefold.params.finetune import FinetuneParams
from framefold.params.models import StudentParams
from framefold.storage import read_json
from framefold.training.optimization import parameter_groups
from tests import tiny_project
from tests.stores import write_origins, write_pretraining_origin

ARCHS, CLIP, MIN_CROP = ("single_stream", "dual_stream"), Path("models/clip/small"), 0.5
ROWS = np.arange(6)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Stores of raw videos, in the working directory; for reading."""
    folder = tmp_path_factory.mktemp("end-to-end")
    with contextlib.chdir(folder):
        tiny_project.write_params(tiny_project.FOLDS)
        tiny_project.build_stores()
        yield folder


def pixel_videos(project: Path) -> PixelVideos:
    preprocess = Preprocess.from_json(read_encoder_config(CLIP)["preprocess"])
    return with_pixels(open_videos("labeled", "small"), project / "raw", "labeled", preprocess, MIN_CROP)


def batch_of(videos: Videos, rows: np.ndarray = ROWS, draw: tuple[int, int] | None = None) -> dict[str, torch.Tensor]:
    return videos.dataset(rows, load(StudentParams).inputs).batch(np.arange(len(rows)), draw)


def student(arch: str, tower: bool = True) -> Any:
    torch.manual_seed(0)
    model = tiny_project.lively_model(arch, open_videos("labeled", "small"))
    if tower:
        attach_tower(model, load_encoder(CLIP))
    return model.eval()


def files_of(project: Path, video: str) -> list[bytes]:
    with zipfile.ZipFile(zip_path(project / "raw", "labeled", video)) as archive:
        return [archive.read(name) for name in sorted(archive.namelist())]


# Pixels


def test_pixels_in_evaluation_are_the_decoded_frames(project: Path) -> None:
    """Of every video, in its place; mask, text and labels as with features."""
    videos = pixel_videos(project)
    batch, features = batch_of(videos), batch_of(open_videos("labeled", "small"))
    for row, video in enumerate(videos.ids(ROWS)):
        expected = np.stack([videos.pixels.preprocess.pixels(data) for data in files_of(project, video)])
        assert np.array_equal(batch["frames"][row, : len(expected)].numpy(), expected)
        assert not batch["frames"][row, len(expected) :].any()
    assert batch["frames"].dtype == torch.uint8
    for name in features.keys() - {"frames"}:
        assert torch.equal(batch[name], features[name])


def test_pixels_in_training_are_keyed_by_video_and_epoch(project: Path) -> None:
    """The same again whatever the batch, another in the next epoch."""
    videos = pixel_videos(project)
    first, alone = batch_of(videos, draw=(1, 2))["frames"], batch_of(videos, ROWS[2:3], draw=(1, 2))["frames"]
    assert torch.equal(first[2, : alone.shape[1]], alone[0])
    assert not torch.equal(batch_of(videos, draw=(1, 3))["frames"], first)
    assert not torch.equal(batch_of(videos)["frames"], first)


def test_frames_of_a_video_share_their_crop(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame shown again is cut and mirrored alike; other videos are cut otherwise."""
    videos = pixel_videos(project)
    seen: list[tuple[float, ...]] = []
    monkeypatch.setattr(
        Preprocess, "random_crop", lambda self, image, rng, area: seen.append((*rng.random(3), area)) or self.fit(image)
    )
    monkeypatch.setattr(Preprocess, "fit", lambda self, image: np.asarray(image.resize((32, 32))))
    batch = batch_of(videos, draw=(1, 2))
    assert len(seen) == int(batch["frame_mask"].sum()) > len(ROWS)
    assert len(set(seen)) == len(ROWS)
    assert {crop[-1] for crop in seen} == {MIN_CROP}


def test_threads_change_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = batch_of(pixel_videos(project), draw=(1, 2))["frames"]
    for workers in ("0", "3"):
        monkeypatch.setenv("FRAMEFOLD_WORKERS", workers)
        assert torch.equal(batch_of(pixel_videos(project), draw=(1, 2))["frames"], expected)


def test_broken_frames_have_no_pixels_as_they_have_no_features(project: Path) -> None:
    """What stands after a broken frame moves up, and the mask counts what is there."""
    videos = pixel_videos(project)
    video = videos.ids(ROWS[:1])[0]
    good = files_of(project, video)[0]
    path = zip_path(project / "other", "labeled", video)
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for number, data in enumerate((good[:40], good)):
            archive.writestr(f"{number}.jpg", data)
    write_manifest(project / "other")
    own = with_pixels(videos, project / "other", "labeled", videos.pixels.preprocess, MIN_CROP)
    found = own.pixels.of(video, None, None)
    assert np.array_equal(found, videos.pixels.preprocess.pixels(good)[None])
    assert own.pixels.of(video, np.array([0, 1]), None).shape[0] == 1
    assert own.pixels.of("404", None, None).shape == (0, 32, 32, 3)
    batch = batch_of(own)
    assert int(batch["frame_mask"][0].sum()) == 1
    assert not batch["frame_mask"][1:].any()


def test_features_that_the_data_brings_have_no_pixels(project: Path, tmp_path: Path) -> None:
    (tmp_path / "frames.manifest").write_text("framefold-manifest-1 zip_feats\n")
    header = (project / "raw/frames.manifest").read_text().split("\n")[0].rpartition(" ")[0]
    (tmp_path / "frames.manifest").write_text(f"{header} zip_feats\n")
    preprocess = pixel_videos(project).pixels.preprocess
    with pytest.raises(UserError, match=r"finetune\.vision\.lr"):
        with_pixels(open_videos("labeled", "small"), tmp_path, "labeled", preprocess, MIN_CROP)


# The tower in the student


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHS)
def test_an_untrained_tower_gives_the_logits_of_the_features(project: Path, arch: str) -> None:
    """The encoder that extracted the features, given the frames: but for their rounding to float16 the same student."""
    from_pixels = student(arch)(batch_of(pixel_videos(project)))
    from_features = student(arch, tower=False)(batch_of(open_videos("labeled", "small")))
    torch.testing.assert_close(from_pixels, from_features, rtol=0, atol=1e-2)
    assert float(from_features.std()) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHS)
def test_padded_pixels_do_not_count(project: Path, arch: str) -> None:
    """Neither what stands in them nor how many there are; nor do a video's neighbours."""
    model, batch = student(arch), batch_of(pixel_videos(project))
    dirty = batch["frames"].clone()
    dirty[~batch["frame_mask"]] = 255
    assert not torch.equal(dirty, batch["frames"])
    torch.testing.assert_close(model(batch | {"frames": dirty}), model(batch), rtol=0, atol=1e-5)
    alone = batch_of(pixel_videos(project), ROWS[3:4])
    torch.testing.assert_close(model(alone), model(batch)[3:4], rtol=0, atol=1e-4)
    nothing = {"frames": dirty[:, :0], "frame_mask": batch["frame_mask"][:, :0]}
    assert model(batch | nothing).isfinite().all()


@pytest.mark.parametrize("arch", ARCHS)
def test_the_tower_learns_at_its_own_rate_and_keeps_its_statistics(project: Path, arch: str) -> None:
    """Every weight of it has the role `vision`, and labels reach it; no step of its batch normalisation is taken."""
    model, batch = student(arch).train(), batch_of(pixel_videos(project), draw=(0, 0))
    tower = {f"frame_projection.tower.{name}" for name, _ in model.frame_projection.tower.named_parameters()}
    assert {name for name, _ in model.named_parameters() if model.role_of(name) == "vision"} == tower
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    nn.functional.cross_entropy(model(batch), torch.arange(6) % 4).backward()
    without = [name for name, weight in model.named_parameters() if name in tower and weight.grad is None]
    assert without == []
    assert len(before) > 10
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    params = load(FinetuneParams).model_copy(
        update={"vision": load(FinetuneParams).vision.model_copy(update={"lr": 7e-6})}
    )
    groups = parameter_groups(model, model.role_of, params.peak_rates(), 0.01)
    own = {id(weight) for group in groups if group["lr"] == 7e-6 for weight in group["params"]}
    assert own == {id(weight) for weight in model.frame_projection.tower.parameters()}


def test_checkpointing_and_chunks_change_no_gradient(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, gradients = batch_of(pixel_videos(project), draw=(0, 0)), []
    for recompute, chunk in ((False, 64), (True, 64), (True, 4)):
        monkeypatch.setattr("framefold.models.end_to_end.CHUNK", chunk)
        model = student("single_stream")
        recompute_layers(model, recompute)
        model(batch).square().sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)
    torch.testing.assert_close(gradients[2], gradients[0], rtol=1e-3, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHS)
def test_a_saved_student_brings_its_tower(project: Path, arch: str, tmp_path: Path) -> None:
    """Not the encoder's in models/clip; without drawing random numbers; `load_model` alone refuses it by name."""
    model, batch = student(arch), batch_of(pixel_videos(project))
    for weight in model.frame_projection.tower.parameters():
        weight += 0.01 * torch.randn_like(weight)
    save_model(tmp_path, model)
    state = torch.get_rng_state()
    loaded = load_student(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(loaded(batch), model(batch))
    assert not torch.equal(loaded(batch), student(arch)(batch))
    with pytest.raises(UserError, match=r"left over: frame_projection\.tower"):
        load_model(tmp_path)


def test_a_tower_of_another_size_is_refused(project: Path) -> None:
    model = student("single_stream", tower=False)
    model.feature_dim += 1
    with pytest.raises(UserError, match="the student was pretrained on"):
        attach_tower(model, load_encoder(CLIP))


def test_without_a_tower_nothing_is_imported_for_it() -> None:
    """No open_clip, no timm: lr 0 costs no second at the start of a stage."""
    code = (
        "import sys, stages.finetune, stages.average_weights, framefold.models.end_to_end\n"
        "print(sorted({'open_clip', 'timm', 'torchvision'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tiny_project.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert FrameProjection(4, 4).tower is None


# The stages


@pytest.mark.medium
def test_towers_go_through_the_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """finetune trains them, average_weights averages them, the bundle holds one a member; `framefold predict` encodes
    with each and ends with the pipeline's own labels."""
    monkeypatch.chdir(tmp_path)
    tiny_project.write_params([0, 1], archs=["single_stream"], **{"finetune.vision": {"lr": 1e-3, "min_crop": 0.8}})
    tiny_project.build_stores()
    save_model("models/pretrain/single_stream/all", student("single_stream", tower=False))
    write_pretraining_origin(Path("models/pretrain/single_stream/all"))
    write_origins(tmp_path)
    for fold in ("0", "1"):
        tiny_project.run_stage("finetune", "--arch", "single_stream", "--fold", fold)
    tiny_project.finish_pipeline(["single_stream"])

    key = "frame_projection.tower.chunks.0.encoder.tower.conv1.weight"
    towers = [load_file(f"models/ensemble/members/single_stream/{fold}/model.safetensors")[key] for fold in (0, 1)]
    came = load_file(CLIP / "model.safetensors")["conv1.weight"]
    assert not any(torch.equal(one, other) for one, other in [towers, (towers[0], came), (towers[1], came)])
    assert read_json("models/ensemble/members/single_stream/0/config.json")["vision"]["preprocess"]["image_size"] == 32
    finetuned = Path("models/finetune/single_stream/0")
    kept = read_json(finetuned / "metrics.json")["kept"]
    assert len(kept) == 2
    epochs = [load_file(finetuned / f"epoch-{epoch}.safetensors")[key] for epoch in kept]
    torch.testing.assert_close(towers[0], (epochs[0] + epochs[1]) / 2)
    run(data=Path("raw"), out=Path("out.csv"), bundle=Path("models/ensemble"))
    assert Path("out.csv").read_text() == Path("data/predictions/result.csv").read_text()
    assert len({line.partition(",")[2] for line in Path("out.csv").read_text().split()}) > 1
