"""What the page tells, read from the books: values the template can print, texts of strangers already cut."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stmae_data import files
from stmae_data.catalog import SetBooks
from stmae_data.errors import Reason, SetError
from stmae_data.records import LEVELS, is_valid_key
from stmae_data.report import charts
from stmae_data.report.text import cut, human_count
from stmae_data.shards import read_range, store_url

__all__ = [
    "ClassFacts",
    "Evidence",
    "Finding",
    "Group",
    "Thumbnail",
    "class_facts",
    "evidence",
    "findings",
    "flag_lines",
    "groups",
    "measured_histograms",
    "reason_lines",
    "signal_histograms",
    "tag_counts",
    "thumbnails",
]

_MEANINGS = {
    Reason.EMPTY: "the file has no bytes",
    Reason.NOT_MEDIA: "the bytes are not a video or picture",
    Reason.TRUNCATED: "the file was cut short",
    Reason.CORRUPT_HEADER: "the header cannot be true",
    Reason.BOMB: "it would unfold to far too many pixels",
    Reason.BAD_TIMING: "time stamps make no sense",
    Reason.NO_VIDEO: "there is no video stream",
    Reason.DECODE_ERROR: "too many packets do not decode",
    Reason.UNSAFE_PLAYLIST: "it is a list that points elsewhere",
    Reason.SPECIAL_FILE: "it is not a regular file",
    Reason.SYMLINK: "it is a link",
    Reason.CHANGED: "it changed while it was read",
    Reason.TIMEOUT: "decoding took too long",
    Reason.OOM: "decoding took too much memory",
    Reason.DECODER_CRASH: "the decoder crashed",
    Reason.INTERNAL_ERROR: "an unforeseen error of ours",
    Reason.HASH_MISMATCH: "the bytes are not the expected ones",
    Reason.TOO_SHORT: "fewer than 16 frames",
    Reason.TOO_LARGE: "over a size limit",
    Reason.DURATION_MISMATCH: "not as long as announced",
    Reason.DUPLICATE: "the same clip is kept elsewhere",
    Reason.LEAK: "it is also in an evaluation set",
    Reason.FILTERED: "a rule filtered it out",
    Reason.LICENSE_BLOCK: "its licence forbids it",
    Reason.OPTED_OUT: "its owner opted out",
    Reason.REMOVED: "it was taken down",
}


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """One picture of the grid, named by label, title or file; `jpeg_base64` is empty when the clip could not be read."""

    clip_id: str
    split: str
    caption: str
    seconds: float | None
    jpeg_base64: str


@dataclass(frozen=True, slots=True)
class ClassFacts:
    """Classes of the written clips; `lines` when they are few, else the curve with both ends of the list."""

    number: int
    unlabelled: int
    lines: tuple[charts.BarLine, ...]
    curve: charts.Histogram | None
    smallest: tuple[charts.BarLine, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """Decisions of one kind: what was found, how often, on both sides."""

    reason: str
    level: str
    verb: str
    other_set: str
    clips: int
    others: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """One decision with what it rests on."""

    clip_id: str
    verb: str
    level: str
    other: str
    measure: str
    policy: str


@dataclass(frozen=True, slots=True)
class Group:
    """One near-duplicate group; members as (clip id, whether it is kept)."""

    group_id: str
    kind: str
    size: int
    members: tuple[tuple[str, bool], ...]


def reason_lines(counts: dict[str, int]) -> tuple[charts.BarLine, ...]:
    """Why clips were not written, most frequent first."""
    known = {str(reason): reason for reason in Reason}
    kinds = {code: known[code].outcome for code in counts if code in known}
    notes = {code: _MEANINGS.get(known[code], "") for code in counts if code in known}
    return charts.bar_lines(counts.items(), kinds=kinds, notes=notes)


def flag_lines(flags: dict[str, int]) -> tuple[charts.BarLine, ...]:
    """Flags on written clips."""
    return charts.bar_lines((cut(flag, 60), count) for flag, count in flags.items())


def class_facts(connection: Any, *, few: int = 40, ends: int = 10) -> ClassFacts:
    """Clips per label over all splits."""
    rows = connection.execute(
        """SELECT label_raw, count(DISTINCT row_id) AS n FROM annotation WHERE outcome = 'written' AND label_raw IS NOT NULL
           GROUP BY 1 ORDER BY n DESC, 1"""
    ).fetchall()
    unlabelled = connection.execute(
        "SELECT count(*) FROM written WHERE len(list_filter(coalesce(annotations, []), lambda a: a.label_raw IS NOT NULL)) = 0"
    ).fetchone()[0]
    lines = charts.bar_lines((cut(label, 80), count) for label, count in rows)
    if len(lines) <= few:
        return ClassFacts(len(rows), unlabelled, lines, None, ())
    curve = charts.ranked("clips per class", [count for _, count in rows])
    return ClassFacts(len(rows), unlabelled, lines[:ends], curve, lines[-ends:])


def measured_histograms(connection: Any) -> tuple[charts.Histogram, ...]:
    """Durations, sizes and rates of the written clips, source and stored."""
    wanted = (
        ("Duration", "coalesce(stored_seconds, duration_seconds)", "s"),
        ("Source short side", "least(width_px, height_px)", "px"),
        ("Stored short side", "least(stored_width_px, stored_height_px)", "px"),
        ("Source frame rate", "fps", "fps"),
        ("Aspect ratio, width to height", "width_px / nullif(height_px, 0)", ""),
        ("Stored size", "stored_bytes / 1000.0", "kB"),
    )
    found = []
    for title, expression, unit in wanted:
        columns = connection.execute(
            f"SELECT CAST({expression} AS DOUBLE) AS value FROM written WHERE {expression} IS NOT NULL"
        ).fetchnumpy()
        made = charts.histogram(title, np.ma.filled(columns["value"], np.nan).astype(np.float64), unit=unit)
        if made is not None:
            found.append(made)
    return tuple(found)


def signal_histograms(connection: Any, *, limit: int = 24) -> tuple[charts.Histogram, ...]:
    """One histogram per measured signal of the written clips, by name."""
    query = "SELECT name, value FROM signal WHERE row_id IN (SELECT row_id FROM written) AND value IS NOT NULL"
    names = connection.execute(f"SELECT DISTINCT name FROM ({query}) ORDER BY 1 LIMIT ?", [limit]).fetchall()
    found = []
    for (name,) in names:
        columns = connection.execute(f"SELECT value FROM ({query}) WHERE name = ?", [name]).fetchnumpy()
        made = charts.histogram(cut(name, 60).replace("_", " "), np.asarray(columns["value"], dtype=np.float64))
        if made is not None:
            found.append(made)
    return tuple(found)


def reconciliation(
    connection: Any, book: SetBooks, *, most: int = 30
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the annotations promised against what was there and what became of it: a line per split, and the classes that lost most.

    Every line holds split, label, annotated, present, missing, replaced, unannotated and failed; a split's line has no label.
    """
    path = book.folder / "meta" / "reconciliation.parquet"
    if not path.is_file():
        return [], []
    failed = {
        (split, label): count
        for split, label, count in connection.execute(
            "SELECT split, annotations[1].label_raw, count(*) FROM clip WHERE outcome = 'failed' GROUP BY ALL"
        ).fetchall()
    }
    lines = [
        {
            "replaced": 0,
            **line,
            "label": cut(line["label"] or "", 80),
            "failed": failed.get((line["split"], line["label"]), 0),
        }
        for line in files.read_table(path)
    ]
    splits: dict[str, dict[str, Any]] = {}
    for line in lines:
        total = splits.setdefault(line["split"], {"split": line["split"], "label": ""})
        for key in ("annotated", "present", "missing", "replaced", "unannotated", "failed"):
            total[key] = total.get(key, 0) + line[key]
    lost = [line for line in lines if line["missing"] or line["failed"]]
    lost.sort(key=lambda line: (-line["missing"] - line["failed"], line["split"], line["label"]))
    return list(splits.values()), lost[:most]


