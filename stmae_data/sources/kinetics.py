"""Kinetics as it lies on disks: annotation tables of every release joined to files in any folder layout.

A file is found by its name, `<id>_<start>_<end>.<ending>`; what the tables say of that piece becomes its annotations. Nothing a table
or a folder holds is lost silently: clips without a file and files without an annotation are counted by split and label.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stmae_data.errors import SourceError
from stmae_data.files import sha256_file
from stmae_data.manifest import Manifest, is_remote
from stmae_data.records import Annotation, SourceRow, kinetics_clip_id
from stmae_data.sources.archives import expand
from stmae_data.sources.join import Tally
from stmae_data.sources.labels import LabelBook
from stmae_data.sources.listing import (
    VIDEO_SUFFIXES,
    Entry,
    SourceListing,
    folder_split,
    matching_split,
    source_uri,
    split_in_name,
    walk,
    wanted_splits,
)
from stmae_data.sources.tables import TABLE_SUFFIXES, TableClip, read_table_clips

__all__ = ["ClipName", "ClipTables", "parse_clip_name", "rows"]

_PIECE = re.compile(r"(?P<id>[A-Za-z0-9_-]{1,64})_(?P<start>\d{6,9})_(?P<end>\d{6,9})")
_PIECE_MS = re.compile(r"(?P<id>[A-Za-z0-9_-]{1,64})_(?P<start>\d{9})ms_(?P<end>\d{9})ms")
_WHOLE = re.compile(r"[A-Za-z0-9_-]{11}")
_UNFINISHED = frozenset({"part", "ytdl", "temp", "tmp", "crdownload", "download"})
_TABLE_DEPTH = 3


@dataclass(frozen=True, slots=True)
class ClipName:
    """What a file name says: a YouTube id and, where it names a piece, its interval."""

    platform_id: str
    start_ms: int | None = None
    end_ms: int | None = None


def parse_clip_name(name: str) -> ClipName | None:
    """Read `<id>_<start>_<end>.<ending>` or `<id>.<ending>`; ids may hold and begin with `_` and `-`, so it is split from the right."""
    stem = name.partition(".")[0]
    for pattern, factor in ((_PIECE_MS, 1), (_PIECE, 1000)):
        if (match := pattern.fullmatch(stem)) and int(match["start"]) < int(match["end"]):
            return ClipName(match["id"], int(match["start"]) * factor, int(match["end"]) * factor)
    return ClipName(stem) if _WHOLE.fullmatch(stem) else None


_Key = tuple[str, int | None, int | None]


@dataclass(slots=True)
class ClipTables:
    """All annotation tables of one release, joined: which splits and labels every piece of a video has."""

    labels: LabelBook
    pieces: dict[_Key, tuple[Annotation, ...]] = field(default_factory=dict)
    intervals: dict[str, list[_Key]] = field(default_factory=lambda: defaultdict(list))

    def of(self, name: ClipName, *, split: str | None) -> list[_Key]:
        """The annotated pieces a file name may mean: its own interval, else all of its id, those of `split` first."""
        if name.start_ms is not None:
            exact: _Key = (name.platform_id, name.start_ms, name.end_ms)
            without_times: _Key = (name.platform_id, None, None)
            return [key for key in (exact, without_times) if key in self.pieces][:1]
        keys = self.intervals.get(name.platform_id, [])
        same = [key for key in keys if any(each.split == split for each in self.pieces[key])]
        return same or keys


@dataclass(frozen=True, slots=True)
class _Table:
    """One annotation table, read; `split` is where its rows belong when they do not say so."""

    path: Path
    split: str | None
    clips: list[TableClip]


def _read_table(path: Path, split: str | None) -> _Table:
    return _Table(path, split, read_table_clips(path, needs_times=True))


def _join_tables(manifest: Manifest, tables: Iterable[_Table]) -> ClipTables:
    clips: list[tuple[TableClip, str, str]] = []
    for table in tables:
        path, default, digest = table.path, table.split, sha256_file(table.path)
        for clip in table.clips:
            split = matching_split(manifest, clip.split) if clip.split else default
            split = split or default
            if split is None:
                known = ", ".join(each.name for each in manifest.splits)
                raise SourceError(
                    f"Row {clip.row_number} of {path} belongs to split {clip.split!r}, which {manifest.name} does not have ({known}); "
                    "add it to the `words` of a split in the manifest."
                )
            clips.append((clip, split, digest))
    book = LabelBook(manifest, ((clip.label, split) for clip, split, _ in clips))
    joined = ClipTables(book)
    for clip, split, digest in clips:
        key = (clip.platform_id, clip.start_ms, clip.end_ms)
        annotation = book.annotate(clip, split, digest)
        known_pieces = joined.pieces.get(key)
        if known_pieces is None:
            joined.pieces[key] = (annotation,)
            joined.intervals[clip.platform_id].append(key)
        elif not any(_says_the_same(each, annotation) for each in known_pieces):
            # A table without labels adds nothing to one with them, whichever was read first.
            kept = [each for each in known_pieces if each.split != split or each.label_slug is not None]
            joined.pieces[key] = (*kept, annotation)
    return joined


def _says_the_same(known: Annotation, new: Annotation) -> bool:
    return known.split == new.split and (new.label_slug is None or known.label_slug == new.label_slug)


def rows(
    manifest: Manifest,
    *,
    roots: Sequence[Path],
    annotations: Sequence[Path] = (),
    splits: Sequence[str] | None = None,
    classes: Collection[str] | None = None,
) -> SourceListing:
    """List the clips of a Kinetics release found below the roots.

    A clip belongs to the split its annotation names; an unannotated one to the split of the folder it stands in, without a label.

    Raises:
        SourceError: a root or table is missing or unreadable, or no file can be given a split.
    """
    listing = SourceListing()
    entries = list(expand(walk(roots, skipped=listing.skipped), listing))
    tables = _join_tables(manifest, _tables(manifest, entries, annotations, listing))
    return _Joiner(manifest, tables, listing, splits, classes).join(entries)


def _tables(
    manifest: Manifest, entries: Iterable[Entry], given: Sequence[Path], listing: SourceListing
) -> list[_Table]:
    """The tables asked for, else those the manifest names, else those that stand below the roots."""
    if given:
        return [_read_table(path, split_in_name(manifest, path.stem)) for path in given]
    named = [
        _read_table(Path(location), split.name)
        for split in manifest.splits
        for location in split.annotations
        if not is_remote(location)
    ]
    if named:
        return named
    found: list[_Table] = []
    for entry in entries:
        if entry.suffix not in TABLE_SUFFIXES or len(entry.folders) > _TABLE_DEPTH or (path := entry.file) is None:
            continue
        split = split_in_name(manifest, entry.name.partition(".")[0])
        if split is None:
            continue
        try:
            found.append(_read_table(path, split))
        except SourceError as error:
            listing.skipped["table_not_used"] += 1
            listing.notes.append(f"{entry.shown} was not used as an annotation table: {error}")
    return found


class _Joiner:
    """Files on one side, annotated pieces on the other."""

    def __init__(
        self,
        manifest: Manifest,
        tables: ClipTables,
        listing: SourceListing,
        splits: Sequence[str] | None,
        classes: Collection[str] | None,
    ) -> None:
        self.manifest, self.tables, self.listing = manifest, tables, listing
        self.splits = wanted_splits(manifest, splits)
        self.classes = tables.labels.wanted(classes)
        self.order = {split.name: at for at, split in enumerate(manifest.splits)}
        self.present: set[_Key] = set()
        self.tally = Tally()
        self.uses_folder_labels = not tables.pieces

    def join(self, entries: Iterable[Entry]) -> SourceListing:
        """Rows for the files, then the counts of both sides."""
        replaced = self._replaced(entries := list(entries))
        for entry in entries:
            for row in self._rows(entry, replaced):
                if row.split not in self.splits:
                    self.listing.skipped["other_split"] += 1
                elif self._is_wanted_class(row.annotations):
                    self.listing.rows.append(row)
        skipped = self.listing.skipped
        if not self.listing.rows and skipped["no_split"]:
            raise SourceError(
                f"{skipped['no_split']} files of {self.manifest.name} are in no annotation table and no folder names their split; "
                "give the tables with --annotations, or keep the files in folders called "
                f"{', '.join(split.name for split in self.manifest.splits)}."
            )
        self.listing.reconciliation = self._count()
        return self.listing

    def _replaced(self, entries: Iterable[Entry]) -> set[_Key]:
        """Pieces that stand in a folder of replacements: files of the same name elsewhere give way, as the release asks."""
        names = (parse_clip_name(each.name) for each in entries if _is_replacement(each) and each.problem is None)
        return {(name.platform_id, name.start_ms, name.end_ms) for name in names if name is not None}

    def _rows(self, entry: Entry, replaced: set[_Key]) -> Iterator[SourceRow]:
        skipped = self.listing.skipped
        if entry.kind == "folder_link":
            self.listing.notes.append(
                f"{entry.shown} links to a folder and is not followed; name that folder with --from."
            )
        if entry.suffix in _UNFINISHED:
            skipped["unfinished"] += 1
            return
        name = parse_clip_name(entry.name)
        is_piece = name is not None and name.start_ms is not None
        if entry.suffix in TABLE_SUFFIXES or not (
            is_piece or entry.suffix in VIDEO_SUFFIXES or entry.kind == "folder_link"
        ):
            skipped["other_file"] += 1
            return
        if (
            name is not None
            and not _is_replacement(entry)
            and (name.platform_id, name.start_ms, name.end_ms) in replaced
        ):
            skipped["replaced"] += 1
            return
        standing = folder_split(self.manifest, entry.folders)
        keys = self.tables.of(name, split=standing) if name is not None else []
        if name is not None and keys and (is_piece or len(keys) == 1 or self.manifest.files == "originals"):
            for key in keys:
                yield self._annotated(entry, name, key, standing)
        elif (row := self._unannotated(entry, name, standing)) is not None:
            yield row
        else:
            skipped["no_split"] += 1

    def _annotated(self, entry: Entry, name: ClipName, key: _Key, standing: str | None) -> SourceRow:
        self.present.add(key)
        found = self.tables.pieces[key]
        splits = sorted({each.split for each in found}, key=self.order.__getitem__)
        split = standing if standing in splits else splits[0]
        own = sorted(found, key=lambda each: (each.split != split, self.order[each.split]))
        self.tally.replaced[(split, own[0].label_raw)] += _is_replacement(entry)
        start, end = (name.start_ms, name.end_ms) if name.start_ms is not None else key[1:]
        is_cut = self.manifest.files == "originals" and name.start_ms is None and start is not None
        return self._row(entry, split, name.platform_id, start, end, tuple(own), is_cut=is_cut)

    def _unannotated(self, entry: Entry, name: ClipName | None, standing: str | None) -> SourceRow | None:
        only = self.manifest.splits[0].name if len(self.manifest.splits) == 1 else None
        split = standing or only
        if split is None:
            return None
        label = self.tables.labels.of_folder(entry.folders[-1]) if self.uses_folder_labels else None
        annotation = self.tables.labels.annotation(label, split)
        if split in self.splits and self._is_wanted_class([annotation]):
            self.tally.unannotated[(split, annotation.label_raw)] += 1
        # Without an interval the bytes have to name the clip.
        name = name or ClipName("")
        return self._row(entry, split, name.platform_id or None, name.start_ms, name.end_ms, (annotation,))

    def _row(
        self,
        entry: Entry,
        split: str,
        platform_id: str | None,
        start_ms: int | None,
        end_ms: int | None,
        annotations: tuple[Annotation, ...],
        *,
        is_cut: bool = False,
    ) -> SourceRow:
        has_id = platform_id is not None and start_ms is not None and end_ms is not None
        return SourceRow(
            split=split,
            source_uri=source_uri(entry.path),
            source_member=entry.member,
            clip_id=kinetics_clip_id(platform_id or "", start_ms or 0, end_ms or 0) if has_id else None,
            platform="youtube" if platform_id else "file",
            platform_id=platform_id,
            start_ms=start_ms,
            end_ms=end_ms,
            is_cut=is_cut,
            source_bytes=entry.size if entry.kind == "file" else None,
            annotations=annotations,
            problem=entry.problem,
        )

    def _is_wanted_class(self, annotations: Sequence[Annotation]) -> bool:
        return self.classes is None or any(each.label_slug in self.classes for each in annotations)

    def _count(self) -> list[dict[str, object]]:
        for key, found in self.tables.pieces.items():
            if not self._is_wanted_class(found):
                continue
            for split in {each.split for each in found} & self.splits:
                place = (split, next(each.label_raw for each in found if each.split == split))
                self.tally.annotated[place] += 1
                self.tally.present[place] += key in self.present
        return self.tally.lines(self.manifest)


def _is_replacement(entry: Entry) -> bool:
    return any(folder.casefold().startswith("replacement") for folder in entry.folders)
