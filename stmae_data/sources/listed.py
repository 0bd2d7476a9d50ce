"""Tables that list videos by path or address: csv, tsv, json, jsonl, parquet, or txt with one per line.

A table may come from anybody, so a path has to stay below the folders given with it, and an address is never opened here: its copy, which
`fetch` leaves below a root under `fetched_name`, is the clip. A folder that `fetch` filled holds tables of its own, its books: what could
not be fetched stands in them with its reason, and becomes a row that says so.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from stmae_data.errors import Reason, SetError, SourceError
from stmae_data.files import read_table, sha256_file
from stmae_data.manifest import Manifest, is_remote
from stmae_data.records import Annotation, SourceRow, web_clip_id
from stmae_data.sources.join import Tally
from stmae_data.sources.labels import LabelBook
from stmae_data.sources.listing import (
    VIDEO_SUFFIXES,
    Entry,
    SourceListing,
    entry_at,
    matching_split,
    source_uri,
    walk,
    wanted_splits,
)
from stmae_data.sources.sidecar import safe_url, sidecar_of
from stmae_data.sources.tables import TABLE_SUFFIXES, load_json, read_text

__all__ = [
    "PATH_COLUMNS",
    "URL_COLUMNS",
    "fetched_books",
    "fetched_name",
    "fetched_rows",
    "is_fetched",
    "read_records",
    "rows",
]

PATH_COLUMNS = ("path", "file", "filepath", "file_path", "filename", "file_name", "video_path", "video")
URL_COLUMNS = ("url", "uri", "link", "webpage_url", "video_url")
_STARTS = ("start", "time_start", "start_time", "start_seconds")
_ENDS = ("end", "time_end", "end_time", "end_seconds")
_LABELS = ("label", "class", "label_name")
_NUMBERS = frozenset({"age_limit", "duration", "like_count", "view_count"})
_HASH = re.compile(r"[0-9a-f]{64}")
_BOOK = re.compile(r"fetched(-\d+-of-\d+)?\.(parquet|jsonl)")


def fetched_name(url: str) -> str:
    """The file name `fetch` gives what it brings from an address: 32 hex of its hash, and the ending the address has if it is one of videos."""
    try:
        ending = PurePosixPath(urlsplit(url).path).suffix.casefold()
    except ValueError:  # no address at all; it still needs a name to be told by
        ending = ""
    stem = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return stem + ending if ending[1:] in VIDEO_SUFFIXES else stem


def fetched_books(folder: Path) -> list[Path]:
    """The tables `fetch` left at the top of a folder: one, or one for each job."""
    return sorted(path for path in folder.glob("fetched*.parquet") if _BOOK.fullmatch(path.name))


def is_fetched(folder: Path) -> bool:
    """Whether `fetch` filled a folder, or was stopped while it did."""
    return bool(fetched_books(folder) or _logs(folder)) or _note(folder) is not None


def _logs(folder: Path) -> list[Path]:
    """What `fetch` decided since it wrote its tables, a file for each job."""
    return sorted(path for path in folder.glob("fetched*.jsonl") if _BOOK.fullmatch(path.name))


def _note(folder: Path) -> dict[str, Any] | None:
    """What `fetch` noted of how it filled a folder, None where it left no note that can be read."""
    path = folder / "fetch.json"
    try:
        note = load_json(path) if path.is_file() else None
    except SourceError:
        return None
    return note if isinstance(note, dict) and "allow_private" in note else None


def fetched_rows(
    manifest: Manifest,
    root: Path,
    *,
    splits: Sequence[str] | None = None,
    classes: Collection[str] | None = None,
) -> SourceListing:
    """List what `fetch` brought into a folder, and what it could not bring, with the reason.

    Raises:
        SourceError: as `rows`, and where a fetch was stopped before it wrote its table: what a row of the list says stands there alone.
    """
    books, logs = fetched_books(root), _logs(root)
    tables = {log.with_suffix(".parquet") for log in logs} or ({root / "fetched.parquet"} if not books else set())
    missing = min(tables.difference(books), default=None)
    if missing is not None:
        raise SourceError(
            f"The fetch into {root} has not ended: {missing.name} is not written yet. Run the same stmae-data fetch command again, then build."
        )
    listing = rows(manifest, roots=[root], annotations=books, splits=splits, classes=classes)
    if num_unlisted := len(_unlisted(books, logs)):
        listing.notes.append(
            f"{num_unlisted} files fetched into {root.name} stand in no table there and are left out; if its fetch was stopped, run it again."
        )
    note = _note(root)
    if note is None:
        listing.notes.append(f"{root.name} has no readable fetch.json, so how it was fetched is not known.")
    elif note["allow_private"]:
        listing.notes.append(
            f"{root.name} was fetched with --allow-private: addresses were not kept to the open internet."
        )
    return listing


def _unlisted(books: Sequence[Path], logs: Sequence[Path]) -> set[str]:
    """Addresses whose files came after the tables were written, or for a longer list than theirs."""
    late: set[str] = set()
    for log in logs:
        for line in log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a kill may leave half a line
                end = json.loads(line)
                late |= {str(end["url_key"])} if end["status"] == "fetched" else set()
    if not late:
        return late
    return late - {
        str(row.get("url_key")) for book in books for row in read_records(book) if row.get("status") == "fetched"
    }


def read_records(path: Path) -> list[dict[str, Any]]:
    """The rows of a table by folded column name; a txt file gives `url` or `path` for each line.

    Raises:
        SourceError: the table cannot be read.
    """
    suffix = path.suffix.casefold().removeprefix(".")
    try:
        if suffix == "parquet":
            found: Any = read_table(path)
        elif suffix == "json":
            found = load_json(path)
        elif suffix == "jsonl":
            found = [json.loads(line) for line in read_text(path).splitlines() if line.strip()]
        elif suffix == "txt":
            lines = [line.strip() for line in read_text(path).splitlines() if line.strip() and line[0] != "#"]
            found = [{"url" if is_remote(line.casefold()) else "path": line} for line in lines]
        else:
            found = list(csv.DictReader(io.StringIO(read_text(path)), delimiter="\t" if suffix == "tsv" else ","))
    except (SetError, csv.Error, ValueError, RecursionError) as error:
        raise SourceError(
            f"The table {path} cannot be read ({str(error).splitlines()[0]}); restore it from its source."
        ) from error
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise SourceError(f"The table {path} is not a list of rows; wanted an object per video.")
    return [{str(key).strip().casefold().replace(" ", "_"): value for key, value in each.items()} for each in found]


def rows(
    manifest: Manifest,
    *,
    roots: Sequence[Path],
    annotations: Sequence[Path] = (),
    splits: Sequence[str] | None = None,
    classes: Collection[str] | None = None,
) -> SourceListing:
    """List what the tables name.

    Tables are those given, those the manifest names, or the roots that are tables themselves. Relative paths are looked for below the
    roots that are folders, then beside the table. Columns: a path or an address; where there are, split, label, start and end in
    seconds, sha256, and the metadata columns of yt-dlp (title, tags, license, …).

    Raises:
        SourceError: a root or table is missing or unreadable, or a row names neither a path nor an address.
    """
    listing = SourceListing()
    lister = _Lister(manifest, roots, listing)
    tables: list[tuple[Path, str | None]] = [(path, None) for path in annotations]
    tables += [(path, None) for path in roots if path.is_file() and path.suffix[1:].casefold() in TABLE_SUFFIXES]
    tables = tables or [
        (Path(each), split.name) for split in manifest.splits for each in split.annotations if not is_remote(each)
    ]
    if not tables:
        raise SourceError(f"{manifest.name} has no table; name one with --annotations, or as --from itself.")
    records = [
        (table, number, record, lister.split_of(record, default, table, number))
        for table, default in tables
        for number, record in enumerate(read_records(table), start=1)
    ]
    book = LabelBook(manifest, ((_text(record, _LABELS), split) for _, _, record, split in records))
    wanted, chosen = wanted_splits(manifest, splits), book.wanted(classes)
    digests = {table: sha256_file(table) for table, _ in tables}
    tally = Tally()
    seen: set[tuple[object, ...]] = set()
    for table, number, record, split in records:
        row_number = record["row_number"] if isinstance(record.get("url_key"), str) else number
        annotation = book.annotation(
            _text(record, _LABELS), split, row_number=row_number, annotation_sha256=digests[table]
        )
        if split not in wanted or (chosen is not None and annotation.label_slug not in chosen):
            continue
        row = lister.row(record, table, number, annotation)
        place = (row.split, row.source_uri, row.source_member, row.start_ms, row.end_ms)
        if place in seen:
            listing.skipped["repeated"] += 1
            continue
        seen.add(place)
        tally.annotated[(split, annotation.label_raw)] += 1
        tally.present[(split, annotation.label_raw)] += row.problem is None
        listing.rows.append(row)
    listing.reconciliation = tally.lines(manifest)
    return listing


class _Lister:
    """Turns records into rows; knows the folders a path may lead to and the copies that were fetched."""

    def __init__(self, manifest: Manifest, roots: Sequence[Path], listing: SourceListing) -> None:
        for root in roots:
            if not root.exists():
                raise SourceError(f"There is no {root}; give the folder that holds the files with --from.")
        self.manifest = manifest
        self.folders = [root.resolve() for root in roots if root.is_dir()]
        self.listing = listing
        self._copies: dict[str, Entry] | None = None

    def split_of(self, record: Mapping[str, Any], default: str | None, table: Path, number: int) -> str:
        """The split of a record: its own, its table's, or the only or first one."""
        word = _text(record, ("split", "subset"))
        split = matching_split(self.manifest, word) if word is not None else default or self.manifest.splits[0].name
        if split is None:
            known = ", ".join(each.name for each in self.manifest.splits)
            raise SourceError(
                f"Row {number} of {table} belongs to split {word!r}, which {self.manifest.name} does not have ({known})."
            )
        return split

    def row(self, record: Mapping[str, Any], table: Path, number: int, annotation: Annotation) -> SourceRow:
        """The row of one record."""
        path, url = _text(record, PATH_COLUMNS), _text(record, URL_COLUMNS)
        if path is not None and is_remote(path.casefold()):
            path, url = None, path
        if path is None and url is None:
            raise SourceError(
                f"Row {number} of {table} names no video: wanted a column path or url; found {', '.join(record)}."
            )
        uri, member, size, problem = self._file(path, table) if path is not None else self._copy(url or "")
        told, origin = _fetched(record)
        problem = told or problem
        start_ms, end_ms = _span(record, table, number)
        sha256 = (_text(record, ("sha256",)) or "").casefold()
        is_known = problem is None and _HASH.fullmatch(sha256) is not None
        side = sidecar_of(_info(record, url))
        return SourceRow(
            split=annotation.split,
            source_uri=uri,
            source_member=member,
            # The table's hash names the clip; bytes that turn out to be others are rejected when they are read.
            clip_id=web_clip_id(sha256, start_ms=start_ms, end_ms=end_ms) if is_known else None,
            platform=side.platform or "file",
            platform_id=side.platform_id,
            start_ms=start_ms,
            end_ms=end_ms,
            is_cut=start_ms is not None,
            source_bytes=size,
            source_sha256=sha256 if is_known else None,
            annotations=(annotation,),
            problem=problem,
            web={**side.web, **({"license_origin": "table"} if "license" in side.web else {}), **origin},
        )

    def _file(self, text: str, table: Path) -> tuple[str, str | None, int | None, tuple[Reason, str] | None]:
        """A path of the table: below a root, or beside the table when no root is a folder."""
        folders = self.folders or [table.resolve().parent]
        text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
        for folder in folders:
            # Links on the way are followed to see where they lead, the last name is not.
            place = (folder / text).parent.resolve() / PurePosixPath(text).name
            entry = entry_at(place)
            if folder not in place.parents:
                return (
                    source_uri(folder / text),
                    None,
                    None,
                    (Reason.REFUSED_URL, "the path leads out of the folders given"),
                )
            if entry is not None:
                is_file = entry.kind == "file"
                return source_uri(entry.path), None, entry.size if is_file else None, entry.problem
        return source_uri(folders[0] / text), None, None, (Reason.GONE, "there is no such file")

    def _copy(self, url: str) -> tuple[str, str | None, int | None, tuple[Reason, str] | None]:
        """The fetched copy of an address."""
        shown, name = safe_url(url), fetched_name(url)
        if shown is None:
            # Its text may hold secrets or signs no column should: only its hash is kept.
            return f"refused:{name[:32]}", None, None, (Reason.REFUSED_URL, "not an http(s) address")
        if self._copies is None:
            found = walk(self.folders, skipped=self.listing.skipped)
            self._copies = {each.name.partition(".")[0]: each for each in found if each.kind == "file"}
        entry = self._copies.get(name[:32])
        if entry is None:
            # Addresses that differ in their query alone are told apart by the name of the copy.
            return shown, name, None, (Reason.NET_ERROR, "not fetched yet")
        return source_uri(entry.path), None, entry.size, entry.problem


