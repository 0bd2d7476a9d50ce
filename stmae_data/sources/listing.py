"""What every reader of sources shares: walking folders without following anything, names as URIs, and the listing they return."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from stmae_data.errors import Reason, SourceError
from stmae_data.manifest import Manifest
from stmae_data.records import SourceRow

__all__ = [
    "VIDEO_SUFFIXES",
    "Entry",
    "SourceListing",
    "entry_at",
    "folder_split",
    "is_clutter",
    "matching_split",
    "source_path",
    "source_uri",
    "split_in_name",
    "walk",
    "wanted_splits",
]

VIDEO_SUFFIXES = frozenset(
    {"3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg"}
    | {"mts", "mxf", "ogg", "ogv", "rm", "rmvb", "ts", "vob", "webm", "wmv"}
)
"""Endings that say video. Only for telling clips from other files in official trees; what a file is, its content decides."""

_ALIASES = (
    frozenset({"train", "training"}),
    frozenset({"val", "validate", "validation", "valid"}),
    frozenset({"test", "testing"}),
)
_CLUTTER = frozenset({b".DS_Store", b"Thumbs.db", b"desktop.ini", b"__MACOSX"})
_PARTIAL = ".partial"
"""Where `fetch` keeps what has not come whole."""


@dataclass(slots=True)
class SourceListing:
    """What a source offers: rows to plan, what annotations and files say of each other, and what was left out and why."""

    rows: list[SourceRow] = field(default_factory=list)
    reconciliation: list[dict[str, Any]] = field(default_factory=list)
    """Per split and label: `split label annotated present missing unannotated`, counts of distinct clips."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Files that are no rows, by kind: hidden, sidecar, table, other_file, unfinished, replaced, repeated, no_split, other_split."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the report."""

    def add(self, other: SourceListing) -> None:
        """Put what another source offers behind what is here."""
        self.rows += other.rows
        self.reconciliation += other.reconciliation
        self.skipped += other.skipped
        self.notes += other.notes


@dataclass(frozen=True, slots=True)
class Entry:
    """One name found below a root. `folders` are the names on the way down, the root's own first."""

    path: bytes
    name: str
    folders: tuple[str, ...]
    kind: str
    """file, folder_link, symlink, fifo, socket, device, gone, or truncated (a member its archive breaks off in)."""
    size: int = 0
    member: str | None = None
    """Name inside the archive at `path`, percent-encoded like a URI; None for a file of its own."""

    @property
    def suffix(self) -> str:
        """The last ending, folded, without the dot."""
        return self.name.rpartition(".")[2].casefold() if "." in self.name else ""

    @property
    def file(self) -> Path | None:
        """The path of a regular file of its own, None for members of archives and everything else."""
        return Path(os.fsdecode(self.path)) if self.kind == "file" and self.member is None else None

    @property
    def shown(self) -> str:
        """The name for messages: bytes that are no text are escaped."""
        return self.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

    @property
    def problem(self) -> tuple[Reason, str] | None:
        """Why the entry cannot be opened, None for a file with bytes in it."""
        if self.kind == "file":
            return None if self.size else (Reason.EMPTY, "the file has no bytes")
        if self.kind in ("symlink", "folder_link"):
            return (Reason.SYMLINK, "links are not followed")
        if self.kind == "truncated":
            return (Reason.TRUNCATED, "the archive breaks off in this member")
        if self.kind == "gone":
            return (Reason.CHANGED, "the file vanished while the folder was listed")
        return (Reason.SPECIAL_FILE, f"a {self.kind}, not a regular file")


def source_uri(path: bytes | str | Path) -> str:
    """The name of a local file as a URI: absolute, every byte but plain ASCII percent-encoded, so that any name round-trips."""
    raw = os.fsencode(path)
    return "file://" + quote_from_bytes(raw if raw.startswith(b"/") else os.fsencode(Path.cwd()) + b"/" + raw)


def source_path(uri: str) -> Path:
    """The local file a URI of ours names.

    Raises:
        SourceError: the URI is not one of a local file.
    """
    if not uri.startswith("file:///"):
        raise SourceError(f"{uri} does not name a local file; download it first and name its folder with --from.")
    return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))


