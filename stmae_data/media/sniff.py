"""What the first bytes and the boxes of a file promise, before any decoder sees them."""

from __future__ import annotations

import os
import re

from stmae_data.errors import ClipRejected, Reason

__all__ = ["sniff", "walk_boxes"]

_MAX_BOXES = 20_000
_PLAYLISTS = re.compile(
    rb"""(?ix) \#EXTM3U | ffconcat\s+version | (file|chunk)\s+['"./\w] | \[(playlist|reference)\] | v=0\r?\n[a-z]= | RTSPtext
    | (https?|rtsp|rtmps?|mms[htu]?|ftp|file)://\S | <asx | <\?wpl | <smil | <mpd[\s>] | <svg[\s>] | <playlist
    | <!doctype\s+(svg|smil|mpd) | <\?xml(?![\s\S]*<(!doctype\s+)?html)"""
)
_MAGIC: tuple[tuple[str, re.Pattern[bytes]], ...] = (
    ("mov", re.compile(rb"[\s\S]{4}(ftyp|moov|mdat|free|skip|wide|pnot|styp|moof|sidx|uuid)")),
    ("matroska", re.compile(rb"\x1a\x45\xdf\xa3")),
    ("avi", re.compile(rb"(RIFF|RIFX|ON2 )[\s\S]{4}(AVI|ON2f)")),
    ("asf", re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11")),
    ("flv", re.compile(rb"FLV\x01")),
    ("ogg", re.compile(rb"OggS\x00")),
    ("mpeg", re.compile(rb"\x00\x00\x01[\xba\xb3\xbb]")),
    ("mpegts", re.compile(rb"(?:\x47[\s\S]{187}){3}|[\s\S]{4}\x47[\s\S]{191}\x47[\s\S]{191}\x47")),
)
_SOUND = re.compile(rb"ID3|fLaC|RIFF[\s\S]{4}WAVE|\xff[\xfb\xf3\xf2\xf1\xf9]|FORM[\s\S]{4}AIF|\.snd|#!AMR")


def sniff(start: bytes, size: int) -> str | None:
    """The container that the first bytes promise, None for unknown.

    Raises:
        ClipRejected: a playlist, a text that points elsewhere, or sound alone.
    """
    for name, pattern in _MAGIC:
        if pattern.match(start):
            return name
    if _PLAYLISTS.match(start.removeprefix(b"\xef\xbb\xbf").lstrip()):
        raise ClipRejected(Reason.UNSAFE_PLAYLIST, "a text that points to other files")
    if _SOUND.match(start):
        raise ClipRejected(Reason.NO_VIDEO, "sound alone")
    if size < 16:
        raise ClipRejected(Reason.NOT_MEDIA, f"{size} bytes")
    return None


_PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"dinf"}


def walk_boxes(descriptor: int, size: int) -> bool:
    """Walk the boxes of an mp4 or QuickTime file; True when it ends inside a box of the top level.

    Raises:
        ClipRejected: its samples are said to be in another file (a reference movie, or a data reference that is not to itself).
    """
    is_cut, todo, visited = False, [(0, size, True)], 0
    while todo:
        position, end, is_top = todo.pop()
        while position + 8 <= end and visited < _MAX_BOXES:
            visited += 1
            head = os.pread(descriptor, 16, position)
            length, kind, skip = int.from_bytes(head[:4]), head[4:8], 8
            if length == 1:
                length, skip = int.from_bytes(head[8:16]), 16
            elif length == 0:
                length = end - position
            if length < skip:
                break
            is_cut |= is_top and position + length > size
            if kind in {b"rmra", b"rmda", b"rdrf"}:
                raise ClipRejected(Reason.UNSAFE_PLAYLIST, "a QuickTime movie that points to another file")
            if kind == b"dref" and _points_elsewhere(os.pread(descriptor, min(length, 4096), position)[skip:]):
                raise ClipRejected(Reason.UNSAFE_PLAYLIST, "its samples are said to be in another file")
            if kind in _PARENTS:
                todo.append((position + skip, min(position + length, end), False))
            position += length
    return is_cut


def _points_elsewhere(body: bytes) -> bool:
    """Whether a `dref` box has an entry without the flag "in this same file"."""
    position = 8
    for _ in range(min(int.from_bytes(body[4:8]), 64)):
        entry = body[position : position + 12]
        if len(entry) < 12:
            break
        if not entry[11] & 1:
            return True
        position += max(12, int.from_bytes(entry[:4]))
    return False
