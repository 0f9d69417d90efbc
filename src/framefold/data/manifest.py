"""frames.manifest: one line per video of a data root, so that stages depend on one file and not on a million.

    # framefold frames.manifest 1 zip_frames
    labeled<TAB>10000000000000000001<TAB>21034<TAB>5f3c0b7e9a112233<TAB>5

split, id, bytes of the zip, digest of the zip's directory (member names, sizes, CRCs), usable frames; sorted by split,
then by id as text. A zip that cannot be read has the digest `unreadable` and 0 frames: it is a reject of
`extract_frames`, and never stops anything here.
Layout `zip_feats`: one archive per split; bytes, digest and frames are those of the video's member.
The file's time of modification is when its scan began (earlier_scan.py).
"""

import hashlib
import logging
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from framefold.data import feature_archives, zip_directory
from framefold.data.earlier_scan import EarlierScan, clock_of, scan_time, set_scan_time
from framefold.data.ids import MAX_DIGITS, is_id
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
FACTS = np.dtype([("size", "<u8"), ("digest", "<u8"), ("frames", "<i4")])
pack_record, pack_facts = struct.Struct("<20sQQi").pack, struct.Struct("<QQi").pack
Found = tuple[int, int, int]  # bytes, digest (0: unreadable), usable frames


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


def write_manifest(root: Path | str, full: bool = False) -> int:
    """Index the frames below `root` into `<root>/frames.manifest`; returns the number of videos.

    What certainly did not change since the manifest that stands there is taken over from it, unless `full`. Memory: 80
    bytes per video of the split at hand. Files that are not named `<id>.zip` in the folder of their last three digits
    are not videos; they are counted in the log.
    """
    layout, path, total = layout_of(root), Path(root) / NAME, 0
    with write_aside(path) as aside:
        with open(aside, "w", encoding="ascii") as file:
            began = clock_of(file)
            file.write(f"{HEADER} {layout}\n")
            for split in sorted(SPLITS):
                earlier = None if full else earlier_scan(root, layout, split, began)
                total += write_split(file, split, scan_split(Path(root), layout, split, earlier))
        set_scan_time(aside, began)
    if total == 0:
        path.unlink(missing_ok=True)
        raise UserError(f"{root}: no videos below {layout}/ (labeled, unlabeled, test); check the folder")
    return total


def write_split(file: TextIO, split: str, records: np.ndarray) -> int:
    """Append a line per record, sorted by id; returns how many."""
    order = np.argsort(records["id"], kind="stable")
    for start in range(0, len(order), 4096):
        for video_id, size, digest, frames in records[order[start : start + 4096]].tolist():
            file.write(f"{split}\t{video_id.decode('ascii')}\t{size}\t{format_digest(digest)}\t{frames}\n")
    return len(records)


def earlier_scan(root: Path | str, layout: str, split: str, now: int) -> EarlierScan | None:
    """What the manifest that stands there knows of a split; None when there is none, or none that can be believed."""
    path = Path(root) / NAME
    if not path.is_file():
        return None
    try:
        known, began = read_layout(root) == layout and SplitManifest(root, split), scan_time(path, now)
    except UserError as error:
        log.info("manifest %s: everything is read, the earlier manifest is of no use (%s)", split, error)
        return None
    return EarlierScan(known, began).within(Path(root) / layout) if known and began is not None else None


def scan_split(root: Path, layout: str, split: str, earlier: EarlierScan | None) -> np.ndarray:
    """All videos of one split as RECORDs, in no order."""
    progress = Progress(f"manifest {split}", total=None, unit="videos")
    packed, opened, unreadable = bytearray(), 0, 0
    for video_id, found, is_new in (scan_frame_zips if layout == "zip_frames" else scan_feature_zip)(
        root, split, earlier
    ):
        packed += pack_record(video_id.encode("ascii"), *found)
        opened += is_new
        unreadable += found[1] == 0
        progress.add(1, {"opened": str(opened), "kept": str(progress.count + 1 - opened)})
    if progress.count:
        progress.close(opened=str(opened), kept=str(progress.count - opened), unreadable=str(unreadable))
    return np.frombuffer(packed, RECORD)