def walk(roots: Iterable[Path], *, skipped: Counter[str], seen: set[bytes] | None = None) -> Iterator[Entry]:
    """Everything below the roots that is not a folder, in the byte order of names, each once, nothing followed or opened.

    Clutter of other systems (`._*`, `.DS_Store`, …) is counted as hidden and not returned; files below a folder `.partial`, where
    `fetch` keeps what has not come whole, are counted as unfinished and not returned either. `seen` are paths not to return again, for walks
    that together read each file once.

    Raises:
        SourceError: a root is missing or a folder cannot be listed.
    """
    seen = set() if seen is None else seen
    for root in roots:
        if not root.exists():
            raise SourceError(f"There is no {root}; give the folder that holds the files with --from.")
        resolved = root.resolve()
        base = os.fsencode(resolved)
        if not resolved.is_dir():
            entries: Iterable[Entry] = [_entry(base, os.lstat(base), (resolved.parent.name,))]
        else:
            entries = _below(base, (resolved.name,), skipped)
        for entry in entries:
            if entry.path not in seen:
                seen.add(entry.path)
                yield entry


def is_clutter(name: bytes) -> bool:
    """Whether a name is what other systems leave between files: AppleDouble, thumbnails, folder settings."""
    return name in _CLUTTER or name.startswith(b"._")


def _below(base: bytes, folders: tuple[str, ...], skipped: Counter[str]) -> Iterator[Entry]:
    # A stack of our own: a tree may be deeper than Python likes to recurse.
    stack = [(base, folders)]
    while stack:
        folder, names = stack.pop()
        try:
            with os.scandir(folder) as listing:
                found = sorted(listing, key=lambda each: each.name)
        except OSError as error:
            raise SourceError(
                f"The folder {_shown(folder)} cannot be listed ({error.strerror}); make it readable or leave it out of --from."
            ) from error
        inner = []
        # A film that broke off may still decode, so its beginning would pass for a clip.
        is_partial = _PARTIAL in names[1:]
        for each in found:
            if is_clutter(each.name):
                skipped["hidden"] += 1
                continue
            try:
                status = each.stat(follow_symlinks=False)
            except FileNotFoundError:
                status = None
            if status is not None and stat.S_ISDIR(status.st_mode):
                inner.append((each.path, (*names, os.fsdecode(each.name))))
            elif is_partial:
                skipped["unfinished"] += 1
            else:
                yield _entry(each.path, status, names)
        stack.extend(reversed(inner))


def entry_at(path: Path) -> Entry | None:
    """The entry at one path, None when nothing is there."""
    try:
        return _entry(os.fsencode(path), path.lstat(), (path.parent.name,))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _entry(path: bytes, status: os.stat_result | None, folders: tuple[str, ...]) -> Entry:
    name = os.fsdecode(path.rpartition(b"/")[2])
    if status is None:
        return Entry(path, name, folders, "gone")
    mode = status.st_mode
    if stat.S_ISREG(mode):
        return Entry(path, name, folders, "file", status.st_size)
    if stat.S_ISLNK(mode):
        return Entry(path, name, folders, "folder_link" if Path(os.fsdecode(path)).is_dir() else "symlink")
    if stat.S_ISFIFO(mode):
        return Entry(path, name, folders, "fifo")
    return Entry(path, name, folders, "socket" if stat.S_ISSOCK(mode) else "device")


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def matching_split(manifest: Manifest, word: str) -> str | None:
    """The split of the manifest that `word` means, the usual spellings of train, val and test included; None when none."""
    found = manifest.split_of_word(word)
    if found is not None:
        return found
    folded = word.strip().casefold()
    for aliases in _ALIASES:
        if folded in aliases:
            return next((split for alias in sorted(aliases) if (split := manifest.split_of_word(alias))), None)
    return None


def folder_split(manifest: Manifest, folders: Sequence[str]) -> str | None:
    """The split a file stands in by its folders, root first; None when none does.

    The outermost folder below the root that is called like a split decides, else the outermost with a split's word in its name
    (`train_256`, `k400-val`), else the root if it is called like one.
    """
    root, below = folders[:1], folders[1:]
    exact = (matching_split(manifest, folder) for folder in below)
    # Only the manifest's own words count inside a name: "training dog" is a class.
    partly = (split_in_name(manifest, folder) for folder in below)
    own = (matching_split(manifest, folder) for folder in root)
    return next((found for found in chain(exact, partly, own) if found is not None), None)


def split_in_name(manifest: Manifest, name: str) -> str | None:
    """The split a file or folder name holds as one of its words: `kinetics700_validate`, `k400-val`; None when none does."""
    for token in re.split(r"[\W_]+", name):
        if token and (found := manifest.split_of_word(token)) is not None:
            return found
    return None


def wanted_splits(manifest: Manifest, splits: Sequence[str] | None) -> set[str]:
    """Names of the splits asked for, all of them when None; a ManifestError for one the release does not have."""
    if splits is None:
        return {each.name for each in manifest.splits}
    return {manifest.split(each).name for each in splits}
