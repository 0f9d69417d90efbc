"""Frame features of one split under one encoder: python -m stages.extract_frames --encoder small --split labeled

Finished shards are kept in .shards/<encoder>-<split>/ (runtime knob `shards`), also after the stage: a killed run, and
a run on a split that has grown, make only those that are missing. `--part 2/4` makes a quarter of them and publishes
nothing: several machines that see the same folder share a split so. Several processes share it by themselves.
"""

import argparse
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from framefold.data.extraction import Part, await_shards, extract, open_source
from framefold.data.features import write_store
from framefold.data.images import read_encoder_config
from framefold.data.manifest import NAME
from framefold.data.shards import KeptShards
from framefold.errors import command
from framefold.launch import on_several_processes
from framefold.params.base import load
from framefold.params.data import DataParams
from framefold.params.encoders import EncoderParams
from framefold.runtime import is_main_process, load_runtime, rank, world
from framefold.scratch import Scratch, code_fingerprint, stage_fingerprint
from framefold.storage import fingerprint_of

LIBRARIES = ("numpy", "open_clip_torch", "pillow", "timm", "torch", "torchvision")


@command
@on_several_processes
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--split", required=True)
    parser.add_argument(
        "--part", type=part_of, metavar="I/N", help="make every N-th shard, from the I-th on; no output"
    )
    args = parser.parse_args()
    params = load(EncoderParams, f"encoders.{args.encoder}")
    root, encoder = Path(load(DataParams).root), Path("models/clip") / args.encoder
    samples, config = Path("data/samples") / f"{args.split}.parquet", read_encoder_config(encoder)
    sampling = {"frames": "uniform", "max_frames": params.max_frames, "batch_size": params.batch_size}
    modules = ["framefold.models.vision", "framefold.models.jpeg_decoder"]
    stamp = stage_fingerprint(sampling, [root / NAME, samples, encoder], modules)

    item = f"{args.encoder}-{args.split}"
    shared = args.part or Part()
    mine = Part(shared.number * world() + rank(), shared.of * world())
    own_lock = f"extract_frames@{item}" + (f"-part{shared.number + 1}of{shared.of}" if args.part else "")
    kept = KeptShards(shards_folder() / item, config["dim"])
    recipe = recipe_of(config, sampling, modules)
    with Scratch(own_lock, stamp) as scratch:
        with open_source(root, args.split, encoder, params.max_frames, params.batch_size, scratch.guard) as source:
            keys = extract(source, samples, kept, recipe, mine, scratch.guard)
        if is_main_process() and not args.part:
            await_shards(kept, [key for number, key in enumerate(keys) if not mine.has(number)], scratch.guard)
            manifest = {"encoder": args.encoder, "split": args.split, "sampling": sampling, **config}
            write_store(Path("data/features") / args.encoder / args.split, kept, keys, manifest, scratch.guard)
            if not load_runtime().shards:  # a shared folder may hold what others still need
                kept.drop_others(keys)
        scratch.finish()


def recipe_of(config: dict[str, Any], sampling: dict[str, Any], modules: list[str]) -> str:
    """Digest of all that features depend on besides the videos; config holds the digest of the tower's weights."""
    content = {"encoder": config, "sampling": sampling, "code": code_fingerprint(modules)}
    content["versions"] = {name: installed_version(name) for name in LIBRARIES}
    content["device"] = load_runtime().torch_device().type  # a GPU computes in fp16
    return fingerprint_of(content)


def installed_version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def part_of(text: str) -> Part:
    """`2/4`: the second of four."""
    number, slash, of = text.partition("/")
    if not slash or not (number.isdecimal() and of.isdecimal()) or not 1 <= int(number) <= int(of):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N")
    return Part(int(number) - 1, int(of))


def shards_folder() -> Path:
    return Path(load_runtime().shards or Path(os.environ.get("DVC_ROOT", ".")) / ".shards")


if __name__ == "__main__":
    main()
