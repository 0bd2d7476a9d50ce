"""What training reads of a set: every sample's place, length and label as columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stmae_data import files
from stmae_data.errors import SetError
from stmae_data.records import SetRef
from stmae_data.shards.seal import ShardSet, open_set
from stmae_data.shards.selected import selected_ids

__all__ = ["SampleIndex", "sample_index"]


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
        SetError: the set, split or selection is missing or not usable, or no sample is left; SelectionError: table and description of
            the selection do not belong together.
    """
    found = open_set(workspace, reference.set_name, books_only=True)
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
    """The parquet and digest of a named selection, refused when its set has changed since, or when they do not belong together."""
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
    selected_ids(base.with_suffix(".parquet"), description)
    return base.with_suffix(".parquet"), str(description["digest"])
