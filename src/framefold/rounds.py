"""Where a round of pseudo-labelling leaves what it makes.

A round: committee of teachers -> soft labels -> pretraining -> finetuning -> averages, whose students can be the
committee of the next round (noisy students, Xie et al. 2020). The last round is the pipeline itself, `Round(None)`;
earlier ones have names, and folders of their own.
"""

from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Round:
    name: str | None

    @property
    def pseudo(self) -> Path:
        return Path("data/pseudo") if self.name is None else Path("data/rounds") / self.name / "pseudo"

    @property
    def models(self) -> Path:
        """Holds pretrain, finetune and swa."""
        return Path("models") if self.name is None else Path("models/rounds") / self.name

    @property
    def metrics(self) -> Path:
        return Path("metrics") if self.name is None else Path("metrics/rounds") / self.name

    def item(self, stage: str, *parts: object) -> str:
        """The name of a stage item's scratch folder: `finetune@first-single_stream-0`."""
        own = "-".join(map(str, [*([self.name] if self.name else []), *parts]))
        return f"{stage}@{own}" if own else stage


def add_round(parser: ArgumentParser) -> None:
    parser.add_argument("--round", dest="round_", type=Round, default=Round(None), help="an earlier round's name")
