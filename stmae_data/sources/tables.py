"""Annotation tables of clips, in every layout they come in: csv, json, parquet, and lists without a header.

Columns are found by name, or by what stands in them; never by position: the releases order and number them differently. Most name timed
YouTube clips; those of Something-Something number theirs, and those of AVA hold boxes at a second of a film.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from stmae_data.errors import SetError, SourceError
from stmae_data.files import read_table

__all__ = ["SECONDS_AROUND", "TABLE_SUFFIXES", "TableClip", "load_json", "read_table_clips", "read_text"]

SECONDS_AROUND = 2
"""Seconds of film that a clip of AVA keeps on either side of an annotated second."""

TABLE_SUFFIXES = frozenset({"csv", "tsv", "txt", "json", "jsonl", "parquet"})

_COLUMNS = {
    "id": ("youtube_id", "ytid", "youtubeid", "video_id", "videoid", "yt_id", "video", "id"),
    "start": ("time_start", "start_time", "start_seconds", "start_sec", "start", "t_start"),
    "end": ("time_end", "end_time", "end_seconds", "end_sec", "end", "t_end"),
    "split": ("split", "subset"),
    "label": ("label", "class", "class_name", "label_name", "action"),
    "is_cc": ("is_cc", "cc"),
}
_ROLES = ("id", "start", "end", "split", "label", "is_cc")
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "holdout_test": "test",
}
_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_DECIMAL = re.compile(r"\d{1,10}")
"""An id of Something-Something: shorter than those of YouTube."""
_ANY_ID = frozenset({"id", "video", "video_id", "videoid"})
"""Names of id columns that do not say whose ids they are."""
_KEY_SAFE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_FILE = re.compile(
    r"""(?P<path>(?:.*[/\\])?)(?P<id>[A-Za-z0-9_-]{11})
        (?:_(?P<start>\d{6,9})_(?P<end>\d{6,9})(?:\.\w{2,4})?|\.(?:mp4|mkv|webm|avi))
        (?P<rest>(?:[\s,;].*)?)""",
    re.VERBOSE,
)
_SPACED = re.compile(
    r"(?P<label>.*?)\s*(?P<id>[A-Za-z0-9_-]{11})\s+(?P<start>\d+(?:\.\d+)?)\s+(?P<end>\d+(?:\.\d+)?)(?:\s+(?P<split>[a-z_]+))?"
)


class TableClip(NamedTuple):
    """One row of an annotation table; what the table does not say is None."""

    platform_id: str
    start_ms: int | None = None
    end_ms: int | None = None
    split: str | None = None
    """train, val or test however the table spells it; other words folded to small letters."""
    label: str | None = None
    label_index: int | None = None
    """Where the table gives a number in place of a label."""
    is_cc: bool | None = None
    row_number: int | None = None
    """Position in the table, first row 1."""
    platform: str = "youtube"
    """Whose id it is: `youtube`, or `ssv2` for the numbers of Something-Something; the same in all rows of a table."""


def read_table_clips(path: Path, *, needs_times: bool = False) -> list[TableClip]:
    """All rows of one annotation table; of a table of boxes, each annotated moment once, with the stretch around it that AVA's clips have.

    Args:
        path: a csv, tsv, txt, json, jsonl or parquet file.
        needs_times: whether a table without start and end columns is an error.

    Raises:
        SourceError: the file cannot be read, or lacks a needed column.
    """
    suffix = path.suffix.casefold().removeprefix(".")
    try:
        if suffix == "parquet":
            # Names are asked for apart: a table without rows has them too.
            names = [each["column_name"] for each in read_table(path, "SELECT column_name FROM (DESCRIBE book)")]
            records = read_table(path)
            return _by_name(names, (list(each.values()) for each in records), path=path, needs_times=needs_times)
        text = read_text(path)
        if suffix in ("json", "jsonl"):
            return _from_json(text, path=path, needs_times=needs_times, by_line=suffix == "jsonl")
        return _from_text(text, path=path, needs_times=needs_times)
    except csv.Error as error:
        raise SourceError(f"The table {path} is not readable csv ({error}); restore it from its source.") from error
    except SetError as error:
        raise SourceError(f"The table {path} is not readable parquet; restore it from its source.") from error


def read_text(path: Path) -> str:
    """The text of a table, without a byte order mark.

    Raises:
        SourceError: it cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SourceError(
            f"The table {path} cannot be read ({error.strerror}); check the path and its rights."
        ) from error
    except UnicodeDecodeError as error:
        raise SourceError(
            f"The table {path} is not UTF-8 text at byte {error.start}; convert it, then run again."
        ) from error