def tag_counts(connection: Any, *, limit: int = 40) -> tuple[tuple[str, int], ...]:
    """The most frequent tags of written clips."""
    rows = connection.execute(
        """SELECT tag, count(DISTINCT row_id) AS n FROM tag WHERE row_id IN (SELECT row_id FROM written) AND tag IS NOT NULL
           GROUP BY 1 ORDER BY n DESC, 1 LIMIT ?""",
        [limit],
    ).fetchall()
    return tuple((cut(tag, 40), count) for tag, count in rows)


def findings(connection: Any) -> tuple[Finding, ...]:
    """Decisions that are not `keep`, by reason, level and other set; strictest level first."""
    rows = connection.execute(
        """SELECT coalesce(reason, ''), coalesce(level, ''), coalesce(verb, ''), coalesce(other_set, set_name),
                  count(DISTINCT clip_id), count(DISTINCT other_clip_id)
           FROM decision WHERE verb IS DISTINCT FROM 'keep' GROUP BY ALL"""
    ).fetchall()
    rows.sort(key=lambda row: (_level_rank(row[1]), row))
    return tuple(
        Finding(cut(reason, 40), cut(level, 20), cut(verb, 20), cut(other, 80), clips, others)
        for reason, level, verb, other, clips, others in rows
    )


