"""Frozen values that travel between rooms, and the columns of the books they end in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from stmae_data.errors import Reason, UsageError

__all__ = [
    "KEY_PATTERN",
    "LEDGER_COLUMNS",
    "LEVELS",
    "PLAN_COLUMNS",
    "SAMPLE_FIELDS",
    "SCHEMA_VERSION",
    "Annotation",
    "ClipSpan",
    "Job",
    "MediaFacts",
    "SetRef",
    "SourceRow",
    "StoredFacts",
    "is_valid_key",
    "kinetics_clip_id",
    "make_row_id",
    "plan_key",
    "set_folder",
    "web_clip_id",
]

SCHEMA_VERSION = 1

_MAX_JOBS = 100_000

LEVELS = ("bytes", "stream", "id", "video", "overlap", "content")
"""Levels of sameness, from strictest to widest (FORMATS)."""

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,95}")
"""A key and its `.json` are the 100 bytes that a name in a tar may have."""

SAMPLE_FIELDS = (
    "clip_id",
    "dataset",
    "release",
    "split",
    "label",
    "label_index",
    "start_seconds",
    "end_seconds",
    "fps",
    "num_frames",
    "width_px",
    "height_px",
    "layout",
    "boxes",
    "source_sha256",
    "license",
    "text",
    "tags",
)
"""Fields of the sample json, every one in every sample, null when unknown (FORMATS)."""

_BOXES = "STRUCT(second DOUBLE, x1 DOUBLE, y1 DOUBLE, x2 DOUBLE, y2 DOUBLE, action_id INTEGER, person_id INTEGER, score DOUBLE)[]"
_ANNOTATIONS = (
    "STRUCT(dataset VARCHAR, release VARCHAR, split VARCHAR, label_raw VARCHAR, label_slug VARCHAR, label_index INTEGER, "
    f"template VARCHAR, placeholders VARCHAR[], boxes {_BOXES}, is_cc BOOLEAN, row_number BIGINT, annotation_sha256 VARCHAR)[]"
)

PLAN_COLUMNS: dict[str, str] = {
    "row_id": "VARCHAR",
    "split": "VARCHAR",
    "shard": "VARCHAR",
    "ordinal": "INTEGER",
    "plan_order": "BIGINT",
    "clip_id": "VARCHAR",
    "media_kind": "VARCHAR",
    "platform": "VARCHAR",
    "platform_id": "VARCHAR",
    "start_ms": "BIGINT",
    "end_ms": "BIGINT",
    "is_cut": "BOOLEAN",
    "parent_clip_id": "VARCHAR",
    "annotations": _ANNOTATIONS,
    "source_uri": "VARCHAR",
    "source_member": "VARCHAR",
    "source_bytes": "BIGINT",
    "source_sha256": "VARCHAR",
    "resolved_url": "VARCHAR",
    "final_ip": "VARCHAR",
    "fetched_at": "TIMESTAMP",
    "planned_reason": "VARCHAR",
    "planned_detail": "VARCHAR",
    "flags": "VARCHAR[]",
    "url": "VARCHAR",
    "title": "VARCHAR",
    "description": "VARCHAR",
    "uploader_id": "VARCHAR",
    "channel_id": "VARCHAR",
    "upload_date": "VARCHAR",
    "listed_duration_seconds": "DOUBLE",
    "age_limit": "INTEGER",
    "availability": "VARCHAR",
    "language": "VARCHAR",
    "view_count": "BIGINT",
    "like_count": "BIGINT",
    "info_sha256": "VARCHAR",
    "tags": "STRUCT(tag VARCHAR, origin VARCHAR)[]",
    "license": "VARCHAR",
    "license_origin": "VARCHAR",
    "is_redistributable": "BOOLEAN",
    "citation": "VARCHAR",
}
"""Everything known about a row before its bytes are decoded. `is_cut`: the file is the whole original, cut the span out;
`planned_reason`: the row is decided already (a link, an empty file, an honoured tombstone)."""

_MEASURED: dict[str, str] = {
    "stage": "VARCHAR",
    "attempts": "INTEGER",
    "retry_after_seconds": "DOUBLE",
    "outcome": "VARCHAR",
    "reason": "VARCHAR",
    "reason_detail": "VARCHAR",
    "duplicate_of": "VARCHAR",
    "decision_id": "VARCHAR",
    "source_offset": "BIGINT",
    "stream_sha256": "VARCHAR",
    "container": "VARCHAR",
    "video_codec": "VARCHAR",
    "pixel_format": "VARCHAR",
    "width_px": "INTEGER",
    "height_px": "INTEGER",
    "rotation_degrees": "INTEGER",
    "fps": "DOUBLE",
    "num_frames": "BIGINT",
    "duration_seconds": "DOUBLE",
    "start_pts_seconds": "DOUBLE",
    "has_audio": "BOOLEAN",
    "num_decode_errors": "INTEGER",
    "probe_level": "VARCHAR",
    "encode_mode": "VARCHAR",
    "stored_bytes": "BIGINT",
    "stored_sha256": "VARCHAR",
    "stored_width_px": "INTEGER",
    "stored_height_px": "INTEGER",
    "stored_fps": "DOUBLE",
    "stored_num_frames": "BIGINT",
    "stored_seconds": "DOUBLE",
    "keyframe_interval": "INTEGER",
    "decode_ms_per_clip": "DOUBLE",
    "json_offset": "BIGINT",
    "json_bytes": "BIGINT",
    "media_offset": "BIGINT",
    "media_bytes": "BIGINT",
    "signals": "MAP(VARCHAR, DOUBLE)",
    "ffmpeg_version": "VARCHAR",
    "stmae_version": "VARCHAR",
    "policy_version": "VARCHAR",
    "run_id": "VARCHAR",
}

LEDGER_COLUMNS: dict[str, str] = {
    **{name: kind for name, kind in PLAN_COLUMNS.items() if not name.startswith("planned_") and name != "is_cut"},
    **_MEASURED,
}
"""Columns of `meta/ledger/<shard>.parquet`, one row per planned clip (FACTS-inputs §4.1)."""


def is_valid_key(key: str) -> bool:
    """Whether `key` may name a sample: `[A-Za-z0-9_-]`, 1 to 95 characters."""
    return KEY_PATTERN.fullmatch(key) is not None


def kinetics_clip_id(platform_id: str, start_ms: int, end_ms: int) -> str:
    """The clip id of a timed piece of a video: whole seconds as users name the files, fractions in milliseconds."""
    if start_ms % 1000 == 0 and end_ms % 1000 == 0:
        return f"{platform_id}_{start_ms // 1000:06d}_{end_ms // 1000:06d}"
    return f"{platform_id}_{start_ms:09d}ms_{end_ms:09d}ms"


def web_clip_id(source_sha256: str, *, start_ms: int | None = None, end_ms: int | None = None) -> str:
    """The clip id of bytes that come without a well-formed id."""
    stem = f"web_{source_sha256[:32]}"
    return stem if start_ms is None else f"{stem}_{start_ms}_{end_ms}"


def make_row_id(
    split: str, source_uri: str, source_member: str | None, start_ms: int | None, end_ms: int | None
) -> str:
    """First 32 hex of sha256(split, source_uri, source_member, start_ms, end_ms), unique in a set."""
    parts = (split, source_uri, source_member, start_ms, end_ms)
    text = "\x00".join("" if part is None else str(part) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def plan_key(seed: int, clip_id: str) -> int:
    """Position in the nested order: 63 bits of sha256(seed, clip id). Any prefix of the order is a uniform subset."""
    return int.from_bytes(hashlib.sha256(f"{seed}\x00{clip_id}".encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, slots=True)
class ClipSpan:
    """A half-open stretch of a video: [start_ms, end_ms), in milliseconds of the original."""

    start_ms: int
    end_ms: int

    def __post_init__(self) -> None:
        if not 0 <= self.start_ms < self.end_ms:
            raise UsageError(f"A span of {self.start_ms} to {self.end_ms} ms is not one: wanted 0 <= start < end.")

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return (self.end_ms - self.start_ms) / 1000


@dataclass(frozen=True, slots=True)
class Annotation:
    """What one data set and split says about a clip."""

    dataset: str
    release: str
    split: str
    label_raw: str | None = None
    label_slug: str | None = None
    label_index: int | None = None
    template: str | None = None
    placeholders: tuple[str, ...] | None = None
    boxes: tuple[dict[str, Any], ...] | None = None
    is_cc: bool | None = None
    row_number: int | None = None
    annotation_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One clip as a source offers it, before any byte is decoded.

    `clip_id` is None where the bytes must name it. `start_ms`/`end_ms` are the interval in the original; `is_cut` says that
    the file is the whole original and the interval has to be cut out of it. `problem` decides the row at once.
    """

    split: str
    source_uri: str
    source_member: str | None = None
    clip_id: str | None = None
    media_kind: str = "video"
    platform: str = "file"
    platform_id: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    is_cut: bool = False
    source_bytes: int | None = None
    source_sha256: str | None = None
    annotations: tuple[Annotation, ...] = ()
    problem: tuple[Reason, str] | None = None
    flags: tuple[str, ...] = ()
    web: dict[str, Any] = field(default_factory=dict)
    """Web columns of the ledger by name: url title description uploader_id … tags license."""


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """A source video as its decoded frames show it, or, at `probe_level` header, as its header and index say; unknown is None, and so
    is the duration of a picture."""

    container: str | None
    video_codec: str | None
    pixel_format: str | None
    width_px: int
    height_px: int
    rotation_degrees: int | None
    fps: float | None
    num_frames: int
    duration_seconds: float | None
    start_pts_seconds: float | None
    has_audio: bool | None
    num_decode_errors: int | None
    probe_level: str = "full"


