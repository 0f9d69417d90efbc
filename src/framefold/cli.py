"""The `framefold` command. The pipeline itself is run by `dvc repro`, or `framefold repro`."""

import argparse
from dataclasses import fields
from pathlib import Path

from framefold.errors import command

# Each handler imports its own part of the library: `framefold --help` answers at once, and `profile` needs no torch.


def manifest(arguments: argparse.Namespace) -> None:
    from framefold.data.manifest import write_manifest

    write_manifest(arguments.dir, full=arguments.full)


def profile(arguments: argparse.Namespace) -> None:
    from framefold.params.profiles import apply_profile

    apply_profile(arguments.name, arguments.overrides)
    tell_of_idle_params()
    print(f"params.yaml now holds profile {arguments.name}; `git diff params.yaml` shows it, `dvc repro` runs it")


def predict(arguments: argparse.Namespace) -> None:
    from framefold.inference.predict_command import run

    run(data=arguments.data, out=arguments.out, bundle=arguments.bundle)


def repro(arguments: argparse.Namespace) -> None:
    from framefold.params.base import read
    from framefold.params.validation import validate_all
    from framefold.side_by_side import repro

    validate_all(read())  # a stage would find what contradicts another group's values only when its turn comes
    tell_of_idle_params()
    repro(arguments.jobs, arguments.gpus)


def tell_of_idle_params() -> None:
    from framefold.params.base import read
    from framefold.params.validation import without_effect

    for line in without_effect(read()):
        print(f"note: {line}")


def ablate(arguments: argparse.Namespace) -> None:
    from framefold.study import command

    handler = {"dry": command.show, "report": command.report, None: command.run}[arguments.instead]
    handler(command.Options(**{field.name: getattr(arguments, field.name) for field in fields(command.Options)}))


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
    add_slots(part)
    part.set_defaults(handler=repro)

    part = commands.add_parser("ablate", help="run what is left of studies/STUDY.yaml: each method on and off")
    add_ablate_arguments(part)
    part.set_defaults(handler=ablate)

    part = commands.add_parser("predict", help="label new videos with a finished ensemble")
    part.add_argument("--data", type=Path, required=True, metavar="DIR", help="annotations/test.json and its frames")
    part.add_argument("--out", type=Path, required=True, metavar="FILE", help="CSV without header: id,category_id")
    part.add_argument("--bundle", type=Path, default=Path("models/ensemble"), metavar="DIR")
    part.set_defaults(handler=predict)
    return parser


def add_slots(part: argparse.ArgumentParser) -> None:
    slots = part.add_mutually_exclusive_group()
    slots.add_argument("--jobs", type=number_of_jobs, default=1, metavar="N", help="stages at a time (default: 1)")
    slots.add_argument("--gpus", type=gpu_names, default=(), metavar="0,1", help="one stage at a time on each of these")


def add_ablate_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("study", metavar="STUDY", help="demo, realset, or your own file in studies/")
    part.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of all arms, e.g. data.root=DIR")
    instead = part.add_mutually_exclusive_group()
    instead.add_argument("--dry", dest="instead", action="store_const", const="dry", help="tell what would run")
    instead.add_argument(
        "--report",
        dest="instead",
        action="store_const",
        const="report",
        help="tables and picture of what is recorded",
    )
    part.add_argument("--arms", type=names, default=(), metavar="A,B", help="or kinds: ladder, default, without, added")
    part.add_argument("--seeds", type=numbers, default=(), metavar="0,1", help="these in place of the study's")
    part.add_argument("--budget", type=float, metavar="MINUTES", help="start nothing that would probably take longer")
    part.add_argument("--workdir", type=Path, metavar="DIR", help="clone that is run in (default: .ablation/<dataset>)")
    part.add_argument("--cache", type=Path, metavar="DIR", help="DVC cache to share (default: the clone's own)")
    part.add_argument("--commit", action="store_true", help="commit the results of each run")
    part.add_argument("--keep-stale", action="store_true", help="keep results of other params or code")
    add_slots(part)


def names(text: str) -> list[str]:
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as bare,default")
    return found


def numbers(text: str) -> list[int]:
    if not all(part.strip().isascii() and part.strip().isdigit() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 0,1")
    return [int(part) for part in text.split(",")]


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