def load_json(path: Path) -> Any:
    """The value of a JSON table.

    Raises:
        SourceError: it cannot be read or is not JSON.
    """
    return _parse_json(read_text(path), path=path)


def _parse_json(text: str, *, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"The table {path} is not readable JSON ({error}); restore it from its source.") from error


def _from_text(text: str, *, path: Path, needs_times: bool) -> list[TableClip]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        return []
    delimiter = max("\t,;", key=first.count)
    if delimiter not in first:
        delimiter = ""
    header = [_column_name(cell) for cell in (next(csv.reader([first], delimiter=delimiter or ",")))]
    if any(cell in names for cell in header for names in _COLUMNS.values()):
        rows = csv.reader(io.StringIO(text), delimiter=delimiter or ",")
        return _by_name(header, _after_header(rows, header), path=path, needs_times=needs_times)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    sample = lines[:1000]
    if all(_FILE.fullmatch(line) for line in sample):
        return [_from_file_name(line, path=path, number=number) for number, line in enumerate(lines, start=1)]
    if delimiter:
        cells = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True) if any(row)]
        if _are_boxes(cells[:1000]):
            return _moments(cells, path=path)
        names = _names_by_content(cells[:1000])
        if (
            names is None
            and delimiter == ";"
            and all(len(row) > 1 and _DECIMAL.fullmatch(row[0].strip()) for row in cells)
        ):
            names = ["id", "label"]  # the answers of Something-Something
        if names is not None:
            return _by_name(names, cells, path=path, needs_times=needs_times)
    elif all(_ID.fullmatch(line) for line in sample):
        return _by_name(["id"], ([line] for line in lines), path=path, needs_times=needs_times)
    elif all(_SPACED.fullmatch(line) for line in sample):
        names = ["label", "id", "start", "end", "split"]
        spaced = (match.group(*names) if (match := _SPACED.fullmatch(line)) else (line,) * 5 for line in lines)
        return _by_name(names, spaced, path=path, needs_times=needs_times)
    raise _missing(path, [first[:80]], ["youtube_id"])


def _after_header(rows: Iterator[list[str]], header: list[str]) -> Iterator[list[str]]:
    """Rows below the header; where they hold one cell more, the first is an index without a name and is left out."""
    id_at = next((at for at, name in enumerate(header) if name in _COLUMNS["id"]), None)
    is_past_header = False
    for row in rows:
        if not any(row):
            continue
        if not is_past_header:
            is_past_header = True
            continue
        if len(row) == len(header) + 1 and id_at is not None and _ID.fullmatch(row[id_at + 1].strip()):
            row = row[1:]
        yield row


def _names_by_content(rows: Sequence[Sequence[str]]) -> list[str] | None:
    """Names for the columns of a table without header, from their values; None when no column holds YouTube ids."""
    width = min(len(row) for row in rows)
    columns = [[row[at].strip() for row in rows] for at in range(width)]
    ids = [at for at in range(width) if all(_ID.fullmatch(value) for value in columns[at])]
    if not ids:
        return None
    names = [""] * max(len(row) for row in rows)
    # A class of one word may be eleven letters long ("parasailing"), but ids hardly repeat.
    id_at = max(ids, key=lambda at: len(set(columns[at])))
    names[id_at] = "id"
    rest = [at for at in range(width) if at != id_at]
    numbers = [at for at in rest if all(_NUMBER.fullmatch(value) for value in columns[at])]
    for left, right in pairwise(numbers):
        if _are_shares(columns[left]) or _are_shares(columns[right]):
            continue
        if all(float(a) < float(b) for a, b in zip(columns[left], columns[right], strict=True)):
            names[left], names[right] = "start", "end"
            break
    for at in rest:
        if names[at]:
            continue
        values = set(columns[at])
        if {value.casefold() for value in values} <= _SPLIT_WORDS.keys():
            names[at] = "split"
        elif values <= {"0", "1"}:
            names[at] = "is_cc"
        elif at not in numbers and "label" not in names:
            names[at] = "label"
    return names