@dataclass(frozen=True, slots=True)
class StoredFacts:
    """The stored member as its own packets show it."""

    encode_mode: str
    stored_bytes: int
    stored_sha256: str
    stored_width_px: int
    stored_height_px: int
    stored_fps: float | None
    stored_num_frames: int
    stored_seconds: float | None
    keyframe_interval: int | None


_REF = re.compile(
    r"(?P<set>[A-Za-z0-9][A-Za-z0-9._-]*)(:(?P<split>[a-z]+))?(/(?P<selection>[A-Za-z0-9._-]+))?(@(?P<weight>[0-9.]+))?"
)


@dataclass(frozen=True, slots=True)
class Job:
    """Job `number` of `count`, counted from 1: several processes share one piece of work. 1/1 is the whole."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `2/4`.

        Raises:
            UsageError: it is no job.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
        if match is None or not 1 <= int(match[1]) <= int(match[2]) <= _MAX_JOBS:
            raise UsageError(f"{text!r} is not a job; wanted k/n with 1 <= k <= n <= {_MAX_JOBS}, as in 2/4.")
        return cls(int(match[1]), int(match[2]))

    def share(self, names: Sequence[str]) -> list[str]:
        """This job's part of a list: the parts of all n jobs are disjoint and make up the whole."""
        first, last = self.range_of(len(names))
        return list(names[first:last])

    def range_of(self, size: int) -> tuple[int, int]:
        """Where this job's share of `size` things begins and ends."""
        return (self.number - 1) * size // self.count, self.number * size // self.count

    @property
    def suffix(self) -> str:
        """What tells the files of this job from those of others; empty for the whole."""
        return "" if self.count == 1 else f"-{self.number}-of-{self.count}"

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True, slots=True)
class SetRef:
    """A reference to data: SET[:SPLIT][/SELECTION][@WEIGHT]."""

    set_name: str
    split: str = "train"
    selection: str | None = None
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str, *, default_split: str = "train") -> Self:
        """Read `k700:train/clean@0.5`.

        Raises:
            UsageError: the text is not a set reference.
        """
        match = _REF.fullmatch(text)
        try:
            weight = float(match["weight"] or 1.0) if match else 0.0
        except ValueError:
            weight = 0.0
        if not match or weight <= 0:
            raise UsageError(
                f"{text!r} is not a set reference; wanted SET[:SPLIT][/SELECTION][@WEIGHT], as in k700:train/clean@0.5."
            )
        return cls(match["set"], match["split"] or default_split, match["selection"], weight)

    def __str__(self) -> str:
        text = f"{self.set_name}:{self.split}"
        text += f"/{self.selection}" if self.selection else ""
        return text + (f"@{self.weight:g}" if self.weight != 1.0 else "")


def set_folder(workspace: Path, name: str) -> Path:
    """Where the set `name` of a workspace stands."""
    return workspace / "sets" / name
