"""Any folder of videos: every regular file is a clip, whatever its name, unless it plainly belongs to another file.

A file is a sidecar, and no clip, when its name ends in `.info.json`, or when it has one of the endings of `SIDECAR_SUFFIXES` and a
file beside it, of another ending, has the same stem (`a.mp4` and `a.json`) or is the rest of its name (`a.mp4` and `a.mp4.json`).
An archive is a file like any other, unless it is itself given as a root: then its members are the clips. Links, pipes, sockets and devices become rows that say so; nothing is followed and nothing but sidecars is opened.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from itertools import chain, groupby
from pathlib import Path

from stmae_data.errors import ClipRejected
from stmae_data.manifest import Manifest
from stmae_data.records import Annotation, SourceRow
from stmae_data.sources.archives import expand, is_archive, open_member
from stmae_data.sources.listing import Entry, SourceListing, entry_at, folder_split, source_uri, walk, wanted_splits
from stmae_data.sources.sidecar import MAX_SIDECAR_BYTES, Sidecar, parse_sidecar, read_sidecar

__all__ = ["SIDECAR_SUFFIXES", "rows"]

SIDECAR_SUFFIXES = frozenset({"json", "txt", "csv", "tsv", "description", "vtt", "srt", "jpg", "jpeg", "png", "webp"})
"""Metadata, texts, subtitles and thumbnails that downloaders put beside a video."""
_PICTURES = frozenset({"jpg", "jpeg", "png"})


def rows(manifest: Manifest, *, roots: Sequence[Path], splits: Sequence[str] | None = None) -> SourceListing:
    """List every file below the roots as a clip to be named by its bytes.

    With one split, all clips are in it; with several, the outermost folder that names a split decides. A file below several of the
    roots is one clip.

    Raises:
        SourceError: a root is missing or a folder cannot be listed.
    """
    listing = SourceListing()
    wanted = wanted_splits(manifest, splits)
    seen: set[bytes] = set()
    entries = chain.from_iterable(_entries(root, listing, seen) for root in sorted(roots, key=_turn))
    for _, group in groupby(entries, key=lambda each: (each.path.rpartition(b"/")[0], each.folders)):
        together = list(group)
        clips = _clips(together, own=_PICTURES if manifest.media_kind == "image" else frozenset())
        listing.skipped["sidecar"] += len(together) - len(clips)
        sidecars = {each.name: each for each in together if each.suffix == "json" and each.kind == "file"}
        for entry in clips:
            split = manifest.splits[0].name if len(manifest.splits) == 1 else folder_split(manifest, entry.folders)
            if split is None:
                listing.skipped["no_split"] += 1
            elif split not in wanted:
                listing.skipped["other_split"] += 1
            else:
                listing.rows.append(_row(manifest, entry, split, _sidecar(entry, sidecars)))
    if listing.skipped["no_split"]:
        names = ", ".join(each.name for each in manifest.splits)
        listing.notes.append(
            f"{listing.skipped['no_split']} files stand in no folder that names a split ({names}) and are left out."
        )
    listing.skipped = +listing.skipped  # drops the zeros
    return listing


def _turn(root: Path) -> int:
    """Which roots come first where a file lies below several: an archive is opened, and a file's neighbours are its sidecars."""
    entry = entry_at(Path(os.path.realpath(root)))
    return 1 if entry is None or root.is_dir() else 0 if is_archive(entry) else 2


def _entries(root: Path, listing: SourceListing, seen: set[bytes]) -> Iterable[Entry]:
    found = walk([root], skipped=listing.skipped, seen=seen)
    return expand(found, listing) if root.is_file() else found


def _clips(together: Iterable[Entry], *, own: Collection[str]) -> list[Entry]:
    """Entries of one folder without the sidecars among them; endings of `own` are clips, whatever else they could be."""
    together = list(together)
    owners = [each.name for each in together if each.suffix not in SIDECAR_SUFFIXES or each.suffix in own]
    stems = {*owners, *(_stem(name) for name in owners)}
    return [each for each in together if each.suffix in own or not _is_sidecar(each, stems)]


def _is_sidecar(entry: Entry, stems: set[str]) -> bool:
    if entry.name.casefold().endswith(".info.json"):
        return True
    if entry.suffix not in SIDECAR_SUFFIXES:
        return False
    # Subtitles carry a language after the stem: `a.en.vtt`.
    stem = _stem(entry.name)
    return stem in stems or (entry.suffix in ("vtt", "srt") and _stem(stem) in stems)


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _sidecar(entry: Entry, sidecars: dict[str, Entry]) -> Sidecar:
    stem = _stem(entry.name)
    for name in (f"{stem}.info.json", f"{entry.name}.info.json", f"{stem}.json", f"{entry.name}.json"):
        if name in sidecars and name != entry.name:
            return _read(sidecars[name])
    return Sidecar()


def _read(entry: Entry) -> Sidecar:
    if entry.member is None:
        return read_sidecar(entry.path)
    try:
        pieces = open_member(source_uri(entry.path), entry.member, max_bytes=MAX_SIDECAR_BYTES)
        return parse_sidecar(b"".join(pieces))
    except ClipRejected:
        return Sidecar(is_bad=True)


def _row(manifest: Manifest, entry: Entry, split: str, sidecar: Sidecar) -> SourceRow:
    return SourceRow(
        split=split,
        source_uri=source_uri(entry.path),
        source_member=entry.member,
        platform=sidecar.platform or "file",
        platform_id=sidecar.platform_id,
        media_kind=manifest.media_kind,
        source_bytes=entry.size if entry.kind == "file" else None,
        annotations=(Annotation(dataset=manifest.name, release=manifest.release, split=split),),
        problem=entry.problem,
        flags=("bad_sidecar",) if sidecar.is_bad else (),
        web=sidecar.web,
    )
