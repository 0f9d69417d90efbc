"""The benchmarks measure what they say: .venv/bin/python -m pytest -m "medium or not medium" tests/test_benchmarks.py

The reference of benchmarks/training.py computes our losses with our weights; every script runs at tiny sizes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks import run
from benchmarks.figures import figures_of, median
from benchmarks.names import ALWAYS, GPU_EXTRACTION, GPU_PREDICT, MFU
from benchmarks.projection import projected
from benchmarks.run import merge, page_with, tables
from benchmarks.wechat import merged
from framefold.errors import UserError
from framefold.params.profiles import apply_profile

ROOT = Path(__file__).resolve().parents[1]
ARCHS = ["single_stream", "dual_stream"]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


# metrics/benchmarks.json


def test_every_promised_figure_is_there_and_null_until_it_is_measured():
    results = merge({}, {}, "a", anew=True)
    assert results == dict.fromkeys(("machine", "machine_gpu", *ALWAYS))


def test_figures_of_benchmarks_that_did_not_run_stay_on_the_same_machine():
    recorded = merge({}, {"one": 1.0, "two": 2.0}, "a", anew=True)
    results = merge(recorded, {"two": 3.0}, "a", anew=False)
    assert (results["one"], results["two"], results["machine"]) == (1.0, 3.0, "a")


def test_figures_of_another_machine_go():
    recorded = merge({}, {"one": 1.0, "two": 2.0}, "a", anew=True)
    results = merge(recorded, {"two": 3.0}, "b", anew=False)
    assert (results.get("one"), results["two"], results["machine"]) == (None, 3.0, "b")


def test_a_run_of_everything_drops_what_it_did_not_find():
    recorded = merge({}, {"gone": 1.0, "two": 2.0}, "a", anew=True)
    assert "gone" not in merge(recorded, {"two": 3.0}, "a", anew=True)


def test_a_machine_without_a_gpu_leaves_the_figures_of_one_with_it():
    recorded = merge({}, {"mfu_pretrain_base": 0.5}, "with a GPU", anew=True)
    results = merge(recorded, {"mfu_pretrain_base": None, "one": 1.0}, "without", anew=True)
    assert (results["mfu_pretrain_base"], results["machine_gpu"]) == (0.5, "with a GPU")
    assert (results["one"], results["machine"]) == (1.0, "without")


def test_a_null_replaces_a_figure_of_the_same_machine():
    recorded = merge({}, {"one": 1.0, "two": 2.0}, "a", anew=True)
    assert merge(recorded, {"one": None, "two": 2.0}, "a", anew=False)["one"] is None


def test_the_results_are_one_flat_object():
    results = merge({}, {"one": 1.0, "mfu_pretrain_base": 0.5}, "a", anew=True)
    assert not any(isinstance(value, dict | list) for value in results.values())


@pytest.mark.parametrize("last", ["", "done", "[1]", '{"a": "fast"}', '{"a": true}', '{"a": NaN}', '{"a": {"b": 1}}'])
def test_a_last_line_that_is_no_figures_is_refused(last: str):
    with pytest.raises(ValueError):  # noqa: PT011 - of json or ours
        figures_of(f"working\n{last}\n")


def test_the_last_line_counts():
    assert figures_of('{"a": 1}\nworking\n{"b": null, "c": 2.5}\n') == {"b": None, "c": 2.5}


def test_a_failed_benchmark_is_an_error_and_the_others_are_kept(monkeypatch: pytest.MonkeyPatch):
    def one(name: str) -> dict[str, float]:
        if name == "bad":
            raise UserError("bad: failed")
        return {name: 1.0}

    monkeypatch.setattr(run, "run", one)
    assert run.run_all(["first", "bad", "last"]) == ({"first": 1.0, "last": 1.0}, ["bad: failed"])


def test_a_process_that_ends_with_an_error_is_reported():
    with pytest.raises(UserError, match="exit code 1"):
        run.run("no_such_benchmark")


def test_the_median_of_an_even_number_is_between_the_middle_two():
    assert (median([3.0, 1.0, 2.0]), median([4.0, 1.0, 2.0, 3.0])) == (2.0, 2.5)


# docs/benchmarks.md


def test_the_page_shows_every_figure_and_keeps_its_text():
    results = merge({}, {"one": 1234.5678, "mfu_teacher_large": 0.5}, "a", anew=True)
    text = f"before\n{run.BEGIN}\nold\n{run.END}\nafter\n"
    page = page_with(text, results)
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert "old" not in page
    assert "| `one` | 1,235 |" in page
    assert "| `train_step_ratio_single_stream` | not measured |" in page
    assert page_with(page, results) == page


def test_a_page_without_marks_is_an_error():
    with pytest.raises(UserError, match="missing"):
        page_with("nothing", merge({}, {}, "a", anew=True))


def test_the_committed_page_shows_the_committed_figures():
    results = json.loads((ROOT / run.RESULTS).read_text(encoding="utf-8"))
    assert tables(results) in (ROOT / run.PAGE).read_text(encoding="utf-8")
    assert set(ALWAYS) <= set(results)


@pytest.mark.parametrize("name", sorted({*ALWAYS, *MFU, *GPU_EXTRACTION, *GPU_PREDICT}))
def test_the_page_says_what_a_figure_is(name: str):
    """By its name, or by a pattern such as `gflop_pretrain_<arch>`."""
    text = (ROOT / run.PAGE).read_text(encoding="utf-8").partition(run.BEGIN)[0]
    patterns = [re.sub(r"<\w+>", r"\\w+", pattern) for pattern in re.findall(r"`([\w<>]+)`", text)]
    assert any(re.fullmatch(pattern, name) for pattern in patterns)


# Projection


def test_the_recipe_is_the_one_that_the_profile_makes(tmp_path: Path):
    """benchmarks/wechat.py merges as `framefold profile wechat` does."""
    from framefold.params.base import read

    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    apply_profile("wechat", [], tmp_path)
    expected, found = read(tmp_path / "params.yaml"), dict(merged())
    found["encoders"] = {name: found["encoders"][name] for name in expected["encoders"]}  # replaced whole there
    assert found == expected


RATES = {
    "matmul_peak_tflops": 1000.0,
    **{f"gflop_pretrain_{arch}": 360.0 for arch in ARCHS},
    **{f"gflop_finetune_{arch}": 0.001 for arch in ARCHS},
    "gflop_train_teacher": 0.001,
    "videos_per_second_teacher": 1e9,
    "mfu_pretrain_base": 0.5,
    "mfu_pretrain_base_dual_stream": 0.5,
    "extract_frames_per_second_vit_b16": 1e12,
    "extract_frames_per_second_vit_l14": 1e12,
}


def test_hours_are_videos_times_flop_over_what_the_gpu_reaches():
    """1.1 million videos x 30 epochs x 360 GFLOP at 500 TFLOP/s: 6.6 hours; half as many for 15 epochs."""
    hours = projected(RATES)
    assert hours["projected_gpu_hours_pretrain_single_stream"] == pytest.approx(6.6)
    assert hours["projected_gpu_hours_wechat"] == pytest.approx(9.9, abs=0.01)


@pytest.mark.parametrize("missing", sorted(RATES))
def test_no_total_while_a_figure_is_missing(missing: str):
    assert projected({**RATES, missing: None})["projected_gpu_hours_wechat"] is None


# The reference and ours


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("transformers")
    from benchmarks.training import make_data, rehearsal

    return make_data(tmp_path_factory.mktemp("benchmark"), rehearsal()[0])


def pair(arch: str, data: Any, all_positions: bool = True) -> tuple[Any, Any]:
    """Our model, and the reference with its weights."""
    from benchmarks.competition_model import Pretraining
    from benchmarks.training import our_model, reference_sizes, rehearsal

    torch.manual_seed(0)
    ours = our_model(arch, rehearsal()[0], data)
    for parameter in ours.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # biases and norms too
    weights = ours.weights.model_dump()
    reference = Pretraining(arch, reference_sizes(rehearsal()[0], data), weights, all_positions)
    reference.load_state_dict(translated(ours.state_dict(), reference.state_dict()))
    return ours.eval(), reference.eval()


def translated(ours: Tensors, reference: Tensors) -> Tensors:
    """Ours under the reference's names: it has more positions, and keys apart from values."""
    state: Tensors = {}
    for name, value in ours.items():
        if name.endswith("position_embeddings.weight"):
            state[name] = torch.cat([value, reference[name][len(value) :]])
        elif ".key_value." in name:
            halves = value.chunk(2)
            state |= {
                name.replace("key_value", part): half for part, half in zip(("key", "value"), halves, strict=True)
            }
        else:
            state[name] = value
    return state