def _are_shares(values: Iterable[str]) -> bool:
    """Whether numbers are places in a frame, in shares of its sides, rather than seconds."""
    numbers = [float(value) for value in values]
    return max(numbers) <= 1 and any(number % 1 for number in numbers)


def _are_boxes(rows: Sequence[Sequence[str]]) -> bool:
    """Whether these are rows of AVA: id, second and, but where nobody is seen, x1, y1, x2, y2 in 0..1, action, and person or score.

    Those of AVA-Kinetics have no last column.
    """

    def is_share(cell: str) -> bool:
        try:
            return not cell.strip() or 0 <= float(cell) <= 1
        except ValueError:
            return False

    return (
        {len(row) for row in rows} <= {2, 7, 8}
        and any("".join(row[2:6]).strip() for row in rows)
        and all(
            _ID.fullmatch(row[0].strip()) and _NUMBER.fullmatch(row[1].strip()) and all(map(is_share, row[2:6]))
            for row in rows
        )
    )


def _moments(rows: Iterable[Sequence[str]], *, path: Path) -> list[TableClip]:
    """Each annotated moment of a table of boxes once, as the stretch of film around it; a moment has a row for every box and action."""
    found: dict[tuple[str, int], TableClip] = {}
    for number, row in enumerate(rows, start=1):
        video, second = row[0].strip(), row[1].strip() if len(row) > 1 else ""
        if not _ID.fullmatch(video) or not _NUMBER.fullmatch(second) or float(second) >= 1e7:
            raise SourceError(
                f"Row {number} of {path} is {','.join(row)[:80]!r}; wanted video id, second and, for a box, x1, y1, x2, y2, action, person."
            )
        moment = round(1000 * float(second))
        start, end = max(0, moment - 1000 * SECONDS_AROUND), moment + 1000 * SECONDS_AROUND
        found.setdefault((video, moment), TableClip(video, start, end, row_number=number))
    return list(found.values())


def _from_file_name(line: str, *, path: Path, number: int) -> TableClip:
    """A line that names a file: `train/abseiling/<id>_000001_000011.mp4 0`, as training code bases list clips."""
    match = _FILE.fullmatch(line)
    if match is None:
        raise SourceError(f"Row {number} of {path} is {line[:80]!r}; wanted a file name like the rows above it.")
    folders = [folder for folder in re.split(r"[/\\]", match["path"]) if folder]
    words = [word for folder in folders if (word := _SPLIT_WORDS.get(folder.casefold()))]
    rest = match["rest"].strip(" \t,;\"'")
    label = rest if rest and not rest.isdecimal() else None
    if not rest and folders and folders[-1].casefold() not in _SPLIT_WORDS:
        label = folders[-1]
    start, end = _interval(match["start"], match["end"], path=path, number=number)
    return TableClip(
        platform_id=match["id"],
        start_ms=start,
        end_ms=end,
        split=words[0] if words else None,
        label=label,
        label_index=int(rest) if rest.isdecimal() else None,
        row_number=number,
    )


def _from_json(text: str, *, path: Path, needs_times: bool, by_line: bool) -> list[TableClip]:
    lines = [line for line in text.splitlines() if line.strip()] if by_line else []
    value = [_parse_json(line, path=path) for line in lines] if by_line else _parse_json(text, path=path)
    if isinstance(value, dict):
        database = value.get("database", value)
        value = [_flat(key, entry) for key, entry in database.items()] if isinstance(database, dict) else None
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise SourceError(
            f"The table {path} is not a list of clips; wanted an object of YouTube ids or a list of rows."
        )
    names: dict[str, None] = {}
    for each in value:
        names.update(dict.fromkeys(each))
    if not value:
        return []
    rows = ([each.get(name) for name in names] for each in value)
    return _by_name([_column_name(str(name)) for name in names], rows, path=path, needs_times=needs_times)


