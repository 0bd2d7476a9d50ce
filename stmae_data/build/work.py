"""One planned shard, from its rows to its committed ledger: the unit of work. Runs in a worker process."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stmae_data import __version__, files, fingerprint, media
from stmae_data.build.plan import open_bytes
from stmae_data.build.removed import Tombstones, read_tombstones
from stmae_data.encode import EncodedClip, Encoding, encode_clip, ffmpeg_version
from stmae_data.encode.kept import header_reader, keep_clip
from stmae_data.encode.picture import encode_picture
from stmae_data.engines import Tick
from stmae_data.errors import ClipRejected, Reason, StmaeDataError
from stmae_data.limits import Servant
from stmae_data.records import LEDGER_COLUMNS, ClipSpan, web_clip_id
from stmae_data.shards import Sample, commit_ledger, commit_shard, fingerprint_path, sample_json

__all__ = ["build_shard"]

_FLAGGED_SECONDS = 1.0
"""A clip whose measured duration is further from its annotation is flagged; releases have some that begin late or end early."""


def build_shard(task: dict[str, Any], tick: Tick) -> dict[str, Any]:
    """Write the tar, the fingerprints and the ledger of one planned shard, in that order; the ledger is the commit.

    Args:
        task: folder and name of the shard, table of its plan, encoding, short_side_px, dataset, release, run_id, max_duration_error_seconds,
            probe_level.
        tick: told of every clip that is decided.

    Returns:
        {"name", "written", "internal_errors"}.
    """
    folder, name = Path(task["folder"]), str(task["name"])
    plan = folder / "meta" / str(task["plan"])
    rows = files.read_table(plan, "SELECT * FROM book WHERE shard = ? ORDER BY ordinal", [name])
    tombstones = read_tombstones(folder)
    encoding = Encoding(task["encoding"], task["short_side_px"], task["probe_level"])
    ledger: list[dict[str, Any]] = []
    written: list[dict[str, Any]] = []
    fingerprints: list[tuple[str, fingerprint.Fingerprints]] = []

    def samples(reader: Servant | None) -> Iterator[Sample]:
        for row in rows:
            entry = _start_entry(row, task)
            ledger.append(entry)
            last = written[-1] if written else None
            problem = tombstones.problem_of_id(row["row_id"], row["clip_id"])
            if row["planned_reason"] is not None:
                problem = (Reason(row["planned_reason"]), row["planned_detail"] or "")
            if problem is not None:
                _reject(entry, *problem, stage="plan")
                if problem[0] is Reason.DUPLICATE:
                    entry["duplicate_of"] = row["clip_id"]
            elif last is not None and row["clip_id"] is not None and last["clip_id"] == row["clip_id"]:
                _reject(entry, Reason.DUPLICATE, "the same clip stands in this set already", stage="plan")
                entry["duplicate_of"] = last["clip_id"]
            else:
                clip = _encode(row, entry, encoding, reader, tombstones, task.get("max_duration_error_seconds"))
                if clip is not None:
                    entry |= {"outcome": "written", "stage": "store"}
                    written.append(entry)
                    fingerprints.append(
                        (row["clip_id"], fingerprint.fingerprint_clip(clip.hash_frames, clip.hash_times_ms))
                    )
                    yield Sample(row["clip_id"], _describe(entry, row, task, encoding), clip.media, clip.extension)
            tick(1)

    with contextlib.nullcontext() if encoding.decodes else header_reader() as reader:
        placements, tar_sha256, _ = commit_shard(folder / f"{name}.tar", samples(reader))
    for entry, place in zip(written, placements, strict=True):
        entry |= {
            "ordinal": place.ordinal,
            "json_offset": place.json_offset,
            "json_bytes": place.json_bytes,
            "media_offset": place.media_offset,
            "media_bytes": place.media_bytes,
        }
    fingerprint.commit_fingerprints(fingerprint_path(folder, name), fingerprints)
    commit_ledger(folder, name, ledger, tar_sha256=tar_sha256)
    internal = sum(entry["reason"] == Reason.INTERNAL_ERROR for entry in ledger)
    return {"name": name, "written": len(written), "internal_errors": internal}


def _start_entry(row: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    """The ledger row as the plan knows it."""
    entry: dict[str, Any] = {name: row.get(name) for name in LEDGER_COLUMNS}
    return entry | {
        "ordinal": None,
        "outcome": None,
        "reason": None,
        "attempts": row.get("attempts") or 1,
        "ffmpeg_version": ffmpeg_version(),
        "stmae_version": __version__,
        "run_id": task["run_id"],
    }


def _reject(entry: dict[str, Any], reason: Reason, detail: str, *, stage: str) -> None:
    entry |= {"outcome": reason.outcome, "reason": str(reason), "reason_detail": detail[:200] or None, "stage": stage}


def _encode(
    row: dict[str, Any],
    entry: dict[str, Any],
    encoding: Encoding,
    reader: Servant | None,
    tombstones: Tombstones,
    most_error_seconds: float | None,
) -> EncodedClip | None:
    """Open, hash, probe and encode one clip; a clip that cannot be used leaves its reason in `entry`."""
    try:
        with open_bytes(row["source_uri"], row["source_member"]) as descriptor:
            before = os.fstat(descriptor)
            sha256 = media.hash_once(descriptor)
            entry |= {"source_bytes": before.st_size, "source_sha256": sha256}
            if row["source_sha256"] not in (None, sha256):
                was_hashed_here = row["clip_id"] == web_clip_id(
                    row["source_sha256"], start_ms=row["start_ms"], end_ms=row["end_ms"]
                )
                reason = Reason.CHANGED if was_hashed_here else Reason.HASH_MISMATCH
                raise ClipRejected(reason, "the bytes are not those that were planned")
            interval = {name: row[name] for name in ("is_cut", "start_ms", "end_ms")}
            if (gone := tombstones.problem_of_bytes(sha256, **interval)) is not None:
                raise ClipRejected(*gone)
            span = ClipSpan(row["start_ms"], row["end_ms"]) if row["is_cut"] else None
            if encoding.is_of_pictures:
                clip = encode_picture(descriptor, encoding=encoding)
            elif reader is not None:
                clip = keep_clip(descriptor, reader, sha256=sha256, encoding=encoding, span=span)
            else:
                header = media.probe(descriptor)
                clip = encode_clip(descriptor, header, encoding=encoding, span=span)
            after = os.fstat(descriptor)
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise ClipRejected(Reason.CHANGED, "the file changed while it was read")
    except ClipRejected as rejected:
        _reject(entry, rejected.reason, rejected.detail, stage="decode")
        return None
    except StmaeDataError:
        raise
    except Exception as error:  # an unforeseen fault is a row and a non-zero exit, never a lost clip
        _reject(entry, Reason.INTERNAL_ERROR, f"{uuid.uuid4().hex[:8]} {type(error).__name__}: {error}", stage="decode")
        return None
    off, told = _duration_error(row, clip)
    is_wrong = most_error_seconds is not None and off > most_error_seconds
    _record(entry, clip, is_stored=not is_wrong)
    if is_wrong:
        _reject(entry, Reason.DURATION_MISMATCH, told, stage="measure")
        return None
    if off > _FLAGGED_SECONDS:
        entry["flags"] = sorted({*entry["flags"], "duration_mismatch"})
    return clip


def _duration_error(row: dict[str, Any], clip: EncodedClip) -> tuple[float, str]:
    """Seconds between what the annotation says and what was measured, and that in words; 0 where there is no annotation."""
    if row["start_ms"] is None or clip.source.duration_seconds is None:
        return 0.0, ""
    annotated, measured = (row["end_ms"] - row["start_ms"]) / 1000, clip.source.duration_seconds
    return abs(measured - annotated), f"{measured:.2f} s measured, {annotated:.2f} s annotated"


def _record(entry: dict[str, Any], clip: EncodedClip, *, is_stored: bool) -> None:
    """Copy the measured facts into the ledger row, and those of what is stored."""
    for facts in (clip.source, clip.stored) if is_stored else (clip.source,):
        for name in type(facts).__dataclass_fields__:
            entry[name] = getattr(facts, name)
    entry["stream_sha256"] = clip.stream_sha256
    entry["signals"] = clip.signals
    entry["flags"] = sorted({*(entry["flags"] or ()), *clip.flags})


def _describe(entry: dict[str, Any], row: dict[str, Any], task: dict[str, Any], encoding: Encoding) -> bytes:
    """The sample's json: what a reader of the tar alone should know."""
    annotation = row["annotations"][0] if row["annotations"] else {}
    return sample_json(
        {
            "clip_id": row["clip_id"],
            "dataset": task["dataset"],
            "release": task["release"],
            "split": row["split"],
            "label": annotation.get("label_raw"),
            "label_index": annotation.get("label_index"),
            "start_seconds": None if row["start_ms"] is None else row["start_ms"] / 1000,
            "end_seconds": None if row["end_ms"] is None else row["end_ms"] / 1000,
            "fps": entry["stored_fps"],
            "num_frames": entry["stored_num_frames"],
            "width_px": entry["stored_width_px"],
            "height_px": entry["stored_height_px"],
            "layout": encoding.layout,
            "boxes": annotation.get("boxes"),
            "source_sha256": entry["source_sha256"],
            "license": row["license"],
            "text": row["title"],
            "tags": [tag["tag"] for tag in row["tags"]] if row["tags"] else None,
        }
    )
