"""`ingest`: what is accepted, and what counts as the same video twice."""

from typing import ClassVar

from pydantic import Field, PositiveInt

from framefold.params.base import Group


class DuplicateParams(Group):
    text_similarity: float = Field(gt=0, le=1)  # Jaccard of character shingles from which text alone makes a duplicate
    min_shingles: PositiveInt  # shorter texts never decide alone
    frame_distance: int = Field(ge=0, le=64)  # bits of 64 that both frame hashes may differ by, to decide alone
    weak_text_similarity: float = Field(gt=0, le=1)  # with this much text in common ...
    weak_frame_distance: int = Field(ge=0, le=64)  # ... one frame hash this close is enough
    max_bucket: PositiveInt  # more candidates than this share one hash: boilerplate, not evidence


class IngestParams(Group):
    key: ClassVar[str] = "ingest"
    max_rejected: float = Field(ge=0, le=1)  # share of records; above it the run fails
    max_text: PositiveInt  # characters kept of each of title, asr, ocr
    duplicates: DuplicateParams
