"""One student on all labelled videos, the holdout included, for the bundle: python -m stages.refit --arch single_stream

It is never scored on labelled videos, and nothing is tuned by it: its estimate is that of the students of the folds.
"""

import argparse

from framefold.data.folds import REFIT
from framefold.errors import command
from framefold.launch import on_several_processes
from framefold.rounds import Round
from stages.finetune import finetune


@command
@on_several_processes
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", required=True)
    finetune("refit", parser.parse_args().arch, REFIT, Round(None))


if __name__ == "__main__":
    main()