def _flat(key: str, entry: Any) -> Any:
    """One clip of the DeepMind layout: id -> {annotations: {label, segment: [start, end]}, subset}."""
    if not isinstance(entry, dict):
        return None
    annotations = entry.get("annotations") or {}
    if isinstance(annotations, list):
        annotations = annotations[0] if annotations else {}
    if not isinstance(annotations, dict):
        return None
    segment = annotations.get("segment")
    start, end = segment if isinstance(segment, list) and len(segment) == 2 else (None, None)
    return {
        "youtube_id": key,
        "time_start": start,
        "time_end": end,
        "split": entry.get("subset"),
        "label": annotations.get("label"),
    }


def _column_name(cell: str) -> str:
    return re.sub(r"[\s-]+", "_", cell.strip().strip("\"'").casefold())


def _by_name(names: Sequence[str], rows: Iterable[Sequence[Any]], *, path: Path, needs_times: bool) -> list[TableClip]:
    folded = [_column_name(name) for name in names]
    places: dict[str, int] = {}
    for role, known in _COLUMNS.items():
        for name in (*known, role):
            if name in folded:
                places[role] = folded.index(name)
                break
    wanted = ["id", "start", "end"] if needs_times else ["id"]
    lacking = [role for role in wanted if role not in places]
    if lacking:
        raise _missing(path, list(names), [_COLUMNS[role][0] for role in lacking])
    at = [places.get(role, -1) for role in _ROLES]
    clips = [_clip(row, at, path=path, number=number) for number, row in enumerate(rows, start=1)]
    if folded[places["id"]] in _ANY_ID and all(_DECIMAL.fullmatch(clip.platform_id) for clip in clips):
        return [clip._replace(platform="ssv2") for clip in clips]
    return clips


def _missing(path: Path, found: Sequence[str], lacking: Sequence[str]) -> SourceError:
    return SourceError(
        f"The table {path} has no column {' or '.join(lacking)}: found {', '.join(found)}, wanted youtube_id, time_start, time_end "
        "and, where known, split and label; add a header with these names."
    )


def _clean(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    value = value.strip()
    return (value.strip('"').strip() if '"' in value else value) or None


def _clip(row: Sequence[Any], places: Sequence[int], *, path: Path, number: int) -> TableClip:
    """A row whose cells of `_ROLES` stand at `places`, -1 where there is none; a short row lacks its last ones."""
    width = len(row)
    platform_id, start, end, split, label, is_cc = [_clean(row[at]) if 0 <= at < width else None for at in places]
    if isinstance(platform_id, int) and not isinstance(platform_id, bool):
        platform_id = str(platform_id)  # JSON and Parquet may hold numbers as numbers
    if not isinstance(platform_id, str) or not _KEY_SAFE.fullmatch(platform_id):
        raise SourceError(
            f"Row {number} of {path} has {platform_id!r} for its YouTube id; wanted letters, digits, _ and -, restore the table from its source."
        )
    start_ms, end_ms = _interval(start, end, path=path, number=number)
    return TableClip(
        platform_id=platform_id,
        start_ms=start_ms,
        end_ms=end_ms,
        split=_SPLIT_WORDS.get(str(split).casefold(), str(split).casefold()) if split is not None else None,
        label=str(label) if label is not None else None,
        is_cc=str(is_cc).casefold() in ("1", "1.0", "true", "yes") if is_cc is not None else None,
        row_number=number,
    )


def _interval(start: Any, end: Any, *, path: Path, number: int) -> tuple[int | None, int | None]:
    """Milliseconds from seconds however written (`84`, `84.0`, 84); both or neither."""
    if start is None and end is None:
        return None, None
    try:
        low, high = float(start), float(end)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 <= low < high < 1e7:
        raise SourceError(
            f"Row {number} of {path} runs from {start!r} to {end!r}; wanted seconds with 0 <= start < end, correct that row."
        )
    return round(low * 1000), round(high * 1000)
