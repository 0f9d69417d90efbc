"""What a saved student reads: features from the store, or pixels for a vision tower of its own."""

from pathlib import Path

from framefold.data.images import Preprocess
from framefold.data.videos import Videos, open_videos
from framefold.storage import read_json

WHOLE = 1.0  # no crop: nothing is augmented in evaluation


def own_preprocess(folder: Path) -> Preprocess | None:
    """How the student saved in `folder` wants its frames as pixels; None: it reads features."""
    vision = read_json(folder / "config.json")["vision"]
    return None if vision is None else Preprocess.from_json(vision["preprocess"])


def open_videos_for(folder: Path, split: str, encoder: str, root: Path) -> Videos:
    """The videos of a split for the student in `folder`; frames come from `root` if they are pixels."""
    videos, preprocess = open_videos(split, encoder), own_preprocess(folder)
    if preprocess is None:
        return videos
    from framefold.data.pixels import with_pixels

    return with_pixels(videos, root, split, preprocess, WHOLE)
