"""What a study says of the machine it runs on: .venv/bin/python -m pytest tests/test_study_machine.py"""

import subprocess
import sys

import pytest
import torch

from framefold.runtime import Runtime, resolve_precision
from framefold.study.machine import kind_of_machine
from framefold.study.workspace import commands

FLAGS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")  # each comes with those before it


@pytest.fixture
def on_the_cpu(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FRAMEFOLD_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("flags", "kind"), [(1, "AVX2 fp32"), (2, "AVX512 fp32"), (3, "AVX512-BF16 bf16"), (4, "AMX bf16")]
)
def test_a_cpu_is_told_by_what_it_multiplies_with(on_the_cpu, monkeypatch, flags, kind):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(FLAGS[:flags], True))
    assert kind_of_machine() == kind


def test_another_cpu_is_told_by_its_architecture(on_the_cpu, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"neon": True})
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert kind_of_machine() == "aarch64 fp32"


@pytest.mark.parametrize(("names", "kind"), [(["A", "A"], "A bf16"), (["B", "A"], "A + B bf16")])
def test_gpus_are_told_by_their_names(monkeypatch, names, kind):
    monkeypatch.setattr(Runtime, "torch_device", lambda _: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: names[number])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert kind_of_machine() == kind


def test_the_gpus_of_a_study_are_those_that_it_was_given():
    command = commands(1, ["1", "3"]).machine
    shown = [*command[: command.index(sys.executable)], "printenv", "CUDA_VISIBLE_DEVICES"]
    assert subprocess.run(shown, capture_output=True, text=True, check=True).stdout == "1,3\n"


def test_the_command_writes_it_by_the_folder_s_runtime_file(tmp_path):
    (tmp_path / "runtime.yaml").write_text("device: cpu\n", encoding="utf-8")
    subprocess.run([*commands(1, []).machine, "machine"], cwd=tmp_path, check=True)
    name, _, precision = (tmp_path / "machine").read_text(encoding="utf-8").rpartition(" ")
    assert name
    assert precision == resolve_precision("auto", torch.device("cpu"))
