"""One tar against its line of `set.json` and its ledger, in one read: every byte is hashed while the members are walked."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from stmae_data.errors import SetError
from stmae_data.records import SAMPLE_FIELDS, is_valid_key
from stmae_data.shards import TarMember, iterate_tar
from stmae_data.verify.damage import DamageCode, Findings

__all__ = ["MEDIA_EXTENSIONS", "check_shard"]

MEDIA_EXTENSIONS = frozenset({"mp4", "jpg"})
_PIECE_BYTES = 1 << 20
_JSON_CAP_BYTES = 16 << 20
_END_BYTES = 1024


@dataclass(frozen=True, slots=True)
class _Read:
    """A member as read: its data for json, its sha256 for media."""

    member: TarMember
    key: str
    extension: str
    data: bytes | None
    sha256: str


def check_shard(
    path: Path,
    line: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]] | None,
    findings: Findings,
    advance: Callable[[int], None],
) -> set[str]:
    """Compare a tar with its `set.json` line and, where its ledger could be read, with the `written` rows in stored order.

    Returns:
        The media extensions in the shard.
    """
    name = path.name
    try:
        with path.open("rb") as stream:
            members = _walk(stream, name, findings)
            reads, sha256 = _read_all(stream, members, advance)
    except OSError as error:
        findings.add(DamageCode.UNREADABLE, name, f"cannot be read: {error.strerror or error}")
        return set()
    if sha256 != line["sha256"]:
        findings.add(DamageCode.SHARD_SHA256, name, f"sha256 is {sha256}, set.json says {line['sha256']}")
    samples = _pair(reads, name, findings)
    if len(samples) != line["samples"]:
        findings.add(DamageCode.SAMPLE_COUNT, name, f"holds {len(samples)} samples, set.json says {line['samples']}")
    extensions = {media.extension for _, media in samples}
    if len(extensions) > 1:
        findings.add(
            DamageCode.MEMBERS_UNEVEN, name, f"samples end in {', '.join(sorted(extensions))}; wanted one kind"
        )
    parsed = [(description, media, _parse(description, name, findings)) for description, media in samples]
    if rows is not None:
        _against_ledger(parsed, rows, name, findings)
    return extensions


def _walk(stream: IO[bytes], name: str, findings: Findings) -> list[TarMember]:
    """The members up to the first damage of the structure."""
    members: list[TarMember] = []
    try:
        members.extend(_collect(iterate_tar(stream, name=name), members))
    except SetError as error:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - _END_BYTES))
        is_ended = stream.read() == b"\0" * _END_BYTES
        findings.add(DamageCode.SHARD_STRUCTURE if is_ended else DamageCode.SHARD_CUT, name, str(error))
    except (ValueError, OverflowError) as error:
        findings.add(DamageCode.SHARD_STRUCTURE, name, f"a member header cannot be read ({error})")
    return members


def _collect(found: Iterator[TarMember], members: list[TarMember]) -> list[TarMember]:
    """Keep what was walked before an error ends the walk."""
    for member in found:
        members.append(member)
    return []


def _read_all(
    stream: IO[bytes], members: Sequence[TarMember], advance: Callable[[int], None]
) -> tuple[list[_Read], str]:
    """Read the file once, front to back: the sha256 of all of it, the data of small json members, the sha256 of the others."""
    whole = hashlib.sha256()
    buffer = memoryview(bytearray(_PIECE_BYTES))
    stream.seek(0)

    def take(count: int | None, sink: Callable[[memoryview], None] | None) -> None:
        left = count
        while left is None or left > 0:
            room = buffer if left is None else buffer[: min(left, _PIECE_BYTES)]
            got = stream.readinto(room)  # type: ignore[attr-defined]
            if not got:
                return
            whole.update(buffer[:got])
            if sink is not None:
                sink(buffer[:got])
            if left is not None:
                left -= got
            advance(got)

    reads = []
    for member in members:
        take(member.offset - stream.tell(), None)
        key, _, extension = member.name.partition(".")
        if extension == "json" and member.size <= _JSON_CAP_BYTES:
            kept = bytearray()
            take(member.size, kept.extend)
            reads.append(_Read(member, key, extension, bytes(kept), ""))
        else:
            digest = hashlib.sha256()
            take(member.size, digest.update)
            reads.append(_Read(member, key, extension, None, digest.hexdigest()))
    take(None, None)
    return reads, whole.hexdigest()


def _pair(reads: Sequence[_Read], name: str, findings: Findings) -> list[tuple[_Read, _Read]]:
    """Samples as (json, media); members that do not pair are told."""
    for read in reads:
        if not is_valid_key(read.key) or (read.extension != "json" and read.extension not in MEDIA_EXTENSIONS):
            findings.add(
                DamageCode.KEY_INVALID,
                name,
                f"member {read.member.name!r:.120} is not <key>.json, <key>.mp4 or <key>.jpg with a key of [A-Za-z0-9_-]",
            )
    samples: list[tuple[_Read, _Read]] = []
    position = 0
    while position < len(reads):
        first = reads[position]
        second = reads[position + 1] if position + 1 < len(reads) else None
        if second is not None and first.extension == "json" and second.extension != "json" and first.key == second.key:
            samples.append((first, second))
            position += 2
        else:
            findings.add(
                DamageCode.MEMBER_ORDER, name, f"member {first.member.name!r:.120} is not a json followed by its media"
            )
            position += 1
    for key, count in Counter(media.key for _, media in samples).items():
        if count > 1:
            findings.add(DamageCode.KEY_REPEATED, name, f"key {key!r:.120} stands {count} times")
    return samples


def _parse(read: _Read, name: str, findings: Findings) -> dict[str, Any] | None:
    """The sample's json, when it is an object with exactly the fields of a sample."""
    value: Any = None
    if read.data is not None:
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(read.data)
    if not isinstance(value, dict):
        findings.add(DamageCode.SAMPLE_JSON, name, f"{read.member.name!r:.120} is not a JSON object")
        return None
    if set(value) != set(SAMPLE_FIELDS):
        differing = sorted(set(value) ^ set(SAMPLE_FIELDS))
        findings.add(
            DamageCode.SAMPLE_FIELDS, name, f"{read.member.name!r:.120} lacks or adds {', '.join(differing)!r:.120}"
        )
    return value


