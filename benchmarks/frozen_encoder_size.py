"""What the input size of `encoders.frozen` buys: python benchmarks/frozen_encoder_size.py 96 128 160

Run it in a project under the profile `scratch`, after `dvc repro split`. Prints, per size, the out-of-fold score of a
linear probe on the frame features of the labelled videos (never the holdout, never test) and the CPU time it took.
"""

import argparse
import logging
import resource
from pathlib import Path

from framefold.data.videos import open_labeled, read_categories
from framefold.errors import command
from framefold.evaluation.frames_probe import FramesProbe
from framefold.models.vision import FrameEncoder, load_vision_encoder
from framefold.params.base import load
from framefold.params.data import DataParams
from framefold.params.encoders import EncoderParams
from framefold.runtime import load_runtime


def cpu_seconds() -> float:
    return sum(resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", type=int, nargs="+", help="pixels")
    params, runtime = load(EncoderParams, "encoders.frozen"), load_runtime()
    runtime.prepare_cpu()
    root, workers = Path(load(DataParams).root), runtime.workers
    probe = FramesProbe(root, open_labeled(), read_categories(), workers, params.batch_size, lambda: None)
    for size in parser.parse_args().sizes:
        encoder = load_vision_encoder(params.model_copy(update={"image_size": size}))
        start = cpu_seconds()
        scores = probe.score(FrameEncoder(encoder, runtime.torch_device()), encoder.preprocess, encoder.dim)
        logging.info("%d pixels: %s, %.0f CPU s", size, scores, cpu_seconds() - start)


if __name__ == "__main__":
    main()
