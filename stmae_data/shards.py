"""Shards: a tar, its ledger, and the `set.json` that seals a set. Write them, read them by offset, know what they hold.

The tar is written with the standard library. `webdataset.TarWriter` is a thin layer over the same module, and importing it imports
torch (seconds and hundreds of MB for every worker); that sets open in plain `webdataset` is held by a test.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from stmae_data import files
from stmae_data.errors import SetError
from stmae_data.records import LEDGER_COLUMNS, SAMPLE_FIELDS, SCHEMA_VERSION, SetRef, is_valid_key, set_folder

__all__ = [
    "Placement",
    "Sample",
    "SampleIndex",
    "ShardInfo",
    "ShardSet",
    "TarMember",
    "commit_ledger",
    "commit_shard",
    "fingerprint_path",
    "iterate_tar",
    "ledger_path",
    "open_set",
    "read_range",
    "sample_index",
    "sample_json",
    "seal_set",
    "set_digest",
    "shard_info",
    "shard_name",
]

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


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One line of `set.json`."""

    name: str
    split: str
    sha256: str
    bytes: int
    samples: int
    seconds: float
    ledger_sha256: str


@dataclass(frozen=True, slots=True)
class ShardSet:
    """A sealed set: `folder` holds the tars, `seal` is the whole of `meta/set.json`."""

    folder: Path
    name: str
    version: int
    digest: str
    shards: tuple[ShardInfo, ...]
    seal: Mapping[str, Any]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, sorted."""
        return tuple(sorted(self.seal["splits"]))

    def of_split(self, split: str) -> tuple[ShardInfo, ...]:
        """Shards of one split in order.

        Raises:
            SetError: there is no such split.
        """
        found = tuple(shard for shard in self.shards if shard.split == split)
        if not found:
            raise SetError(f"Set {self.name} has no split {split!r}; it has {', '.join(self.splits)}.")
        return found

    def ledgers(self, split: str | None = None) -> list[Path]:
        """Paths of the ledgers, of one split or of all."""
        wanted = self.shards if split is None else self.of_split(split)
        return [ledger_path(self.folder, shard.name) for shard in wanted]


def shard_name(split: str, number: int) -> str:
    """`train-000017`: the stem of a shard's tar, ledger and fingerprints."""
    return f"{split}-{number:06d}"


def ledger_path(folder: Path, name: str) -> Path:
    """Where the ledger of shard `name` stands; its appearance is the shard's commit."""
    return folder / "meta" / "ledger" / f"{name}.parquet"


def fingerprint_path(folder: Path, name: str) -> Path:
    """Where the fingerprints of shard `name` stand."""
    return folder / "meta" / "fingerprints" / f"{name}.parquet"


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
    with files.committing(path, point=point) as stream:
        seen: set[str] = set()
        for ordinal, sample in enumerate(samples):
            if not is_valid_key(sample.key) or sample.key in seen:
                raise SetError(
                    f"{path.name}: {sample.key!r} cannot be a key here; wanted [A-Za-z0-9_-], at most 100, once."
                )
            seen.add(sample.key)
            json_offset = _add_member(stream, f"{sample.key}.json", sample.description)
            media_offset = _add_member(stream, f"{sample.key}.{sample.extension}", sample.media)
            placements.append(Placement(ordinal, json_offset, len(sample.description), media_offset, len(sample.media)))
        stream.write(_END)
    return placements, files.sha256_file(path), path.stat().st_size


def _add_member(stream: IO[bytes], name: str, data: bytes) -> int:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    header.mode = 0o444
    header.uname = header.gname = "stmae"
    stream.write(header.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
    offset = stream.tell()
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


def commit_ledger(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], *, tar_sha256: str | None = None) -> str:
    """Write the ledger of shard `name` in plan order; this rename is the shard's commit. Returns the ledger's sha256.

    The footer keeps the tar's sha256 (taken from the file where it is not given), so that sealing never reads a tar again.
    """
    path, tar = ledger_path(folder, name), folder / f"{name}.tar"
    metadata = {"tar_sha256": tar_sha256 or files.sha256_file(tar), "tar_bytes": str(tar.stat().st_size)}
    files.commit_table(path, rows, LEDGER_COLUMNS, point="ledger", order_by="plan_order, row_id", metadata=metadata)
    return files.sha256_file(path)


