"""Clips inside tars, read where they lie: listed once, then any member by its offset; nothing is ever extracted to a path.

Whether a tar is compressed, its first bytes decide: one official part was a plain tar under a `.gz` name. A gzip stream is entered at
states of the decompressor kept every 64 MiB, so that clips may be read in the order of the plan; states and lists of members outlive
open files, because a plan goes through all archives of a release by turns. Pieces of a split archive
(`…-00`, `…-01`, …) count as one. A tar inside a tar is read through, as ImageNet's train archive asks.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tarfile
import threading
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, cast
from urllib.parse import quote_from_bytes, unquote_to_bytes

from stmae_data.errors import ClipRejected, Reason, SourceError
from stmae_data.sources.listing import Entry, SourceListing, is_clutter, source_path

__all__ = ["Member", "expand", "is_archive", "list_members", "open_member"]

_SUFFIX = re.compile(r"\.(tar|tgz|tar\.gz)$", re.IGNORECASE)
_PIECE = re.compile(rb"(?P<stem>.*something-something.*-)(?P<number>\d\d)")
_STATE_BYTES = 64 << 20
_CHUNK = 256 << 10
_BLOCK = 1 << 20
_MAX_HEADER = 1 << 20
_MAX_RATIO = 200
_MAX_OPEN = 32
_STATE_WEIGHT = 40 << 10
"""Bytes a state of the decompressor takes, its window of 32 KiB included."""
_MAX_STATES = 160 << 20
"""Bytes that states may take in a process; they stand further apart when there would be more."""
_MAX_MEMBERS = 1_000_000
"""Members listed in a process, about 300 bytes each; beyond, the archives used longest ago are forgotten."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an archive: name as written, without a leading `./`; place and size in the decompressed bytes."""

    name: bytes
    offset: int
    size: int
    kind: str = "file"


class _Readable(Protocol):
    def read_at(self, offset: int, size: int) -> bytes: ...