def batches(data: Any) -> tuple[Tensors, Tensors]:
    """One of ours, and the same at the competition's length."""
    from benchmarks.ours import pretraining_batches
    from benchmarks.training import rehearsal
    from framefold.params.base import load
    from framefold.params.pretrain import PretrainParams

    batch = pretraining_batches(data.dataset, load(PretrainParams), rehearsal()[0].batch_size)[0]
    longer = {name: batch[name] for name in ("soft", "pair_rows")}
    hidden = torch.zeros_like(batch["text_mask"]).flatten()
    hidden[batch["token_places"]] = True
    texts = {name: batch[name] for name in ("input_ids", "masked_ids", "text_mask")}
    for name, value in (texts | {"hidden_tokens": hidden.view_as(batch["text_mask"])}).items():
        longer[name] = F.pad(value, (0, 258 - value.shape[1]))
    for name in ("frame_mask", "hidden_frames", "pair_frame_mask"):
        longer[name] = F.pad(batch[name], (0, 32 - batch[name].shape[1]))
    for name in ("frames", "pair_frames"):
        longer[name] = F.pad(batch[name], (0, 0, 0, 32 - batch[name].shape[1]))
    return batch, longer


@pytest.mark.medium
@pytest.mark.parametrize("all_positions", [True, False])
@pytest.mark.parametrize("arch", ARCHS)
def test_the_reference_computes_our_losses(arch: str, all_positions: bool, data: Any):
    """Same weights, same videos, no dropout, fp32: every objective and the total agree."""
    from benchmarks.ours import loss_of
    from framefold.training.tasks import PretrainingTask

    (ours, reference), (batch, longer) = pair(arch, data, all_positions), batches(data)
    total, parts = loss_of(PretrainingTask(ours), batch)
    expected, losses = reference(longer)
    assert {name.removeprefix("loss_") for name in parts if name.startswith("loss_")} == set(losses)
    for name, loss in losses.items():
        assert float(parts[f"loss_{name}"]) == pytest.approx(float(loss.detach()), rel=1e-4), name
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


