"""What a study says of the machine it runs on: .venv/bin/python -m pytest tests/test_study_machine.py"""

import subprocess
import sys
from typing import ClassVar

import pytest
import torch

from framefold.runtime import resolve_precision
from framefold.study.machine import kind_of_machine

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
    assert kind_of_machine("auto") == kind


def test_another_cpu_is_told_by_its_architecture(on_the_cpu, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"neon": True})
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert kind_of_machine("auto") == "aarch64 fp32"


def test_the_precision_of_the_params_counts(on_the_cpu, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(FLAGS, True))
    assert kind_of_machine("fp32") == "AMX fp32"


def test_a_gpu_is_told_by_its_name(monkeypatch, tmp_path):
    class Runtime:
        torch_device: ClassVar = staticmethod(lambda: torch.device("cuda", 1))

    monkeypatch.setattr("framefold.study.machine.load_runtime", Runtime)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert kind_of_machine("auto") == "GPU 1 bf16"


def test_the_command_says_it_in_one_line_by_the_folder_s_runtime_file(tmp_path):
    (tmp_path / "runtime.yaml").write_text("device: cpu\n", encoding="utf-8")
    command = [sys.executable, "-m", "framefold.study.machine", "auto"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip().split(" ")[-1] == resolve_precision("auto", torch.device("cpu"))
    assert result.stdout.count("\n") == 1
