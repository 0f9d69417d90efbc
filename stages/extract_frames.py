"""Frame features of one split under one encoder: python -m stages.extract_frames --encoder small --split labeled"""

import argparse
from pathlib import Path

from framefold.data.extraction import extract, open_source
from framefold.data.features import FeatureWriter
from framefold.data.images import read_encoder_config
from framefold.data.manifest import NAME
from framefold.errors import command
from framefold.params.base import load
from framefold.params.data import DataParams
from framefold.params.encoders import EncoderParams
from framefold.scratch import Scratch, stage_fingerprint


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--split", required=True)
    args = parser.parse_args()
    params = load(EncoderParams, f"encoders.{args.encoder}")
    root, encoder = Path(load(DataParams).root), Path("models/clip") / args.encoder
    samples, config = Path("data/samples") / f"{args.split}.parquet", read_encoder_config(encoder)
    sampling = {"frames": "uniform", "max_frames": params.max_frames, "batch_size": params.batch_size}
    stamp = stage_fingerprint(sampling, [root / NAME, samples, encoder], ["framefold.models.vision"])
    with Scratch(f"extract_frames@{args.encoder}-{args.split}", stamp) as scratch:
        with open_source(root, args.split, encoder, params.max_frames, params.batch_size, scratch.guard) as source:
            writer = FeatureWriter(scratch.folder, config["dim"])
            manifest = {"encoder": args.encoder, "split": args.split, "sampling": sampling, **config}
            target = Path("data/features") / args.encoder / args.split
            extract(source, samples, writer, target, manifest, scratch.guard)
        scratch.finish()


if __name__ == "__main__":
    main()