def _fetched(record: Mapping[str, Any]) -> tuple[tuple[Reason, str] | None, dict[str, Any]]:
    """What a book of `fetch` says of a row: why there is no file, or where the file came from."""
    if not isinstance(record.get("url_key"), str):
        return None, {}
    if record.get("status") == "fetched":
        origin = {name: _text(record, (name,)) for name in ("resolved_url", "final_ip", "fetched_at")}
        return None, {name: value for name, value in origin.items() if value is not None}
    reason, detail = record.get("reason"), _text(record, ("detail",)) or ""
    return ((Reason(reason), detail[:200]) if reason in set(Reason) else (Reason.NET_ERROR, "not fetched yet")), {}


def _info(record: Mapping[str, Any], url: str | None) -> dict[str, Any]:
    """The record as an info dict: csv writes numbers as text, and a list of tags as one text."""
    info = {key: value for key, value in record.items() if value not in (None, "")}
    for key in _NUMBERS & info.keys():
        if isinstance(info[key], str) and re.fullmatch(r"\d{1,18}(\.\d+)?", info[key], re.ASCII):
            info[key] = float(info[key]) if "." in info[key] else int(info[key])
    if url is not None:
        info["webpage_url"] = url
    tags = info.get("tags")
    if isinstance(tags, str):
        info["tags"] = re.split(r"[,;|\s]+", tags)
    info.setdefault("title", info.get("caption"))
    return info


def _text(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    for name in names:
        value = record.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return None


def _span(record: Mapping[str, Any], table: Path, number: int) -> tuple[int | None, int | None]:
    start = next((record[name] for name in _STARTS if record.get(name) not in (None, "")), None)
    end = next((record[name] for name in _ENDS if record.get(name) not in (None, "")), None)
    if start is None and end is None:
        return None, None
    try:
        low, high = float(start or 0), float(end)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        low = high = -1.0
    if not 0 <= low < high < 1e7:
        raise SourceError(
            f"Row {number} of {table} runs from {start!r} to {end!r}; wanted seconds with 0 <= start < end."
        )
    return round(low * 1000), round(high * 1000)