def _against_ledger(
    samples: Sequence[tuple[_Read, _Read, dict[str, Any] | None]],
    rows: Sequence[Mapping[str, Any]],
    name: str,
    findings: Findings,
) -> None:
    in_tar = Counter(media.key for _, media, _ in samples)
    in_ledger = Counter(str(row["clip_id"]) for row in rows)
    if in_tar != in_ledger:
        differing = sorted(((in_tar - in_ledger) + (in_ledger - in_tar)).elements())
        findings.add(
            DamageCode.KEYS_DIFFER,
            name,
            f"{len(differing)} keys stand in only one of tar and ledger, {differing[0]!r:.120} first",
        )
    by_key = {row["clip_id"]: row for row in rows}
    for ordinal, (description, media, value) in enumerate(samples):
        row = by_key.get(media.key)
        if row is None:
            continue
        if media.sha256 != row["stored_sha256"] or media.member.size != row["stored_bytes"]:
            findings.add(
                DamageCode.STORED_SHA256,
                name,
                f"{media.member.name!r:.120} has sha256 {media.sha256} and {media.member.size} bytes, its ledger row says "
                f"{row['stored_sha256']} and {row['stored_bytes']}",
            )
        found = (ordinal, description.member.offset, description.member.size, media.member.offset, media.member.size)
        wanted = tuple(
            row[column] for column in ("ordinal", "json_offset", "json_bytes", "media_offset", "media_bytes")
        )
        if found != wanted:
            findings.add(
                DamageCode.PLACE_WRONG,
                name,
                f"{media.key} stands at (ordinal, json, bytes, media, bytes) {found}, its ledger row says {wanted}",
            )
        if value is not None:
            for field, theirs in _disagreements(value, row):
                findings.add(
                    DamageCode.SAMPLE_DISAGREES,
                    name,
                    f"{media.key}.json says {field} {value.get(field)!r:.80}, its ledger row says {theirs!r:.80}",
                )


def _disagreements(value: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Fields of a sample's json that its ledger row contradicts."""
    seconds = {side: None if row[f"{side}_ms"] is None else row[f"{side}_ms"] / 1000 for side in ("start", "end")}
    wanted = {
        "clip_id": row["clip_id"],
        "split": row["split"],
        "start_seconds": seconds["start"],
        "end_seconds": seconds["end"],
        "fps": row["stored_fps"],
        "num_frames": row["stored_num_frames"],
        "width_px": row["stored_width_px"],
        "height_px": row["stored_height_px"],
        "source_sha256": row["source_sha256"],
        "license": row["license"],
    }
    for field, theirs in wanted.items():
        if field in value and value[field] != theirs:
            yield field, theirs
    labels = row["labels"] or []
    if value.get("label") is not None and value["label"] not in labels:
        yield "label", labels
