"""The `framefold` command. The pipeline itself is run by `dvc repro`, or `framefold repro`."""

import argparse
from pathlib import Path

from framefold.errors import command

# Each handler imports its own part of the library: `framefold --help` answers at once, and `profile` needs no torch.


def manifest(arguments: argparse.Namespace) -> None:
    from framefold.data.manifest import write_manifest

    write_manifest(arguments.dir, full=arguments.full)


def profile(arguments: argparse.Namespace) -> None:
    from framefold.params.profiles import apply_profile

    apply_profile(arguments.name, arguments.overrides)
    print(f"params.yaml now holds profile {arguments.name}; `git diff params.yaml` shows it, `dvc repro` runs it")


def predict(arguments: argparse.Namespace) -> None:
    from framefold.inference.predict_command import run

    run(data=arguments.data, out=arguments.out, bundle=arguments.bundle)


def repro(arguments: argparse.Namespace) -> None:
    from framefold.side_by_side import repro

    repro(arguments.jobs, arguments.gpus)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="framefold", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    part = commands.add_parser("manifest", help="index the frames of a data root, once and after every change")
    part.add_argument("dir", type=Path, metavar="DIR", help="folder with annotations/ and zip_frames/ or zip_feats/")
    part.add_argument("--full", action="store_true", help="read every zip again (where file times can't be trusted)")
    part.set_defaults(handler=manifest)

    part = commands.add_parser("profile", help="merge profiles/NAME.yaml and overrides into params.yaml")
    part.add_argument("name", metavar="NAME", help="smoke, scratch, wechat, or your own file in profiles/")
    part.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. data.root=DIR finetune.epochs=5")
    part.set_defaults(handler=profile)

    part = commands.add_parser("repro", help="dvc repro with stages side by side that do not wait for each other")
    slots = part.add_mutually_exclusive_group()
    slots.add_argument("--jobs", type=number_of_jobs, default=1, metavar="N", help="stages at a time (default: 1)")
    slots.add_argument("--gpus", type=gpu_names, default=(), metavar="0,1", help="one stage at a time on each of these")
    part.set_defaults(handler=repro)

    part = commands.add_parser("predict", help="label new videos with a finished ensemble")
    part.add_argument("--data", type=Path, required=True, metavar="DIR", help="annotations/test.json and its frames")
    part.add_argument("--out", type=Path, required=True, metavar="FILE", help="CSV without header: id,category_id")
    part.add_argument("--bundle", type=Path, default=Path("models/ensemble"), metavar="DIR")
    part.set_defaults(handler=predict)
    return parser


def number_of_jobs(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def gpu_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different GPUs, such as 0,1")
    return names


@command
def main() -> None:
    arguments = build_parser().parse_args()
    arguments.handler(arguments)