def evidence(connection: Any, *, limit: int = 20) -> tuple[Evidence, ...]:
    """The first decisions of every level, with what they rest on."""
    rows = connection.execute(
        """SELECT clip_id, verb, level, other_set, other_clip_id, distance_bits, overlap_ms, threshold, policy_version, detail
           FROM decision WHERE verb IS DISTINCT FROM 'keep'
           QUALIFY row_number() OVER (PARTITION BY level ORDER BY clip_id, other_set, other_clip_id) <= ?
           ORDER BY ALL""",
        [limit],
    ).fetchall()
    rows.sort(key=lambda row: (_level_rank(row[2] or ""), str(row[0]), str(row[4])))
    return tuple(
        Evidence(
            clip_id=cut(row[0] or "", 80),
            verb=cut(row[1] or "", 20),
            level=cut(row[2] or "", 20),
            other=cut(" ".join(each for each in (row[3], row[4]) if each), 120),
            measure=cut(_measure(row[5], row[6], row[7], row[9]), 120),
            policy=cut(row[8] or "", 40),
        )
        for row in rows
    )


def _measure(distance_bits: float | None, overlap_ms: int | None, threshold: float | None, detail: str | None) -> str:
    words = []
    if distance_bits is not None:
        words.append(
            f"{human_count(distance_bits)} bits apart" + (f", allowed {human_count(threshold)}" if threshold else "")
        )
    if overlap_ms:
        words.append(f"{overlap_ms / 1000:g} s shared")
    return "; ".join(words) or (detail or "")


def _level_rank(level: str) -> int:
    return LEVELS.index(level) if level in LEVELS else len(LEVELS)


def groups(connection: Any, *, limit: int = 24, members: int = 8) -> tuple[int, tuple[Group, ...]]:
    """How many groups there are, and the largest of them."""
    number = connection.execute("SELECT count(DISTINCT (group_id, kind)) FROM group_member").fetchone()[0]
    rows = connection.execute(
        """SELECT group_id, kind, count(*) AS n, list((clip_id, coalesce(is_keeper, false)) ORDER BY is_keeper DESC, clip_id)
           FROM group_member GROUP BY ALL ORDER BY n DESC, group_id, kind LIMIT ?""",
        [limit],
    ).fetchall()
    return number, tuple(
        Group(
            cut(group_id, 40),
            cut(kind or "", 20),
            size,
            tuple((cut(clip_id, 80), bool(is_keeper)) for clip_id, is_keeper in each[:members]),
        )
        for group_id, kind, size, each in rows
    )


def thumbnails(connection: Any, book: SetBooks, *, count: int, width_px: int) -> tuple[Thumbnail, ...]:
    """Pictures of the written clips with the smallest hash of their id: a fair sample, the same every time; none of a set on a store."""
    if store_url(book.folder) is not None:
        return ()
    rows = connection.execute(
        """SELECT clip_id, split, shard, media_offset, media_bytes, stored_seconds,
                  coalesce(list_filter(list_transform(annotations, lambda a: a.label_raw), lambda x: x IS NOT NULL)[1],
                           title, parse_filename(coalesce(source_member, source_uri)), '') AS caption
           FROM written ORDER BY sha256(clip_id), clip_id LIMIT ?""",
        [count],
    ).fetchall()
    return tuple(_thumbnail(book.folder, row, width_px) for row in sorted(rows, key=_by_hash))


def _by_hash(row: Sequence[Any]) -> str:
    return hashlib.sha256(str(row[0]).encode()).hexdigest()


def _thumbnail(folder: Path, row: Sequence[Any], width_px: int) -> Thumbnail:
    from stmae_data import frames

    clip_id, split, shard, offset, size, seconds, caption = row
    jpeg = b""
    # The names come out of a ledger: only a shard's own name may become a path.
    if is_valid_key(shard or ""):
        try:
            descriptor = os.open(folder / f"{shard}.tar", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if 0 < size <= os.fstat(descriptor).st_size:
                    media = read_range(descriptor, offset, size, name=f"{shard}.tar")
                    jpeg = frames.thumbnail(media, width_px=width_px)
            finally:
                os.close(descriptor)
        except (SetError, OSError):
            jpeg = b""  # the page says "cannot be read" in its place; verify tells why
    return Thumbnail(
        clip_id=cut(clip_id, 80),
        split=cut(split, 20),
        caption=cut(caption, 80),
        seconds=seconds,
        jpeg_base64=base64.b64encode(jpeg).decode(),
    )
