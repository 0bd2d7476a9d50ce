"""Lists of a set for other tools: tables of everything, the official Kinetics table, VideoMAE's lists of paths and class numbers."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stmae_data import files
from stmae_data.errors import SetError, UsageError
from stmae_data.records import LEDGER_COLUMNS, SetRef
from stmae_data.shards import ShardSet, open_set, read_range, sample_index
from stmae_data.sources import source_path

__all__ = ["FORMATS", "Exported", "export", "guarded"]

_TRIGGERS: Final = tuple("=+-@\t\r\n\0＝＋－＠")
"""What spreadsheets take for the beginning of a formula, in full width too."""
_YOUTUBE: Final = re.compile(r"[A-Za-z0-9_-]{11}")
_OFFICIAL_WORD: Final = {"val": "validate"}
"""What the official Kinetics tables call a split."""

_COLUMNS: Final = {
    "clip_id": "clip_id",
    "split": "split",
    "label": "note.label_raw",
    "label_index": "note.label_index",
    "dataset": "note.dataset",
    "release": "note.release",
    "platform": "platform",
    "platform_id": "platform_id",
    "start_seconds": "start_ms / 1000",
    "end_seconds": "end_ms / 1000",
    "shard": "shard",
    "ordinal": "ordinal",
    "stored_seconds": "stored_seconds",
    "stored_num_frames": "stored_num_frames",
    "stored_fps": "stored_fps",
    "stored_width_px": "stored_width_px",
    "stored_height_px": "stored_height_px",
    "stored_bytes": "stored_bytes",
    "stored_sha256": "stored_sha256",
    "source_uri": "source_uri",
    "source_member": "source_member",
    "source_bytes": "source_bytes",
    "source_sha256": "source_sha256",
    "url": "url",
    "title": "title",
    "uploader_id": "uploader_id",
    "upload_date": "upload_date",
    "tags": "array_to_string([t.tag FOR t IN tags], ' ')",
    "signals": "CAST(to_json(signals) AS VARCHAR)",
    "flags": "array_to_string(flags, ' ')",
    "license": "license",
    "is_redistributable": "is_redistributable",
}
"""Columns of the csv and what each is in the ledger."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote; `num_files` counts unpacked clips."""

    path: Path
    format: str
    num_rows: int
    num_files: int = 0

    def as_json(self) -> dict[str, Any]:
        """The same facts as JSON values."""
        return {"path": str(self.path), "format": self.format, "rows": self.num_rows, "files": self.num_files}


@dataclass(frozen=True, slots=True)
class _Request:
    """The clips to list: `connection` holds them as the view `noted`, ledger rows with their first labelled annotation as `note`."""

    path: Path
    reference: SetRef
    found: ShardSet
    connection: Any
    is_unpacked: bool

    def ask(self, columns: str, *, order: str = "ORDER BY shard, ordinal") -> list[dict[str, Any]]:
        """Columns of the clips, in stored order unless said."""
        cursor = self.connection.execute(f"SELECT {columns} FROM noted {order}")
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]


def export(
    workspace: Path, reference: SetRef, *, format: str, out: Path | None = None, is_unpacked: bool = False
) -> Exported:
    """Write a list of the clips that a reference names, in stored order.

    Args:
        workspace: where the set stands.
        reference: SET[:SPLIT][/SELECTION].
        format: `csv` (one row a clip, flat), `parquet` (the ledger's own columns), `kinetics` (the official table, with `is_cc` where
            it is known), `videomae` (`path label_index` lines, -1 without a label).
        out: the file; `exports/<reference>` of the workspace, with the ending of the format, unless given.
        is_unpacked: `videomae` only: write the stored clips as files into a folder beside the list, and list these.

    Raises:
        UsageError: no such format; SetError: the set cannot be read, or its clips cannot stand in such a list; StorageError: the disk.
    """
    if format not in FORMATS:
        raise UsageError(f"There is no export format {format!r}; there are {', '.join(FORMATS)}.")
    if is_unpacked and format != "videomae":
        raise UsageError(f"--unpack goes with the format videomae; {format} lists no files.")
    write, ending = FORMATS[format]
    name = str(reference).partition("@")[0].replace(":", "-").replace("/", "-")
    path = out or workspace / "exports" / f"{name}{ending}"
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name the file to write with --out.")
    with _noted(workspace, reference, is_unpacked=is_unpacked) as (found, connection):
        return write(_Request(path, reference, found, connection, is_unpacked))


