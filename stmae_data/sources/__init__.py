"""What real inputs look like: one reader per kind of source, and one door to them all, `rows_for`."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from urllib.parse import unquote_to_bytes

from stmae_data.errors import SourceError
from stmae_data.manifest import Manifest
from stmae_data.records import SourceRow, plan_key
from stmae_data.sources import ava, imagenet, kinetics, listed, something, web, webdataset
from stmae_data.sources.archives import open_member
from stmae_data.sources.listing import SourceListing, source_path, source_uri
from stmae_data.sources.tables import TableClip, read_table_clips

__all__ = ["SourceListing", "TableClip", "open_member", "read_table_clips", "rows_for", "source_path", "source_uri"]


_LABELLED: dict[str, Callable[..., SourceListing]] = {
    "kinetics": kinetics.rows,
    "something": something.rows,
    "table": listed.rows,
    "ava": ava.rows,
    "imagenet": imagenet.rows,
    "webdataset": webdataset.rows,
}


def rows_for(
    manifest: Manifest,
    *,
    roots: Sequence[Path] = (),
    annotations: Sequence[Path] = (),
    splits: Sequence[str] | None = None,
    classes: Collection[str] | None = None,
    limit: int | None = None,
) -> SourceListing:
    """Everything a source offers, sorted by where it lies.

    Args:
        manifest: what the release is.
        roots: folders or files to read; the manifest's own when empty. A pattern of tars (`x-{000000..000009}.tar`, `x-*.tar`) is
            read as a WebDataset.
        annotations: tables that replace those the manifest names.
        splits: names of splits to list, all when None.
        classes: labels to list, all when None.
        limit: at most this many rows, a uniform draw by the manifest's seed; the same rows are in every larger draw.

    Raises:
        SourceError: a folder or table is missing or unreadable, or something asked for does not exist.
        ManifestError: a split the release does not have.
    """
    places = _distinct([Path(each) for each in roots] or manifest.roots)
    if not places and manifest.kind != "table":
        raise SourceError(f"Where are the files of {manifest.name}? Give their folder with --from.")
    splits, classes = splits or None, classes or None
    reader = _LABELLED.get(manifest.kind)
    if manifest.kind == "folder" and any(webdataset.is_pattern(place) for place in places):
        reader = webdataset.rows
    if reader is not None:
        listing = reader(manifest, roots=places, annotations=annotations, splits=splits, classes=classes)
    else:
        _refuse(manifest, "--annotations", annotations)
        fetched = [root for root in places if listed.is_fetched(root)]
        if len(fetched) < len(places):
            _refuse(manifest, "--classes", classes)
        plain = [root for root in places if root not in fetched]
        listing = SourceListing()
        for root in fetched:
            listing.add(listed.fetched_rows(manifest, root, splits=splits, classes=classes))
        if plain:
            _add_others(listing, web.rows(manifest, roots=plain, splits=splits))
    if limit is not None and len(listing.rows) > limit:
        listing.rows.sort(key=lambda row: (plan_key(manifest.seed, row.clip_id or "\0".join(_file(row))), *_place(row)))
        del listing.rows[limit:]
    listing.rows.sort(key=_place)
    return listing


def _distinct(places: Sequence[Path]) -> list[Path]:
    """Every place once, whatever names it was given under."""
    first: dict[str, Path] = {}
    for place in places:
        first.setdefault(os.path.realpath(place), place)
    return list(first.values())


def _add_others(listing: SourceListing, plain: SourceListing) -> None:
    """Add the files of plain folders, which may lie inside a fetched one or around it: of a fetched file its table knows more."""
    known = {_file(row) for row in listing.rows}
    others = [row for row in plain.rows if _file(row) not in known]
    if len(others) < len(plain.rows):
        listing.skipped["repeated"] += len(plain.rows) - len(others)
    plain.rows = others
    listing.add(plain)


def _file(row: SourceRow) -> tuple[str, str]:
    return row.source_uri, row.source_member or ""


def _place(row: SourceRow) -> tuple[bytes, str, int, str]:
    return unquote_to_bytes(row.source_uri), row.source_member or "", row.start_ms or 0, row.split


def _refuse(manifest: Manifest, option: str, value: Collection[object] | None) -> None:
    if value:
        raise SourceError(
            f"{manifest.name} is a folder of videos without labels, so {option} means nothing here; leave it out."
        )
