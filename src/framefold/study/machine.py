"""The kind of machine that runs are made on, as a line in FILE: python -m framefold.study.machine FILE, in their folder

Trainings that start alike drift apart between kinds of machine, by rounding and by what `precision: auto` comes to, as
far as they do between seeds. So all runs of a seed are made on one kind, and compared only if they were. Numbers of
threads and processes drift them apart, too, but are the user's to keep.
"""

import argparse
import platform
from pathlib import Path

from framefold.errors import command
from framefold.runtime import load_runtime, resolve_precision

WIDEST_FIRST = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512_f": "AVX512", "avx2": "AVX2"}


def kind_of_machine() -> str:
    """What computes, and the precision that `auto` comes to there: "AVX2 fp32". Of GPUs all that can be seen count."""
    import torch

    device = load_runtime().torch_device()
    if device.type == "cuda":
        name = " + ".join(sorted({torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())}))
    else:
        there = torch.cpu.get_capabilities()
        name = next((name for flag, name in WIDEST_FIRST.items() if there.get(flag)), platform.machine())
    return f"{name} {resolve_precision('auto', device)}"


@command
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.parse_args().file.write_text(kind_of_machine(), encoding="utf-8")


if __name__ == "__main__":
    main()