def scan_frame_zips(root: Path, split: str, earlier: EarlierScan | None) -> Iterator[tuple[str, Found, bool]]:
    """(id, what is in it, whether it was opened) of every `<last 3 digits>/<id>.zip`, folder by folder."""
    folder, strangers = root / "zip_frames" / split, 0
    earlier = earlier.within(folder) if earlier and folder.is_dir() else None
    for shelf in sorted(os.listdir(folder)) if folder.is_dir() else []:
        if not (folder / shelf).is_dir():
            strangers += 1
            continue
        earlier_here = earlier.within(folder / shelf) if earlier else None
        with os.scandir(folder / shelf) as files:
            for file in files:
                video_id = file.name.removesuffix(".zip")
                if video_id == file.name or not is_id(video_id) or video_id[-3:] != shelf:
                    strangers += 1
                    continue
                known = earlier_here.find_zip(video_id, file) if earlier_here else None
                yield video_id, known or inspect_zip(file.path), known is None
    if strangers:
        log.info("manifest: %d files below %s are not <last 3 digits>/<id>.zip: left out", strangers, folder)


def inspect_zip(path: str) -> Found:
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


def scan_feature_zip(root: Path, split: str, earlier: EarlierScan | None) -> Iterator[tuple[str, Found, bool]]:
    """(id, what is in it, whether it was read) of every `<id>.npy`; digest 0 when it is not float16 [n, dim]."""
    path = feature_archives.archive_path(root, split)
    if not path.is_file():
        return
    if earlier and earlier.has_archive(path):
        yield from ((video_id, found, False) for video_id, found in earlier.manifest.iterate_facts())
        return
    with open(path, "rb") as data:
        for video_id, member in feature_archives.iterate_archive(path):
            frames = feature_archives.count_frames(data, member)
            yield video_id, (member.size, 0 if frames is None else digest_of([member]), frames or 0), True


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
    """The entries of one split as sorted arrays, 40 bytes a video.

    >>> manifest = SplitManifest(root, "labeled")
    >>> manifest.find("10000000000000000001")  # ManifestEntry, or None
    """

    def __init__(self, root: Path | str, split: str):
        self.split = split
        path, ids, facts, last = Path(root) / NAME, bytearray(), bytearray(), ""
        for entry in iterate(root):
            if entry.split != split:
                continue
            if not is_id(entry.id) or entry.id <= last:
                raise UserError(f"{path}: ids are not in order; refresh it with `framefold manifest {root}`")
            last = entry.id
            ids += entry.id.encode("ascii").ljust(MAX_DIGITS, b"\0")
            try:
                facts += pack_facts(entry.size, parse_digest(entry.digest), entry.frames)
            except (ValueError, struct.error):
                raise UserError(
                    f"{path}: broken line of {entry.id}; refresh it with `framefold manifest {root}`"
                ) from None
        self.ids, self.facts = np.frombuffer(ids, f"S{MAX_DIGITS}"), np.frombuffer(facts, FACTS)

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, video_id: str) -> ManifestEntry | None:
        found = self.find_facts(video_id)
        return found and ManifestEntry(self.split, video_id, found[0], format_digest(found[1]), found[2])

    def find_facts(self, video_id: str) -> Found | None:
        key = video_id.encode("ascii", errors="replace")
        row = int(np.searchsorted(self.ids, key))
        if row == len(self.ids) or self.ids[row] != key:
            return None
        facts: Found = self.facts[row].item()
        return facts

    def iterate_facts(self) -> Iterator[tuple[str, Found]]:
        for start in range(0, len(self), 4096):
            part = slice(start, start + 4096)
            for video_id, found in zip(self.ids[part].tolist(), self.facts[part].tolist(), strict=True):
                yield video_id.decode("ascii"), found


def parse_digest(text: str) -> int:
    return 0 if text == UNREADABLE else int(text, 16)
