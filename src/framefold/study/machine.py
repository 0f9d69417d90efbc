"""The kind of machine that runs are made on: python -m framefold.study.machine PRECISION, in the run's folder

Trainings that start alike drift apart between kinds of machine, by rounding and by what `precision: auto` comes to, as
far as they do between seeds. So runs are held against each other only where both were made on one kind.
"""

import argparse
import platform

from framefold.errors import command
from framefold.runtime import load_runtime, resolve_precision

WIDEST_FIRST = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512_f": "AVX512", "avx2": "AVX2"}


def kind_of_machine(precision: str) -> str:
    """What computes, and the precision that it trains in where params say `precision`: "AVX2 fp32"."""
    import torch

    device = load_runtime().torch_device()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        there = torch.cpu.get_capabilities()
        name = next((name for flag, name in WIDEST_FIRST.items() if there.get(flag)), platform.machine())
    return f"{name} {resolve_precision(precision, device)}"


@command
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("precision", choices=("auto", "fp32", "bf16"))
    print(kind_of_machine(parser.parse_args().precision))


if __name__ == "__main__":
    main()