def shard_info(folder: Path, name: str) -> ShardInfo:
    """The `set.json` line of a committed shard, from its ledger alone.

    Raises:
        SetError: the ledger is missing or damaged.
    """
    path = ledger_path(folder, name)
    footer = files.read_table_metadata(path)
    query = """SELECT count(*) FILTER (outcome = 'written') AS samples,
               coalesce(sum(stored_seconds) FILTER (outcome = 'written'), 0) AS seconds FROM book"""
    totals = files.read_table(path, query)[0]
    return ShardInfo(
        name,
        name.rpartition("-")[0],
        footer["tar_sha256"],
        int(footer["tar_bytes"]),
        int(totals["samples"]),
        float(totals["seconds"]),
        files.sha256_file(path),
    )


def set_digest(shards: Iterable[ShardInfo]) -> str:
    """sha256 over the sorted lines `split name sha256` of all tars."""
    lines = sorted(f"{shard.split} {shard.name} {shard.sha256}" for shard in shards)
    return hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()


def seal_set(
    folder: Path,
    shards: Sequence[ShardInfo],
    *,
    name: str,
    version: int,
    created_from: Mapping[str, Any],
    recipe: Mapping[str, Any],
    counts: Mapping[str, Any],
    parents: Sequence[Mapping[str, Any]],
    versions: Mapping[str, str],
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Write `meta/set.json`, the last step of a build or rewrite; returns the set's digest."""
    splits: dict[str, Any] = {}
    for shard in sorted(shards, key=lambda each: (each.split, each.name)):
        split = splits.setdefault(shard.split, {"shards": [], "samples": 0, "seconds": 0.0})
        split["shards"].append(
            {
                "name": shard.name,
                "sha256": shard.sha256,
                "bytes": shard.bytes,
                "samples": shard.samples,
                "seconds": round(shard.seconds, 3),
                "ledger_sha256": shard.ledger_sha256,
            }
        )
        split["samples"] += shard.samples
        split["seconds"] = round(split["seconds"] + shard.seconds, 3)
    digest = set_digest(shards)
    files.commit_json(
        folder / "meta" / "set.json",
        {
            "schema_version": SCHEMA_VERSION,
            "name": name,
            "version": version,
            "digest": digest,
            "created_from": created_from,
            "recipe": recipe,
            "splits": splits,
            "counts": counts,
            "parents": list(parents),
            "versions": versions,
            **(extra or {}),
        },
        point="seal",
    )
    return digest


def open_set(workspace: Path, name: str) -> ShardSet:
    """Open a sealed set of the workspace.

    Raises:
        SetError: no such set, not sealed, sealed by something else, or shards missing or of another size.
    """
    folder = set_folder(workspace, name)
    path = folder / "meta" / "set.json"
    if not folder.is_dir():
        known = sorted(each.name for each in folder.parent.iterdir()) if folder.parent.is_dir() else []
        raise SetError(
            f"There is no set {name!r} in {workspace}; it has {', '.join(known) or 'none'}. Build it: stmae-data build."
        )
    if not path.is_file():
        raise SetError(
            f"Set {name} has no meta/set.json, so its build has not finished; run the same stmae-data build again."
        )
    seal = files.read_json(path)
    try:
        shards = tuple(
            ShardInfo(
                line["name"],
                split,
                line["sha256"],
                line["bytes"],
                line["samples"],
                line["seconds"],
                line["ledger_sha256"],
            )
            for split, content in sorted(seal["splits"].items())
            for line in content["shards"]
        )
        found = ShardSet(folder, seal["name"], seal["version"], seal["digest"], shards, seal)
    except (KeyError, TypeError) as error:
        raise SetError(
            f"{path} lacks {error}; it was not written by this program or is damaged: verify the set."
        ) from error
    for shard in shards:
        tar = folder / f"{shard.name}.tar"
        if not re.fullmatch(r"[a-z]+-\d{6}", shard.name) or not tar.is_file():
            raise SetError(
                f"Set {name}: shard {shard.name}.tar is missing; rebuild it: stmae-data build, or verify the set."
            )
        if tar.stat().st_size != shard.bytes:
            raise SetError(
                f"Set {name}: {shard.name}.tar has {tar.stat().st_size} bytes, set.json says {shard.bytes}; it was cut or changed: verify the set."
            )
    return found


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """All samples of a set's split (or selection) in stored order, as columns of equal length N.

    `shard_paths[shard[i]]` at `media_offset[i]`, `media_bytes[i]` long, holds the clip `clip_ids[i]`;
    `label_index` is -1 where there is no label.
    """

    reference: SetRef
    digest: str
    layout: str
    shard_paths: tuple[Path, ...]
    clip_ids: NDArray[np.object_]
    shard: NDArray[np.int32]
    media_offset: NDArray[np.int64]
    media_bytes: NDArray[np.int64]
    num_frames: NDArray[np.int64]
    fps: NDArray[np.float64]
    label_index: NDArray[np.int32]
    labels: NDArray[np.object_]
    stored_sha256: NDArray[np.object_]
    media_kind: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.clip_ids)


