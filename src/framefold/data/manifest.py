"""frames.manifest: one line per video of a data root, so that stages depend on one file and not on a million.

    # framefold frames.manifest 1 zip_frames
    labeled<TAB>10000000000000000001<TAB>21034<TAB>5f3c0b7e9a112233<TAB>5

split, id, bytes of the zip, digest of the zip's directory (member names, sizes, CRCs), usable frames; sorted by split,
then by id as text. A zip that cannot be read has the digest `unreadable` and 0 frames: it is a reject of
`extract_frames`, and never stops anything here.
Layout `zip_feats`: one archive per split; bytes, digest and frames are those of the video's member.
"""

import hashlib
import logging
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from framefold.data import feature_archives, zip_directory
from framefold.data.ids import is_id
from framefold.data.zip_directory import Member, ZipError
from framefold.errors import UserError
from framefold.progress import Progress
from framefold.storage import write_aside

log = logging.getLogger(__name__)

SPLITS = ("labeled", "unlabeled", "test")
LAYOUTS = ("zip_frames", "zip_feats")
NAME = "frames.manifest"
HEADER = "# framefold frames.manifest 1"
UNREADABLE = "unreadable"
MAX_MEMBERS = 10_000  # of one video's zip; the official data has at most 32 frames
MAX_FRAME_BYTES = 16 << 20  # unpacked; a 4K JPEG frame has about 4 MiB
MAX_RATIO = 200  # unpacked to packed, of members above RATIO_FROM bytes: JPEG does not compress, bombs do
RATIO_FROM = 1 << 20
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
RECORD = np.dtype([("id", "S20"), ("size", "<u8"), ("digest", "<u8"), ("frames", "<i4")])  # 40 bytes a video
pack_record = struct.Struct("<20sQQi").pack


class ManifestEntry(NamedTuple):
    """One video. `digest` is 16 hex digits, or `unreadable`."""

    split: str
    id: str
    size: int
    digest: str
    frames: int


def layout_of(root: Path | str) -> str:
    """`zip_frames` or `zip_feats`, whichever folder stands in the data root."""
    for layout in LAYOUTS:
        if (Path(root) / layout).is_dir():
            return layout
    raise UserError(
        f"{root}: holds neither zip_frames/ nor zip_feats/; point data.root at a folder in the official layout"
    )


def zip_path(root: Path | str, split: str, video_id: str) -> Path:
    """`zip_frames/<split>/<last 3 digits>/<id>.zip`."""
    return Path(root) / "zip_frames" / split / video_id[-3:] / f"{video_id}.zip"


# Writing


def write_manifest(root: Path | str) -> int:
    """Index the frames below `root` into `<root>/frames.manifest`; returns the number of videos.

    Memory: 40 bytes per video of the split at hand, for sorting. Files that are not named `<id>.zip` in the folder of
    their last three digits are not videos; they are counted in the log.
    """
    layout = layout_of(root)
    total = 0
    with write_aside(Path(root) / NAME) as aside, open(aside, "w", encoding="ascii") as file:
        file.write(f"{HEADER} {layout}\n")
        for split in sorted(SPLITS):
            records = scan_split(Path(root) / layout, layout, split)
            for video_id, size, digest, frames in iterate_records(records):
                file.write(f"{split}\t{video_id}\t{size}\t{format_digest(digest)}\t{frames}\n")
            total += len(records)
    if total == 0:
        (Path(root) / NAME).unlink(missing_ok=True)
        raise UserError(f"{root}: no videos below {layout}/ (labeled, unlabeled, test); check the folder")
    return total


def scan_split(folder: Path, layout: str, split: str) -> np.ndarray:
    """All videos of one split as RECORDs sorted by id."""
    progress = Progress(f"manifest {split}", total=None, unit="videos")
    packed = bytearray()
    found = (
        scan_frame_zips(folder / split)
        if layout == "zip_frames"
        else scan_feature_zip(feature_archives.archive_path(folder.parent, split))
    )
    unreadable = 0
    for video_id, size, digest, frames in found:
        packed += pack_record(video_id.encode("ascii"), size, digest, frames)
        unreadable += digest == 0
        progress.add(1)
    if progress.count:
        progress.close(unreadable=str(unreadable))
    records = np.frombuffer(packed, RECORD)
    return records[np.argsort(records["id"], kind="stable")]


def scan_frame_zips(folder: Path) -> Iterator[tuple[str, int, int, int]]:
    """(id, bytes, digest, frames) of every `<last 3 digits>/<id>.zip`, folder by folder."""
    strangers = 0
    for shelf in sorted(os.listdir(folder)) if folder.is_dir() else []:
        if not (folder / shelf).is_dir():
            strangers += 1
            continue
        for name in sorted(os.listdir(folder / shelf)):
            video_id = name.removesuffix(".zip")
            if video_id == name or not is_id(video_id) or video_id[-3:] != shelf:
                strangers += 1
                continue
            yield video_id, *inspect_zip(f"{folder}/{shelf}/{name}")
    if strangers:
        log.info("manifest: %d files below %s are not <last 3 digits>/<id>.zip: left out", strangers, folder)


