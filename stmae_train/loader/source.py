"""One set of a run: its sample index, its open shards, and the decoded planes of any sample."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stmae_data import frames
from stmae_data.errors import SetError
from stmae_data.records import SetRef
from stmae_data.shards import SampleIndex, open_set, read_range, sample_index
from stmae_train.errors import DataMismatch
from stmae_train.runlog import data_entry

__all__ = ["ClipSource", "check_labels", "open_sources"]

Ints = NDArray[np.int64]

LAYERED = "layered-4"


@dataclass(slots=True)
class ClipSource:
    """Samples of one set reference; `rows` are the ones in use (all, or only those with a label)."""

    index: SampleIndex
    rows: Ints
    ledgers: tuple[Path, ...] = ()
    version: int = 0
    set_digest: str = ""
    _descriptors: dict[int, int] = field(default_factory=dict, init=False, repr=False)
    _checked: set[int] = field(default_factory=set, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_layered(self) -> bool:
        """Whether every 4th frame can be decoded alone."""
        return self.index.layout == LAYERED

    def media(self, row: int) -> bytes:
        """The stored video of the sample `row` of the index; its first read is checked against the ledger's sha256.

        Raises:
            SetError: the shard is shorter than its ledger says, or holds other bytes.
        """
        shard = int(self.index.shard[row])
        if shard not in self._descriptors:
            self._descriptors[shard] = os.open(self.index.shard_paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        offset, size = int(self.index.media_offset[row]), int(self.index.media_bytes[row])
        name = self.index.shard_paths[shard].name
        data = read_range(self._descriptors[shard], offset, size, name=name)
        if row not in self._checked:
            if hashlib.sha256(data).hexdigest() != self.index.stored_sha256[row]:
                raise SetError(
                    f"{name} holds other bytes at {offset} than its ledger says; rebuild the shard: stmae-data build, or verify the set."
                )
            self._checked.add(row)
        return data

    def planes(self, row: int, clips: Sequence[Sequence[int]]) -> frames.Planes:
        """Decode the union of the frames that the clips want.

        Raises:
            ClipRejected or SetError: the sample is damaged.
        """
        return frames.read_clips(self.media(row), clips, layout=self.index.layout)

    def entry(self, role: str, *, clips_drawn: int | None = None) -> dict[str, Any]:
        """The line of `data.json`: `role` is train or eval, `clips_drawn` what training draws in all."""
        index = self.index
        return data_entry(
            reference=str(index.reference),
            role=role,
            digest=index.digest,
            set_digest=self.set_digest,
            version=self.version,
            layout=index.layout,
            clip_ids=[str(each) for each in index.clip_ids[self.rows]],
            ledgers=self.ledgers,
            clips_drawn=clips_drawn,
        )

    def close(self) -> None:
        """Close the shards."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def __del__(self) -> None:
        # Descriptors are plain numbers: nobody else would close them, and a study opens many sources in one process.
        self.close()


def open_sources(workspace: Path, references: Sequence[str], *, labelled: bool = False) -> list[ClipSource]:
    """Open set references of a workspace.

    Args:
        workspace: folder of the sets.
        references: SET[:SPLIT][/SELECTION][@WEIGHT] each.
        labelled: keep only samples that have a label.

    Raises:
        SetError, UsageError: a reference cannot be read.
        DataMismatch: no reference, or no labelled sample.
    """
    if not references:
        raise DataMismatch("No set was given to read; name at least one: --shards SET.")
    sources = []
    for text in references:
        reference = SetRef.parse(text)
        index = sample_index(workspace, reference)
        opened = open_set(workspace, reference.set_name)
        rows = np.flatnonzero(index.label_index >= 0) if labelled else np.arange(len(index))
        if not len(rows):
            raise DataMismatch(
                f"{reference} has {len(index)} samples and none with a label; give a labelled set or split."
            )
        ledgers = tuple(opened.ledgers(reference.split))
        sources.append(ClipSource(index, rows.astype(np.int64), ledgers, opened.version, opened.digest))
    return sources


def check_labels(train: Sequence[ClipSource], evaluation: Sequence[ClipSource]) -> int:
    """The number of classes, after checking that one label index means one label everywhere.

    Raises:
        DataMismatch: an index stands for two labels, or the evaluation set has a class that training never shows.
    """
    names: dict[int, tuple[str, str]] = {}
    for source in (*train, *evaluation):
        for index, label in {(int(source.index.label_index[row]), source.index.labels[row]) for row in source.rows}:
            known = names.setdefault(index, (str(label), str(source.index.reference)))
            if known[0] != str(label):
                raise DataMismatch(
                    f"Label {index} is {known[0]!r} in {known[1]} and {label!r} in {source.index.reference}; sets that are trained and "
                    f"tested together need one class list: build them from one annotation table."
                )
    return max(names) + 1