def sample_index(workspace: Path, reference: SetRef) -> SampleIndex:
    """Read the sample index of a set reference through `set.json`, its ledgers and, where named, the selection.

    `digest` is the selection's digest where one is named, else the set's.

    Raises:
        SetError: the set, split or selection is missing or not usable, or no sample is left.
    """
    found = open_set(workspace, reference.set_name)
    shards = found.of_split(reference.split)
    connection = files.connect()
    try:
        paths = [str(path) for path in found.ledgers(reference.split)]
        query = """
            SELECT clip_id, shard, media_offset, media_bytes, coalesce(stored_num_frames, 1) AS num_frames,
                   coalesce(stored_fps, 0) AS fps, stored_sha256, media_kind,
                   coalesce([a.label_index FOR a IN annotations IF a.label_index IS NOT NULL][1], -1) AS label_index,
                   [a.label_raw FOR a IN annotations IF a.label_raw IS NOT NULL][1] AS label
            FROM read_parquet(?) AS book WHERE outcome = 'written'"""
        digest, parameters = found.digest, [paths]
        if reference.selection is not None:
            selected, digest = _selection(workspace, reference, found)
            query += " AND clip_id IN (SELECT clip_id FROM read_parquet(?))"
            parameters.append([str(selected)])
        columns = connection.execute(query + " ORDER BY shard, ordinal", parameters).fetchnumpy()
    finally:
        connection.close()
    if not len(columns["clip_id"]):
        raise SetError(f"{reference} holds no sample; see what was dropped: stmae-data stats {reference.set_name}")
    order = {shard.name: number for number, shard in enumerate(shards)}
    return SampleIndex(
        reference=reference,
        digest=digest,
        layout=str(found.seal["recipe"].get("layout", "original")),
        shard_paths=tuple(found.folder / f"{shard.name}.tar" for shard in shards),
        clip_ids=np.asarray(columns["clip_id"], dtype=object),
        shard=np.array([order[name] for name in columns["shard"]], dtype=np.int32),
        media_offset=np.asarray(columns["media_offset"], dtype=np.int64),
        media_bytes=np.asarray(columns["media_bytes"], dtype=np.int64),
        num_frames=np.asarray(columns["num_frames"], dtype=np.int64),
        fps=np.asarray(columns["fps"], dtype=np.float64),
        label_index=np.asarray(columns["label_index"], dtype=np.int32),
        labels=np.asarray([None if label is np.ma.masked else label for label in columns["label"]], dtype=object),
        stored_sha256=np.asarray(columns["stored_sha256"], dtype=object),
        media_kind=np.asarray(columns["media_kind"], dtype=object),
    )


def _selection(workspace: Path, reference: SetRef, found: ShardSet) -> tuple[Path, str]:
    """The parquet and digest of a named selection, refused when its set has changed since."""
    base = workspace / "selections" / f"{reference.selection}.json"
    if not base.is_file():
        raise SetError(
            f"There is no selection {reference.selection!r} in {workspace}; make it: stmae-data select {reference.selection} --from {reference.set_name}"
        )
    description = files.read_json(base)
    parents = {parent["name"]: parent["digest"] for parent in description["parents"]}
    if parents.get(found.name) != found.digest:
        raise SetError(
            f"Selection {reference.selection} was made from another state of {found.name} (digest {str(parents.get(found.name))[:12]}, "
            f"now {found.digest[:12]}); make it again under a new name: stmae-data select."
        )
    return base.with_suffix(".parquet"), str(description["digest"])
