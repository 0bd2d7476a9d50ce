"""A shard's tar: samples of two members under fixed headers, read back strictly or by offset."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from stmae_data import files
from stmae_data.errors import SetError
from stmae_data.records import SAMPLE_FIELDS, is_valid_key

__all__ = ["Placement", "Sample", "TarMember", "commit_shard", "iterate_tar", "read_range", "sample_json"]

_BLOCK = tarfile.BLOCKSIZE
_END = b"\0" * (2 * _BLOCK)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a tar stores under one key: `<key>.json`, then `<key>.<extension>`."""

    key: str
    description: bytes
    media: bytes
    extension: str = "mp4"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a sample's bytes stand in its tar."""

    ordinal: int
    json_offset: int
    json_bytes: int
    media_offset: int
    media_bytes: int


@dataclass(frozen=True, slots=True)
class TarMember:
    """One regular member of a tar: name, offset and length of its data."""

    name: str
    offset: int
    size: int


def sample_json(values: Mapping[str, Any]) -> bytes:
    """The sample's description: every field of SAMPLE_FIELDS, null when unknown, in a fixed order.

    Raises:
        KeyError: a field that samples do not have.
    """
    unknown = set(values) - set(SAMPLE_FIELDS)
    if unknown:
        raise KeyError(f"Samples have no field {sorted(unknown)}")
    ordered = {name: values.get(name) for name in SAMPLE_FIELDS}
    return json.dumps(ordered, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def commit_shard(path: Path, samples: Iterable[Sample], *, point: str = "shard") -> tuple[list[Placement], str, int]:
    """Write a tar with fixed headers and commit it by rename.

    Returns:
        Placements in order, sha256 and size in bytes of the tar. No sample at all gives two zero blocks.
    """
    placements = []
    with files.committing(path, point=point) as file:
        stream = _Hashing(file)
        seen: set[str] = set()
        for ordinal, sample in enumerate(samples):
            if not is_valid_key(sample.key) or sample.key in seen:
                raise SetError(
                    f"{path.name}: {sample.key!r} cannot be a key here; wanted [A-Za-z0-9_-], at most 95, once."
                )
            seen.add(sample.key)
            json_offset = _add_member(stream, f"{sample.key}.json", sample.description)
            media_offset = _add_member(stream, f"{sample.key}.{sample.extension}", sample.media)
            placements.append(Placement(ordinal, json_offset, len(sample.description), media_offset, len(sample.media)))
        stream.write(_END)
    return placements, stream.digest.hexdigest(), stream.num_bytes


class _Hashing:
    """A file that is hashed as it is written, so that it need not be read again."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.num_bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.num_bytes += len(data)


def _add_member(stream: _Hashing, name: str, data: bytes) -> int:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    header.mode = 0o444
    header.uname = header.gname = "stmae"
    stream.write(header.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
    offset = stream.num_bytes
    stream.write(data)
    stream.write(b"\0" * (-len(data) % _BLOCK))
    return offset


def iterate_tar(stream: IO[bytes], *, name: str) -> Iterator[TarMember]:
    """Walk a tar of ours strictly: regular members only, whole, ended by two zero blocks.

    Raises:
        SetError: anything else, a cut at a member boundary included.
    """
    position = stream.seek(0)
    size = stream.seek(0, io.SEEK_END)
    while True:
        stream.seek(position)
        block = stream.read(_BLOCK)
        if len(block) < _BLOCK:
            raise SetError(f"{name} ends at byte {position} without two zero blocks: it is cut short; rebuild it.")
        if block == b"\0" * _BLOCK:
            if stream.read(_BLOCK) != b"\0" * _BLOCK or position + 2 * _BLOCK != size:
                raise SetError(f"{name} has bytes after its end mark at {position}; rebuild it.")
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.TarError, UnicodeDecodeError) as error:
            raise SetError(f"{name} has a damaged member header at byte {position} ({error}); rebuild it.") from error
        if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise SetError(
                f"{name} holds {header.name!r}, which is not a regular file; shards of ours hold nothing else."
            )
        offset = position + _BLOCK
        if offset + header.size > size:
            raise SetError(f"{name} is cut inside member {header.name!r}; rebuild it.")
        yield TarMember(header.name, offset, header.size)
        position = offset + header.size + (-header.size % _BLOCK)


def read_range(descriptor: int, offset: int, size: int, *, name: str) -> bytes:
    """Read exactly `size` bytes at `offset`.

    Raises:
        SetError: the file is shorter.
    """
    data = os.pread(descriptor, size, offset)
    if len(data) != size:
        raise SetError(
            f"{name} is shorter than its ledger says (wanted {size} bytes at {offset}, got {len(data)}); verify the set."
        )
    return data
