"""AVA Actions: people in films, boxed once a second, with what they do.

A clip is an annotated second with two seconds on either side, cut from the whole film, so that 64 frames at 30 fps around the middle are
in it. Tables are known by their official names, whatever the version in them. Those of AVA-Kinetics (seven columns, no person, fractions
of seconds) are read beside them: their times count in the original video, so a Kinetics clip with its interval in its name is taken as it
is, under its Kinetics id, with the boxes of the moments in it. Seconds the release excludes from its evaluation are planned and dropped.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stmae_data.errors import Reason, SourceError
from stmae_data.files import sha256_file
from stmae_data.manifest import Manifest, is_remote
from stmae_data.records import Annotation, SourceRow, kinetics_clip_id
from stmae_data.sources.archives import expand
from stmae_data.sources.join import Tally
from stmae_data.sources.listing import (
    VIDEO_SUFFIXES,
    Entry,
    SourceListing,
    matching_split,
    source_uri,
    walk,
    wanted_splits,
)
from stmae_data.sources.tables import SECONDS_AROUND, read_text

__all__ = ["read_action_list", "rows"]

_TABLE = re.compile(
    r"(ava_kinetics|ava|kinetics)_(?P<split>train|val|test)_(?P<what>excluded_timestamps|predicted_boxes|v\d+[\d.]*).*\.(csv|txt)"
)
_INCLUDED = re.compile(r"ava_included_timestamps.*\.txt")
_ACTIONS = re.compile(r"ava_action_list.*\.pbtxt")
_EVERY_SECOND = range(902, 1799)
_EXCLUDED = (Reason.FILTERED, "the release excludes this second")
_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_PIECE = re.compile(r"(?P<id>[A-Za-z0-9_-]{11})_(?P<start>\d{6})_(?P<end>\d{6})")


@dataclass(slots=True)
class _Tables:
    """All annotation tables of the release: boxes and where they come from, by split and annotated moment in milliseconds."""

    boxes: dict[str, dict[tuple[str, int], list[dict[str, Any]]]] = field(default_factory=lambda: defaultdict(dict))
    digests: dict[str, str] = field(default_factory=dict)
    excluded: dict[tuple[str, int], str] = field(default_factory=dict)
    """Moments the release takes out of its evaluation, and the split of the list that says so."""
    videos: dict[str, list[str]] = field(default_factory=dict)
    seconds: Sequence[int] = _EVERY_SECOND
    actions: dict[int, str] = field(default_factory=dict)


def rows(
    manifest: Manifest,
    *,
    roots: Sequence[Path],
    annotations: Sequence[Path] = (),
    splits: Sequence[str] | None = None,
    classes: Collection[str] | None = None,
) -> SourceListing:
    """List the annotated seconds of the films found below the roots.

    Raises:
        SourceError: a root or table is missing or unreadable, or classes are asked for: they belong to boxes here, not to clips.
    """
    if classes:
        raise SourceError(
            f"In {manifest.name} boxes have classes and clips have none, so --classes means nothing here; leave it out."
        )
    if manifest.files != "originals":
        raise SourceError(f'{manifest.name} is cut from whole films; its manifest has to say files = "originals".')
    listing = SourceListing()
    entries = list(expand(walk(roots, skipped=listing.skipped), listing))
    tables = _read_tables(manifest, entries, annotations)
    wanted = wanted_splits(manifest, splits)
    tally = Tally()
    moments: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for split, found in tables.boxes.items():
        for video, moment_ms in found:
            moments[video].append((split, moment_ms))
            if split in wanted:
                tally.annotated[(split, None)] += 1
    left_out: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for (video, moment_ms), split in sorted(tables.excluded.items()):
        left_out[video].append((split, moment_ms))
    seen: set[tuple[str, str, int]] = set()
    for entry in entries:
        stem = entry.name.partition(".")[0]
        piece = _PIECE.fullmatch(stem)
        video = piece["id"] if piece is not None else stem
        if not _ID.fullmatch(video) or entry.suffix not in VIDEO_SUFFIXES:
            listing.skipped["other_file"] += 1
            continue
        told = [each for each in sorted(moments.get(video, ())) if each[0] in wanted]
        clips: list[_Clip] = [_film(video, *each) for each in told]
        if piece is not None:
            clips = [_piece(video, int(piece["start"]) * 1000, int(piece["end"]) * 1000, told)]
        rows = [_row(manifest, entry, tables, clip) for clip in clips if clip.moments]
        if piece is None:
            rows += [
                dataclasses.replace(_row(manifest, entry, tables, _film(video, *each)), problem=_EXCLUDED)
                for each in left_out.get(video, ())
                if each[0] in wanted
            ]
        if not rows and video not in moments:
            listing.skipped["not_annotated"] += 1
        elif not rows:
            listing.skipped["not_annotated" if piece is not None else "other_split"] += 1
        listing.rows += rows
        for split, moment_ms in (each for clip in clips for each in clip.moments):
            tally.present[(split, None)] += (video, split, moment_ms) not in seen
            seen.add((video, split, moment_ms))
    listing.reconciliation = tally.lines(manifest)
    return listing


@dataclass(frozen=True, slots=True)
class _Clip:
    """What one sample is to hold: a stretch of a video and the annotated moments (split, milliseconds) in it."""

    clip_id: str
    video: str
    start_ms: int
    end_ms: int
    is_cut: bool
    moments: tuple[tuple[str, int], ...]


def _film(video: str, split: str, moment_ms: int) -> _Clip:
    """An annotated moment, to be cut from the whole film."""
    start, end = max(0, moment_ms - 1000 * SECONDS_AROUND), moment_ms + 1000 * SECONDS_AROUND
    return _Clip(f"ava_{kinetics_clip_id(video, start, end)}", video, start, end, True, ((split, moment_ms),))


def _piece(video: str, start_ms: int, end_ms: int, moments: Sequence[tuple[str, int]]) -> _Clip:
    """A Kinetics clip as it is, with the moments in it."""
    inside = tuple(each for each in moments if start_ms <= each[1] < end_ms)
    return _Clip(kinetics_clip_id(video, start_ms, end_ms), video, start_ms, end_ms, False, inside)


def _row(manifest: Manifest, entry: Entry, tables: _Tables, clip: _Clip) -> SourceRow:
    by_split: dict[str, list[dict[str, Any]]] = {}
    for split, moment_ms in clip.moments:
        by_split.setdefault(split, []).extend(tables.boxes[split].get((clip.video, moment_ms), ()))
    actions = {box["action_id"] for boxes in by_split.values() for box in boxes}
    names = sorted({tables.actions[action] for action in actions if action in tables.actions})
    return SourceRow(
        split=next(iter(by_split)),
        source_uri=source_uri(entry.path),
        source_member=entry.member,
        clip_id=clip.clip_id,
        platform="youtube",
        platform_id=clip.video,
        start_ms=clip.start_ms,
        end_ms=clip.end_ms,
        is_cut=clip.is_cut,
        source_bytes=entry.size if entry.kind == "file" else None,
        annotations=tuple(
            Annotation(
                dataset=manifest.name,
                release=manifest.release,
                split=split,
                boxes=tuple(boxes),
                annotation_sha256=tables.digests.get(split),
            )
            for split, boxes in by_split.items()
        ),
        problem=entry.problem,
        web={"title": ", ".join(names)} if names else {},
    )


def read_action_list(path: Path) -> dict[int, str]:
    """Action names by id, from the list of all 80 (`label {… label_id: 1}`) or of the 60 evaluated (`item {… id: 1}`).

    Raises:
        SourceError: the file cannot be read or names no action.
    """
    found = {}
    for block in re.findall(r"\{([^{}]*)\}", read_text(path)):
        name = re.search(r'name:\s*"([^"]*)"', block)
        number = re.search(r"\b(?:label_)?id:\s*(\d+)", block)
        if name and number:
            found[int(number[1])] = name[1]
    if not found:
        raise SourceError(f'{path} names no action; wanted blocks with name: "…" and id: … as in the official list.')
    return found


def _read_tables(manifest: Manifest, entries: Iterable[Entry], given: Sequence[Path]) -> _Tables:
    tables = _Tables()
    named = [Path(each) for split in manifest.splits for each in split.annotations if not is_remote(each)]
    below = (entry.file for entry in entries)
    is_asked = bool(given or named)
    # Detections come last: they belong to seconds the official tables already name.
    for path in sorted((*given,) or named or [each for each in below if each is not None], key=_is_prediction):
        match = _TABLE.fullmatch(path.name)
        if match is not None:
            split = matching_split(manifest, match["split"])
            if split is not None:
                _read_one(tables, path, split, match["what"])
        elif _INCLUDED.fullmatch(path.name):
            tables.seconds = [int(line) for line in read_text(path).split() if line.isdecimal()]
        elif _ACTIONS.fullmatch(path.name):
            # The list of 60 is part of the list of 80.
            tables.actions = {**read_action_list(path), **tables.actions}
        elif is_asked:
            raise SourceError(
                f"{path} is no table of {manifest.name} by its name; wanted names like ava_train_v2.2.csv."
            )
    for split, videos in tables.videos.items():
        for video in videos:
            for second in tables.seconds:
                tables.boxes[split].setdefault((video, 1000 * second), [])
    for found in tables.boxes.values():
        for key in tables.excluded.keys() & found.keys():
            del found[key]
    if not any(tables.boxes.values()):
        raise SourceError(
            f"{manifest.name} has no tables here; unpack its annotation zip below --from, or name ava_train_v2.2.csv with --annotations."
        )
    return tables


def _is_prediction(path: Path) -> tuple[bool, str]:
    return "predicted" in path.name, str(path)


def _read_one(tables: _Tables, path: Path, split: str, what: str) -> None:
    if path.suffix == ".txt":
        tables.videos[split] = read_text(path).split()
        return
    is_prediction = what == "predicted_boxes"
    if not is_prediction and what != "excluded_timestamps":
        tables.digests[split] = sha256_file(path)
    for video, moment_ms, values in _lines(path):
        key = (video, moment_ms)
        if what == "excluded_timestamps":
            tables.excluded.setdefault(key, split)
        elif not is_prediction:
            found = tables.boxes[split].setdefault(key, [])
            if values:
                found.append(_box(path, moment_ms, values, is_prediction=False))
        elif key in tables.boxes[split]:
            tables.boxes[split][key].append(_box(path, moment_ms, values, is_prediction=True))


def _lines(path: Path) -> Iterator[tuple[str, int, list[str]]]:
    for number, cells in enumerate(csv.reader(read_text(path).splitlines()), start=1):
        if not cells:
            continue
        try:
            video, moment_ms = cells[0], round(1000 * float(cells[1]))
        except (IndexError, ValueError, OverflowError):
            video, moment_ms = "", 0
        if not _ID.fullmatch(video) or not 0 <= moment_ms < 10**10 or len(cells) not in (2, 7, 8):
            raise SourceError(
                f"Row {number} of {path} is {','.join(cells)[:80]!r}; wanted video id, second and, for a box, x1, y1, x2, y2, action, person."
            )
        yield video, moment_ms, cells[2:]


def _box(path: Path, moment_ms: int, values: Sequence[str], *, is_prediction: bool) -> dict[str, Any]:
    """One box: corners in shares of width and height. The last cell is a person, or the score of a detection; seven columns lack it."""
    try:
        x1, y1, x2, y2 = (float(value) for value in values[:4])
        action = int(values[4]) if values[4].strip() else None
        last = float(values[5]) if len(values) > 5 and values[5].strip() else None
    except ValueError:
        x1 = y1 = x2 = y2 = -1.0
        action = last = None
    if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1):
        raise SourceError(
            f"{path} has a box {','.join(values)!r} at second {moment_ms / 1000:g}; wanted 0 <= x1 <= x2 <= 1 and the same for y."
        )
    return {
        "second": moment_ms / 1000,
        "x1": x1,
        "y1": y1,
        "x2": x2,
        "y2": y2,
        "action_id": action,
        "person_id": None if is_prediction or last is None else int(last),
        "score": last if is_prediction else None,
    }
