"""Attention in training on the CPU, plain products against PyTorch's fused kernel: python benchmarks/attention.py

Forward and backward of one layer's attention at the demo's shapes, without dropout, in turns; prints both times and
their ratio for several lengths.
"""

import argparse
import logging
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from framefold.errors import command
from framefold.models.attention import attend
from framefold.runtime import load_runtime, resolve_precision

HEADS, WIDTH = 2, 64


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def seconds(attention: Callable[..., Tensor], states: list[Tensor], mask: Tensor, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        attention(*states, mask, 0.0).sum().backward()
    return time.perf_counter() - start


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    load_runtime().prepare_cpu()
    bf16 = resolve_precision("auto", torch.device("cpu")) == "bf16"
    for length in (16, 32, 64, 128, 290):
        shape = arguments.batch, HEADS, length, WIDTH
        states = [torch.randn(shape, dtype=torch.bfloat16 if bf16 else None).requires_grad_() for _ in range(3)]
        mask = torch.arange(length) < torch.randint(length // 2, length + 1, (arguments.batch, 1, 1, 1))
        plain, kernel = 0.0, 0.0
        for turn in range(arguments.rounds + 1):
            times = seconds(attend, states, mask, 10), seconds(fused, states, mask, 10)
            if turn:  # the first warms up
                plain, kernel = plain + times[0], kernel + times[1]
        calls = 10 * arguments.rounds
        logging.info(
            "%3d tokens: plain %.2f ms, fused %.2f ms, ratio %.2f",
            length,
            plain / calls * 1e3,
            kernel / calls * 1e3,
            kernel / plain,
        )


if __name__ == "__main__":
    main()
