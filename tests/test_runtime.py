"""Runtime knobs: where they come from, what is refused, and what `auto` precision means.

pytest tests/test_runtime.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from framefold import runtime
from framefold.errors import UserError
from framefold.runtime import KEPT_KERNELS, load_runtime, resolve_precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for key in runtime.Runtime.model_fields:
        monkeypatch.delenv(runtime.PREFIX + key.upper(), raising=False)
    return tmp_path


def test_nothing_set_needs_no_file() -> None:
    assert load_runtime().workers == 0
    assert load_runtime().checkpoint_seconds == 60


def test_environment_goes_before_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "runtime.yaml").write_text("workers: 3\nthreads: 2\n")
    monkeypatch.setenv("FRAMEFOLD_WORKERS", "5")
    assert (load_runtime().workers, load_runtime().threads) == (5, 2)


@pytest.mark.parametrize("text", ["worker: 3\n", "workers: many\n", "- workers\n", "workers: [\n", "device: tpu\n"])
def test_bad_file_is_one_line_that_names_it(folder: Path, text: str) -> None:
    (folder / "runtime.yaml").write_text(text)
    with pytest.raises(UserError, match=r"^runtime\.yaml: [^\n]+$"):
        load_runtime()


def test_bad_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMEFOLD_THREADS", "-1")
    with pytest.raises(UserError, match=r"FRAMEFOLD_THREADS: .*-1"):
        load_runtime()


@pytest.mark.parametrize(("text", "expected"), [("0", False), ("false", False), ("1", True), ("true", True)])
def test_flags_from_the_environment(monkeypatch: pytest.MonkeyPatch, text: str, expected: bool) -> None:
    monkeypatch.setenv("FRAMEFOLD_COMPILE", text)
    assert load_runtime().compile is expected
    assert load_runtime().checkpointing is load_runtime().remove_padding is False


@pytest.mark.parametrize("text", ["yes", "True", "on", "2", " 1"])
def test_other_words_for_a_flag_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """What is not understood must not count as false, or as true."""
    monkeypatch.setenv("FRAMEFOLD_CHECKPOINTING", text)
    with pytest.raises(UserError, match=r"^environment: FRAMEFOLD_CHECKPOINTING: [^\n]*0, 1, false, true"):
        load_runtime()


def test_flags_in_the_file(folder: Path) -> None:
    (folder / "runtime.yaml").write_text("compile: true\n")
    assert load_runtime().compile
    (folder / "runtime.yaml").write_text("compile: 'yes'\n")
    with pytest.raises(UserError, match=r"^runtime\.yaml: compile"):
        load_runtime()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx512_f": True}, "fp32")],
)
def test_auto_is_bf16_only_where_the_cpu_has_it(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], expected: str
) -> None:
    """Emulated bf16 is several times slower than fp32, so a CPU without the instructions stays with fp32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("fp32", CPU) == "fp32"


def test_bf16_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(UserError, match="bf16 is not supported by this cpu; set precision to fp32 or auto"):
        resolve_precision("bf16", CPU)


def test_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("FRAMEFOLD_DEVICE", "cuda")
    with pytest.raises(UserError, match="no GPU"):
        load_runtime().torch_device()
    monkeypatch.setenv("FRAMEFOLD_DEVICE", "auto")
    assert load_runtime().torch_device() == CPU


def test_few_kernels_are_kept_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.delenv(name, raising=False)
    load_runtime().prepare_cpu()
    assert os.environ[name] == KEPT_KERNELS
    monkeypatch.setenv(name, "7")
    load_runtime().prepare_cpu()
    assert os.environ[name] == "7"


def test_knobs_and_scratch_do_not_load_torch() -> None:
    """Stages without torch start within a second, so these modules must not bring it in."""
    code = "import sys, framefold.scratch; framefold.scratch.stage_fingerprint({}, []); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
