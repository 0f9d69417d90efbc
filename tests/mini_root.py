"""A data root of a handful of videos, for tests that run the real stages on it."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from framefold.data.manifest import write_manifest, zip_path

PARAMS = Path(__file__).parent.parent / "params.yaml"


def jpeg(seed: int, size: int = 64) -> bytes:
    """A random picture with shapes of every size, unlike any of another seed."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((size, size, 3), np.float32)
    for cells, weight in ((4, 0.4), (8, 0.3), (16, 0.2), (32, 0.1)):
        layer = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        picture += weight * np.asarray(layer.resize((size, size), Image.Resampling.BICUBIC), np.float32)
    buffer = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def words(seed: int, length: int = 24) -> str:
    """Random Chinese characters, unlike any of another seed."""
    return "".join(chr(0x4E00 + int(c)) for c in np.random.default_rng(seed).integers(0, 5000, length))


class MiniRoot:
    """Builds the official layout video by video; `finish` writes annotations, manifest and a params.yaml beside it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.root = folder, folder / "raw"
        self.records: dict[str, list[Any]] = {"labeled": [], "unlabeled": [], "test": []}
        self.count = 0
        monkeypatch.chdir(folder)

    def add(self, split: str, category: str = "0100", frames: list[bytes] | None = None, **fields: Any) -> str:
        """One video with a title and two frames of its own unless told otherwise; returns its id."""
        self.count += 1
        number = self.count
        record: dict[str, Any] = {
            "id": str(18_000_000_000_000_000_000 + number),
            "title": words(number),
            "asr": "",
            "ocr": [],
        }
        record |= {"category_id": category} if split == "labeled" else {}
        record |= fields
        self.records[split].append(record)
        self.write_zip(split, record["id"], [jpeg(2 * number), jpeg(2 * number + 1)] if frames is None else frames)
        return str(record["id"])

    def fill(self, labeled: int = 20, others: int = 4) -> "MiniRoot":
        for number in range(labeled):
            self.add("labeled", f"0{number % 2}00")
        for _ in range(others):
            self.add("unlabeled")
            self.add("test")
        return self

    def write_zip(self, split: str, video_id: str, frames: list[bytes]) -> Path:
        return self.write_members(split, video_id, {f"{number:04d}.jpg": data for number, data in enumerate(frames)})

    def write_members(self, split: str, video_id: str, members: dict[str, bytes]) -> Path:
        path = zip_path(self.root, split, video_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(zipfile.ZipInfo(name, (2022, 7, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
        return path

    def finish(self, **changes: Any) -> "MiniRoot":
        """`changes`: params by dotted key with `__` for the dot, e.g. ingest__max_rejected=0.5."""
        (self.root / "annotations").mkdir(parents=True, exist_ok=True)
        for split, records in self.records.items():
            self.write_annotations(split, json.dumps(records, ensure_ascii=False).encode())
        write_manifest(self.root)
        params = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
        for key, value in ({"data__root": "raw", "ingest__max_rejected": 0.5} | changes).items():
            *groups, name = key.split("__")
            target = params
            for group in groups:
                target = target[group]
            target[name] = value
        Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        return self

    def write_annotations(self, split: str, content: bytes) -> None:
        (self.root / "annotations" / f"{split}.json").write_bytes(content)