def inspect_zip(path: str) -> tuple[int, int, int]:
    """(bytes, digest, usable frames) of one zip of frames; digest 0 when it cannot be read."""
    size = 0
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            members = list(zip_directory.read_members(file, MAX_MEMBERS))
        return size, digest_of(members), sum(is_frame(member) and not refusal(member) for member in members)
    except (OSError, ZipError):
        return size, 0, 0


def digest_of(members: Iterable[Member]) -> int:
    """64 bits of BLAKE2b over names, sizes and CRCs in directory order; never 0, which stands for unreadable."""
    digest = hashlib.blake2b(digest_size=8)
    for member in members:
        digest.update(b"%d %d %d " % (len(member.name), member.size, member.crc) + member.name)
    return int.from_bytes(digest.digest(), "little") or 1


def is_frame(member: Member) -> bool:
    """An image by its name; folders, hidden files and macOS's resource forks are not."""
    name = zip_directory.decode_name(member).replace("\\", "/")
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(IMAGE_SUFFIXES) and not base.startswith(".") and not name.startswith("__MACOSX/")


def refusal(member: Member) -> str:
    """Why a frame is refused before a byte of it is unpacked; empty when it is fine."""
    name = zip_directory.decode_name(member).replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":" or "\0" in name:
        return "path leaves the zip"
    if member.flags & zip_directory.ENCRYPTED:
        return "encrypted"
    if member.size > MAX_FRAME_BYTES:
        return f"declares {member.size} bytes, more than {MAX_FRAME_BYTES}"
    if member.size > RATIO_FROM and member.size > MAX_RATIO * max(member.compressed, 1):
        return f"unpacks to {member.size // max(member.compressed, 1)} times its size"
    return ""


def scan_feature_zip(path: Path) -> Iterator[tuple[str, int, int, int]]:
    """(id, bytes, digest, frames) of every `<id>.npy` in the archive; digest 0 when it is not float16 [n, dim]."""
    if not path.is_file():
        return
    with open(path, "rb") as data:
        for video_id, member in feature_archives.iterate_archive(path):
            frames = feature_archives.count_frames(data, member)
            yield video_id, member.size, 0 if frames is None else digest_of([member]), frames or 0


def iterate_records(records: np.ndarray) -> Iterator[tuple[str, int, int, int]]:
    for start in range(0, len(records), 4096):
        for video_id, size, digest, frames in records[start : start + 4096].tolist():
            yield video_id.decode("ascii"), size, digest, frames


def format_digest(digest: int) -> str:
    return f"{digest:016x}" if digest else UNREADABLE


# Reading


def read_layout(root: Path | str) -> str:
    """The layout that the manifest was written for. Raises UserError when there is none, or of another version."""
    path = Path(root) / NAME
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            header = file.readline().rstrip("\n")
    except OSError:
        raise UserError(f"{path}: missing; write it with `framefold manifest {root}`") from None
    version, _, layout = header.rpartition(" ")
    if version != HEADER or layout not in LAYOUTS:
        raise UserError(f"{path}: not a manifest of this version; refresh it with `framefold manifest {root}`")
    return layout


def iterate(root: Path | str) -> Iterator[ManifestEntry]:
    """Yield every entry in file order, holding one line at a time."""
    read_layout(root)
    path = Path(root) / NAME
    with open(path, encoding="ascii", errors="replace") as file:
        next(file)
        for number, line in enumerate(file, start=2):
            parts = line.rstrip("\n").split("\t")
            try:
                split, video_id, size, digest, frames = parts
                yield ManifestEntry(split, video_id, int(size), digest, int(frames))
            except ValueError:
                raise UserError(f"{path}:{number}: broken line; refresh it with `framefold manifest {root}`") from None


class SplitManifest:
    """The entries of one split as a sorted array, 40 bytes a video.

    >>> manifest = SplitManifest(root, "labeled")
    >>> manifest.find("10000000000000000001")  # ManifestEntry, or None
    """

    def __init__(self, root: Path | str, split: str):
        self.root, self.split = Path(root), split
        packed = bytearray()
        last = ""
        for entry in iterate(root):
            if entry.split != split:
                continue
            if not is_id(entry.id) or entry.id <= last:
                raise UserError(
                    f"{self.root / NAME}: ids are not in order; refresh it with `framefold manifest {root}`"
                )
            last = entry.id
            packed += pack_record(entry.id.encode("ascii"), entry.size, parse_digest(entry.digest), entry.frames)
        self.records = np.frombuffer(packed, RECORD)
        self.ids = np.ascontiguousarray(self.records["id"])

    def __len__(self) -> int:
        return len(self.records)

    def find(self, video_id: str) -> ManifestEntry | None:
        key = video_id.encode("ascii", errors="replace")
        row = int(np.searchsorted(self.ids, key))
        if row == len(self.ids) or self.ids[row] != key:
            return None
        _, size, digest, frames = self.records[row].tolist()
        return ManifestEntry(self.split, video_id, size, format_digest(digest), frames)


def parse_digest(text: str) -> int:
    return 0 if text == UNREADABLE else int(text, 16)