class _Joined:
    """The bytes of one file, or of the pieces of one, in order."""

    def __init__(self, paths: Iterable[bytes]) -> None:
        self.parts: list[tuple[int, int, int]] = []
        self.size = 0
        self.stamp: list[tuple[int, ...]] = []
        """What tells these files from others that come to stand in their place."""
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                os.close(descriptor)
                raise OSError(errno.EINVAL, "not a regular file")
            self.parts.append((self.size, status.st_size, descriptor))
            self.size += status.st_size
            self.stamp.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`, fewer only at the end."""
        found = b""
        for start, length, descriptor in self.parts:
            while size and start <= offset < start + length:
                data = os.pread(descriptor, size, offset - start)
                if not data:
                    return found
                found, offset, size = found + data, offset + len(data), size - len(data)
        return found

    def __del__(self) -> None:
        for _, _, descriptor in self.parts:
            os.close(descriptor)


@dataclass(slots=True)
class _Known:
    """What was learned of an archive; it outlives the open files."""

    stamp: list[tuple[int, ...]]
    index: dict[bytes, Member] | None = None
    states: list[tuple[int, int, Any]] = field(default_factory=lambda: [(0, 0, None)])
    """Places in the gzip stream to go on from: decompressed offset, compressed offset, decompressor there."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def weight(self) -> int:
        """Bytes the states take."""
        return sum(_STATE_WEIGHT + len(state.unconsumed_tail) for _, _, state in self.states[1:])


class _Gunzipped:
    """The bytes inside a gzip stream, at any offset."""

    def __init__(self, raw: _Joined, known: _Known) -> None:
        self.raw, self.known = raw, known
        self._enter(known.states[0])

    def _enter(self, place: tuple[int, int, Any]) -> None:
        self.out_at, self.in_at, state = place
        self.decompressor = state.copy() if state is not None else zlib.decompressobj(wbits=31)
        self.block_at, self.block = self.out_at, b""

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`, fewer only at the end."""
        states = self.known.states  # another thread may put a thinner list in its place
        place = states[bisect_right(states, offset, key=lambda state: state[0]) - 1]
        if offset < self.block_at or place[0] > self.out_at:
            self._enter(place)
        pieces = []
        while size:
            at = offset - self.block_at
            if at < len(self.block):
                piece = self.block[at : at + size]
                pieces.append(piece)
                offset, size = offset + len(piece), size - len(piece)
            elif not self._advance():
                break
        return b"".join(pieces)

    def _advance(self) -> bool:
        """Decompress the next block; False at the end."""
        if self.decompressor.eof:
            # A second gzip member may follow the first; anything else behind it is padding.
            if self.raw.read_at(self.in_at, 2) != b"\x1f\x8b":
                return False
            self.decompressor = zlib.decompressobj(wbits=31)
        data = self.raw.read_at(self.in_at, _CHUNK)
        if not data:
            raise EOFError("the gzip stream ends before its end")
        block = self.decompressor.decompress(data, _BLOCK)
        left = self.decompressor.unused_data if self.decompressor.eof else self.decompressor.unconsumed_tail
        self.in_at += len(data) - len(left)
        self.block_at, self.block = self.out_at, block
        self.out_at += len(block)
        if self.out_at > _MAX_RATIO * self.in_at + _STATE_BYTES:
            raise ValueError(f"more than {_MAX_RATIO} times its size comes out of the gzip stream")
        states = self.known.states
        if self.out_at - states[-1][0] >= _kept.state_bytes() and not self.decompressor.eof:
            states.append((self.out_at, self.in_at, self.decompressor.copy()))
            _kept.bound_states()
        return True


class _Window:
    """A file object on part of the bytes, for tarfile; refuses reads no honest header needs."""

    def __init__(self, source: _Readable, start: int = 0, size: int | None = None) -> None:
        self.source, self.start, self.size, self.at = source, start, size, 0

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise ValueError(f"a header of {size} bytes")
        if self.size is not None:
            size = max(0, min(size, self.size - self.at))
        data = self.source.read_at(self.start + self.at, size)
        self.at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == 0
        self.at = offset
        return offset

    def tell(self) -> int:
        return self.at


class _Archive:
    """One open archive; its index is made when first needed, unless the same files were known before."""

    def __init__(self, path: bytes, known: _Known | None = None) -> None:
        self.raw = _Joined(_pieces(path))
        self.known = known if known is not None and known.stamp == self.raw.stamp else _Known(self.raw.stamp)
        is_gzip = self.raw.read_at(0, 2) == b"\x1f\x8b"
        self.source: _Readable = _Gunzipped(self.raw, self.known) if is_gzip else self.raw
        self.lock = self.known.lock

    def members(self) -> Iterator[Member]:
        """Members in order, then one of kind `end` where the tar has no end; one it breaks off in is of kind `truncated`."""
        yield from _members(_Window(self.source), prefix=b"")

    def find(self, name: bytes) -> Member | None:
        """The last member of that name, as extracting would leave it."""
        index = self.known.index
        if index is None:
            index = self.known.index = {each.name: each for each in self.members()}
            _kept.bound_members()
        return index.get(name)


_Truncation = (tarfile.TarError, zlib.error, EOFError)
_Damage = (*_Truncation, ValueError, OverflowError)


def _members(window: _Window, *, prefix: bytes) -> Iterator[Member]:
    last: Member | None = None
    try:
        with tarfile.open(fileobj=cast(IO[bytes], window), mode="r:", errors="surrogateescape") as tar:
            for info in tar:
                if last is not None:
                    yield last
                last = None
                name = prefix + info.name.encode("utf-8", "surrogateescape").removeprefix(b"./")
                offset = window.start + info.offset_data
                if info.isdir():
                    continue
                kind = (
                    "file"
                    if info.isreg() and not info.issparse()
                    else "symlink"
                    if info.issym() or info.islnk()
                    else "device"
                )
                if kind == "file" and name.endswith(b".tar") and not prefix:
                    yield from _members(_Window(window.source, offset, info.size), prefix=name + b"/")
                else:
                    last = Member(name, offset, info.size, kind)
            if last is not None and last.kind == "file" and last.size:
                end = window.source.read_at(last.offset + last.size - 1, 1)
                last = last if end else Member(last.name, last.offset, last.size, "truncated")
            if last is None or last.kind != "truncated":
                yield from _missing_end(window, tar.offset, prefix)
    except _Truncation:
        if last is None:
            raise
        last = Member(last.name, last.offset, last.size, "truncated")
    if last is not None:
        yield last


def _missing_end(window: _Window, offset: int, prefix: bytes) -> Iterator[Member]:
    """A tar that was cut between two members reads without an error, but its closing blocks of zeros are not there."""
    window.seek(offset)
    if window.read(512) != bytes(512):
        yield Member(prefix, offset, 0, "end")


def _pieces(path: bytes) -> list[bytes]:
    """The file, or all the pieces it is the first of."""
    folder, _, name = path.rpartition(b"/")
    match = _PIECE.fullmatch(name)
    if match is None:
        return [path]
    found, number = [], int(match["number"])
    while Path(os.fsdecode(piece := folder + b"/" + match["stem"] + b"%02d" % number)).exists():
        found.append(piece)
        number += 1
    return found or [path]


def is_archive(entry: Entry) -> bool:
    """Whether an entry is a tar by its name, or the first piece of one."""
    piece = _PIECE.fullmatch(os.fsencode(entry.name))
    return entry.kind == "file" and bool(_SUFFIX.search(entry.name) or (piece and piece["number"] == b"00"))


def list_members(path: Path | bytes) -> list[Member]:
    """All members of a tar but folders, plain or gzip. One of kind `end` says that the tar was cut behind the member before it.

    Raises:
        SourceError: it cannot be read, or is no tar.
    """
    raw = os.fsencode(path)
    try:
        return list(_Archive(raw).members())
    except OSError as error:
        problem: str = error.strerror or "it cannot be read"
    except _Damage as error:
        problem = str(error) or "it is damaged"
    shown = raw.decode("utf-8", "backslashreplace")
    raise SourceError(
        f"{shown} cannot be read as a tar, plain or gzip ({problem}); fetch it again or leave it out of --from."
    )


def expand(entries: Iterable[Entry], listing: SourceListing) -> Iterator[Entry]:
    """Entries with every archive among them replaced by its members; the archive counts as their folder.

    Clutter is counted in the listing, and a tar without an end gets a note there.

    Raises:
        SourceError: an archive cannot be read.
    """
    for entry in entries:
        if not is_archive(entry):
            # Later pieces of a split archive are part of the first.
            if not (entry.kind == "file" and _PIECE.fullmatch(os.fsencode(entry.name))):
                yield entry
            continue
        stem = _SUFFIX.sub("", entry.name)
        last = {member.name: member for member in list_members(entry.path)}
        for member in last.values():
            if member.kind in ("end", "truncated"):
                listing.notes.append(
                    f"{entry.shown} has no end: members behind its last one may be lost; fetch it again."
                )
            if member.kind == "end":
                continue
            *folders, name = os.fsdecode(member.name).split("/")
            if any(is_clutter(os.fsencode(each)) for each in (*folders, name)):
                listing.skipped["hidden"] += 1
                continue
            yield Entry(
                path=entry.path,
                name=name,
                folders=(*entry.folders, stem, *(_SUFFIX.sub("", each) for each in folders if each not in ("", "."))),
                kind=member.kind,
                size=member.size,
                member=quote_from_bytes(member.name),
            )


class _Kept:
    """The archives of this process: a few stay open, and what was learned of many is kept."""

    def __init__(self) -> None:
        self.open: OrderedDict[bytes, _Archive] = OrderedDict()
        self.known: OrderedDict[bytes, _Known] = OrderedDict()
        self.lock = threading.Lock()
        self.spacing = 1

    def archive(self, path: bytes) -> _Archive:
        """The archive, open."""
        with self.lock:
            found = self.open.pop(path, None) or _Archive(path, self.known.get(path))
            self.open[path], self.known[path] = found, found.known
            self.known.move_to_end(path)
            while len(self.open) > _MAX_OPEN:
                self.open.popitem(last=False)
            return found

    def state_bytes(self) -> int:
        """Decompressed bytes from one state to the next."""
        return _STATE_BYTES * self.spacing

    def bound_states(self) -> None:
        """Where states take too much, drop every second one of all archives: reading gets slower by degrees, never all at once."""
        with self.lock:
            while sum(each.weight for each in self.known.values()) > _MAX_STATES:
                self.spacing *= 2
                for each in self.known.values():
                    each.states = each.states[::2]

    def bound_members(self) -> None:
        """Forget archives used longest ago, the last one never."""
        with self.lock:
            while len(self.known) > 1 and sum(len(each.index or ()) for each in self.known.values()) > _MAX_MEMBERS:
                path, _ = self.known.popitem(last=False)
                self.open.pop(path, None)


_kept = _Kept()


def open_member(source_uri: str, source_member: str, *, max_bytes: int = 1 << 30) -> Iterator[bytes]:
    """The bytes of one member, in pieces of at most 1 MiB.

    Args:
        source_uri: the archive, as `SourceRow.source_uri` has it.
        source_member: the member, as `SourceRow.source_member` has it.
        max_bytes: a larger member is refused.

    Raises:
        ClipRejected: the archive or member is gone, too large, truncated or not a regular file.
    """
    try:
        archive = _kept.archive(os.fsencode(source_path(source_uri)))
        with archive.lock:
            member = archive.find(unquote_to_bytes(source_member))
        if member is None:
            raise ClipRejected(Reason.GONE, "the archive has no such member any more")
        if member.kind not in ("file", "truncated"):
            raise ClipRejected(Reason.SPECIAL_FILE, f"a {member.kind} in an archive")
        if member.size == 0:
            raise ClipRejected(Reason.EMPTY, "the member has no bytes")
        if member.size > max_bytes:
            raise ClipRejected(Reason.TOO_LARGE, f"{member.size} bytes, at most {max_bytes} are read")
        at, end = member.offset, member.offset + member.size
        while at < end:
            with archive.lock:
                data = archive.source.read_at(at, min(_BLOCK, end - at))
            if not data:
                raise ClipRejected(Reason.TRUNCATED, "the archive breaks off in this member")
            at += len(data)
            yield data
    except OSError as error:
        raise ClipRejected(Reason.GONE, f"the archive cannot be opened: {error.strerror}") from error
    except _Damage as error:
        raise ClipRejected(Reason.TRUNCATED, f"the archive is damaged: {error}") from error