@pytest.mark.medium
@pytest.mark.parametrize("arch", ARCHS)
def test_the_reference_has_as_many_parameters_but_for_positions(arch: str, data: Any):
    models = pair(arch, data)
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    positions = [model.backbone.text.embeddings.position_embeddings.weight.numel() for model in models]
    assert sizes[1] - sizes[0] == positions[1] - positions[0] > 0


@pytest.mark.medium
def test_the_reference_reads_the_same_videos(data: Any):
    """Its own tokeniser and zips give the ids and frames of our stores, at full length."""
    from benchmarks.competition import FRAMES, TEXT_LENGTH
    from benchmarks.training import AS_REFERENCE, open_reference, rehearsal

    reference = open_reference("single_stream", rehearsal()[0], data, AS_REFERENCE)
    rows = list(range(40))
    batch, own = reference.collator([reference.videos[row] for row in rows]), data.dataset.batch(rows)
    assert batch["input_ids"].shape == (40, TEXT_LENGTH)
    assert batch["frames"].shape[1] == FRAMES
    kept = own["frame_mask"].shape[1]
    torch.testing.assert_close(batch["frames"][:, :kept], own["frames"])
    assert torch.equal(batch["frame_mask"].sum(1), own["frame_mask"].sum(1))
    same = [
        batch["input_ids"][row][batch["text_mask"][row].bool()].tolist() == own["input_ids"][row][mask].tolist()
        for row, mask in enumerate(own["text_mask"])
    ]
    assert sum(same) >= 36  # emoji and repeated marks: our normalisation goes further than BERT's
    assert abs(int(batch["text_mask"].sum()) / int(own["text_mask"].sum()) - 1) < 0.01