@contextlib.contextmanager
def _noted(workspace: Path, reference: SetRef, *, is_unpacked: bool) -> Iterator[tuple[ShardSet, Any]]:
    found = open_set(workspace, reference.set_name, books_only=not is_unpacked)
    ids = sample_index(workspace, reference).clip_ids.tolist()
    ledgers = [str(path) for path in found.ledgers(reference.split)]
    connection = files.connect()
    try:
        connection.execute("CREATE TABLE chosen AS SELECT unnest(?::VARCHAR[]) AS clip_id", [ids])
        connection.execute("CREATE TABLE book AS SELECT * FROM read_parquet(?) WHERE outcome = 'written'", [ledgers])
        connection.execute(
            """CREATE VIEW noted AS SELECT *, coalesce([a FOR a IN annotations IF a.label_index IS NOT NULL][1],
               [a FOR a IN annotations IF a.label_raw IS NOT NULL][1], annotations[1]) AS note
               FROM book SEMI JOIN chosen USING (clip_id)"""
        )
        yield found, connection
    finally:
        connection.close()


def guarded(value: Any) -> Any:
    """A cell that no spreadsheet runs: text that looks like a formula, also behind spaces, gets a leading apostrophe."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return value
    is_formula = value.startswith(_TRIGGERS) or value.lstrip().startswith(_TRIGGERS)
    return f"'{value}" if is_formula else value


def _commit_table(path: Path, lines: Iterable[Iterable[Any]], *, line_end: str, separator: str = ",") -> None:
    with files.committing(path, point="export") as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        csv.writer(text, lineterminator=line_end, delimiter=separator).writerows(lines)
        text.detach()  # flushes; the committing writer closes


def _to_csv(request: _Request) -> Exported:
    columns = ", ".join(f"{what} AS {name}" for name, what in _COLUMNS.items())
    cursor = request.connection.execute(f"SELECT {columns} FROM noted ORDER BY shard, ordinal")
    count = 0

    def lines() -> Iterator[list[Any]]:
        nonlocal count
        yield list(_COLUMNS)
        while rows := cursor.fetchmany(5_000):  # never all at once: a release has half a million clips
            count += len(rows)
            yield from ([guarded(cell) for cell in row] for row in rows)

    _commit_table(request.path, lines(), line_end="\r\n")
    return Exported(request.path, "csv", count)


def _to_parquet(request: _Request) -> Exported:
    columns = ", ".join(f'"{name}"' for name in LEDGER_COLUMNS)
    query = f"SELECT {columns} FROM noted ORDER BY shard, ordinal"
    footer = {"set": request.found.name, "digest": request.found.digest, "reference": str(request.reference)}
    files.copy_table(request.connection, query, request.path, point="export", metadata=footer)
    return Exported(request.path, "parquet", request.ask("count(*) AS n", order="")[0]["n"])


def _to_kinetics(request: _Request) -> Exported:
    """label,youtube_id,time_start,time_end,split[,is_cc], as the releases have it.

    Ids stand as they are, also those that begin with `-`: eleven letters, digits, `-` and `_` can run nothing, and an apostrophe before
    them would name another video.
    """
    rows = request.ask(
        "clip_id, platform, platform_id, start_ms, end_ms, split, note.label_raw AS label, note.is_cc AS is_cc"
    )
    strange = [row for row in rows if row["platform"] != "youtube" or not _YOUTUBE.fullmatch(row["platform_id"] or "")]
    strange += [row for row in rows if row["start_ms"] is None or row["end_ms"] is None]
    if strange:
        raise SetError(
            f"{len({row['clip_id'] for row in strange})} of {len(rows)} clips of {request.reference} are no timed pieces of YouTube videos ({strange[0]['clip_id']} first), "
            "so the Kinetics table cannot name them; use --format csv."
        )
    has_cc = any(row["is_cc"] is not None for row in rows)
    has_label = any(row["label"] is not None for row in rows)
    header = [*(["label"] if has_label else []), "youtube_id", "time_start", "time_end", "split"]
    lines: list[list[Any]] = [[*header, *(["is_cc"] if has_cc else [])]]
    for row in rows:
        cells = [guarded(row["label"])] if has_label else []
        cells += [row["platform_id"], _seconds(row["start_ms"]), _seconds(row["end_ms"])]
        cells += [_OFFICIAL_WORD.get(row["split"], row["split"])]
        lines.append([*cells, *([None if row["is_cc"] is None else int(row["is_cc"])] if has_cc else [])])
    _commit_table(request.path, lines, line_end="\n")
    return Exported(request.path, "kinetics", len(rows))


def _seconds(milliseconds: int) -> int | float:
    return milliseconds // 1000 if milliseconds % 1000 == 0 else milliseconds / 1000


def _to_videomae(request: _Request) -> Exported:
    """`path label_index` lines: of the stored clips unpacked beside the list, or of the source files where those are the clips."""
    rows = request.ask(
        "row_id, clip_id, shard, media_offset, media_bytes, stored_sha256, media_kind, source_uri, source_member, note.label_index AS label_index"
    )
    folder = request.path.with_suffix("").absolute()
    if request.is_unpacked and folder == request.path.absolute():
        raise UsageError(f"{request.path} has no ending, so its clips would stand under the same name; add .txt.")
    paths = [_unpacked_path(folder, row) for row in rows] if request.is_unpacked else _source_paths(request, rows)
    held = [path for path in paths if re.search(r"[\s\"]", str(path))]
    if held:
        raise SetError(
            f"{len(held)} paths hold spaces or quotes ({str(held[0])!r} first), which lists of this form cannot; "
            "use --unpack with a path without them in --out."
        )
    if request.is_unpacked:
        _unpack(request.found.folder, rows, paths)
    lines = (
        [path, -1 if row["label_index"] is None else row["label_index"]] for path, row in zip(paths, rows, strict=True)
    )
    _commit_table(request.path, lines, line_end="\n", separator=" ")
    return Exported(request.path, "videomae", len(rows), len(rows) if request.is_unpacked else 0)


def _unpacked_path(folder: Path, row: dict[str, Any]) -> Path:
    return folder / f"{row['clip_id']}.{'jpg' if row['media_kind'] == 'image' else 'mp4'}"


def _source_paths(request: _Request, rows: list[dict[str, Any]]) -> list[Path]:
    """The source files, only where each of them is the clip: whole, on this disk, no member of an archive."""
    plan = files.read_table(request.found.folder / "meta" / "plan.parquet", "SELECT row_id FROM book WHERE is_cut")
    cut = {row["row_id"] for row in plan}
    kinds = {
        "pieces of longer files": [row for row in rows if row["row_id"] in cut],
        "members of archives": [row for row in rows if row["source_member"] is not None],
        "not files of this machine": [row for row in rows if not row["source_uri"].startswith("file://")],
    }
    for kind, found in kinds.items():
        if found:
            raise SetError(
                f"The sources of {len(found)} of {len(rows)} clips of {request.reference} are {kind} ({found[0]['clip_id']} first), so no path is theirs alone; "
                "write the stored clips beside the list with --unpack."
            )
    return [source_path(row["source_uri"]).absolute() for row in rows]


def _unpack(folder: Path, rows: list[dict[str, Any]], paths: list[Path]) -> None:
    """Write the stored clips as files; one that stands already with the right bytes is left alone."""
    by_shard: dict[str, list[tuple[dict[str, Any], Path]]] = {}
    for row, path in zip(rows, paths, strict=True):
        by_shard.setdefault(row["shard"], []).append((row, path))
    for shard, found in by_shard.items():
        tar = folder / f"{shard}.tar"
        descriptor = os.open(tar, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for row, path in found:
                if path.is_file() and files.sha256_file(path) == row["stored_sha256"]:
                    continue
                data = read_range(descriptor, row["media_offset"], row["media_bytes"], name=tar.name)
                if hashlib.sha256(data).hexdigest() != row["stored_sha256"]:
                    raise SetError(f"{row['clip_id']} in {tar} is not what its ledger says; verify the set.")
                files.commit_bytes(path, data, point="unpack")
        finally:
            os.close(descriptor)


FORMATS: Final[dict[str, tuple[Callable[[_Request], Exported], str]]] = {
    "csv": (_to_csv, ".csv"),
    "parquet": (_to_parquet, ".parquet"),
    "kinetics": (_to_kinetics, "-kinetics.csv"),
    "videomae": (_to_videomae, ".txt"),
}
"""What writes a format, and the ending of its file."""