@pytest.mark.medium
def test_a_vocabulary_that_the_reference_does_not_know_is_noticed(data: Any):
    from benchmarks.training import AS_REFERENCE, check_unknown, open_reference, rehearsal

    videos = open_reference("single_stream", rehearsal()[0], data, AS_REFERENCE).videos
    check_unknown(videos)
    videos.records = [record | {"title": "鑫森淼焱垚"} for record in videos.records]
    with pytest.raises(ValueError, match="UNK"):
        check_unknown(videos)


# The scripts


def rehearse(name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--rehearse"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FRAMEFOLD_DEVICE": "cpu"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return figures_of(result.stdout)


@pytest.mark.medium
def test_the_training_benchmark_runs():
    pytest.importorskip("transformers")
    figures = rehearse("training")
    for arch in ARCHS:
        assert figures[f"train_step_ratio_{arch}"] == figures[f"train_step_ratio_{arch}_tiny"] > 0
        assert figures[f"train_step_gain_{arch}_padding"] > 0


@pytest.mark.medium
def test_the_mfu_benchmark_runs():
    figures = rehearse("mfu")
    assert set(figures) == set(MFU)
    assert all(value > 0 for value in figures.values())
    assert 2.5 < figures["gflop_train_teacher"] / figures["gflop_predict_teacher"] < 3.6  # forward, and backward twice


@pytest.mark.medium
def test_the_extraction_benchmark_runs():
    figures = rehearse("extraction")
    assert {name: figures[name] for name in GPU_EXTRACTION} == dict.fromkeys(GPU_EXTRACTION)
    assert figures["extract_frames_per_second_cpu_small"] > 0
    assert figures["extract_share_of_limit_cpu_small"] > 0


@pytest.mark.medium
def test_the_predict_benchmark_runs():
    figures = rehearse("predict")
    assert {name: figures[name] for name in GPU_PREDICT} == dict.fromkeys(GPU_PREDICT)
    assert figures["predict_videos_per_s_small"] > 0
    assert figures["predict_overlap_ratio"] > 0


def test_the_predict_benchmark_has_the_sizes_of_the_recipe():
    """On a GPU; nothing of it runs here."""
    from benchmarks.predict import describe, full_scale, text_model

    setting = full_scale()
    bundle, sizes = describe(setting), text_model(setting.params).sizes
    assert sizes is not None
    assert (len(bundle.archs) * len(bundle.folds), bundle.max_frames, len(bundle.categories)) == (10, 32, 200)
    assert (bundle.inputs.title + bundle.inputs.asr + bundle.inputs.ocr + 4, sizes.hidden, sizes.layers) == (
        258,
        768,
        12,
    )
    assert (setting.encoder.name, setting.encoder.weights, setting.encoder.decoder) == ("ViT-B-16", None, "torchvision")


def test_the_overhead_benchmark_runs():
    figures = rehearse("overhead")
    assert figures["noop_repro_seconds"] is None
    assert 0 < figures["stage_start_seconds_ingest"] < 60
