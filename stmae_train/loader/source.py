"""One set of a run: its sample index, its open shards, and the decoded planes of any sample."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stmae_data import frames
from stmae_data.errors import SetError
from stmae_data.records import SetRef
from stmae_data.shards import (
    Pin,
    RangeCache,
    SampleIndex,
    StoreReader,
    foreign_set,
    is_foreign,
    open_set,
    read_range,
    sample_index,
    shards_on_store,
    store_url,
)
from stmae_train.errors import DataMismatch
from stmae_train.runlog import data_entry, foreign_entry

__all__ = ["ClipSource", "check_labels", "open_sources"]

LOGGER = logging.getLogger("stmae.train")
Ints = NDArray[np.int64]

LAYERED = "layered-4"
PICTURES = "image"


@dataclass(slots=True)
class ClipSource:
    """Samples of one set reference; `rows` are the ones in use (all, or only those with a label).

    Tars of other tools have no ledgers, no checksums and no version; `left_out` says which of their samples cannot be read, and why.
    Shards numbered in `on_store` are read through `store`, which keeps what was read on this disk.
    """

    index: SampleIndex
    rows: Ints
    ledgers: tuple[Path, ...] = ()
    version: int = 0
    set_digest: str = ""
    left_out: dict[str, str] = field(default_factory=dict)
    store: StoreReader | None = None
    on_store: frozenset[int] = frozenset()
    _descriptors: dict[int, int] = field(default_factory=dict, init=False, repr=False)
    _checked: set[int] = field(default_factory=set, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_layered(self) -> bool:
        """Whether every 4th frame can be decoded alone."""
        return self.index.layout == LAYERED

    @property
    def is_foreign(self) -> bool:
        """Whether these are tars of other tools, about which nothing can be proven."""
        return not self.version

    @property
    def is_of_pictures(self) -> bool:
        """Whether samples are pictures: a clip of one is that picture again and again."""
        return self.index.layout == PICTURES

    def clip_id(self, row: int) -> str:
        """Name of the sample `row` of the index."""
        return str(self.index.clip_ids[row])

    def media(self, row: int) -> bytes:
        """The stored video of the sample `row` of the index; its first read is checked against the ledger's sha256.

        Raises:
            SetError: the shard is shorter than its ledger says, or holds other bytes.
            StorageError: the store it stands on does not answer, or the disk is full.
        """
        pin = self.pin(row)
        if pin is not None:
            with contextlib.closing(pin):
                return pin.read()
        shard = int(self.index.shard[row])
        if shard not in self._descriptors:
            self._descriptors[shard] = os.open(self.index.shard_paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        offset, size = int(self.index.media_offset[row]), int(self.index.media_bytes[row])
        name = self.index.shard_paths[shard].name
        data = read_range(self._descriptors[shard], offset, size, name=name)
        if row not in self._checked and self.index.stored_sha256[row] is not None:
            if hashlib.sha256(data).hexdigest() != self.index.stored_sha256[row]:
                raise SetError(
                    f"{name} holds other bytes at {offset} than its ledger says; rebuild the shard: stmae-data build, or verify the set."
                )
            self._checked.add(row)
        return data

    def pin(self, row: int) -> Pin | None:
        """Bring the sample here where its shard stands on a store, check its first bytes, and hold it; raises as `media`."""
        index, shard = self.index, int(self.index.shard[row])
        if self.store is None or shard not in self.on_store:
            return None
        offset, size = int(index.media_offset[row]), int(index.media_bytes[row])
        name, sha256 = index.shard_paths[shard].name, str(index.stored_sha256[row])
        pin = self.store.pin(name, offset, size, sha256, is_checked=row in self._checked)
        self._checked.add(row)
        return pin

    def trust(self, row: int) -> None:
        """A sample of a store that another process has checked and holds needs no second check in this one."""
        if int(self.index.shard[row]) in self.on_store:
            self._checked.add(row)

    def keep_at_most(self, limit_bytes: int) -> None:
        """Bound what stands on this disk of shards on a store."""
        if self.store is not None:
            self.store = replace(self.store, cache=replace(self.store.cache, limit_bytes=limit_bytes))

    def planes(self, row: int, clips: Sequence[Sequence[int]]) -> frames.Planes:
        """Decode the union of the frames that the clips want.

        Raises:
            ClipRejected or SetError: the sample is damaged.
        """
        return frames.read_clips(self.media(row), clips, layout=self.index.layout)

    def picture(self, row: int) -> NDArray[np.uint8]:
        """A picture as RGB [H, W, 3].

        Raises:
            SetError: the sample is damaged.
        """
        return frames.read_picture(self.media(row))

    def entry(self, role: str, *, clips_drawn: int | None = None) -> dict[str, Any]:
        """The line of `data.json`: `role` is train or eval, `clips_drawn` what training draws in all."""
        index = self.index
        if self.is_foreign:
            return foreign_entry(
                reference=str(index.reference),
                role=role,
                digest=index.digest,
                layout=index.layout,
                clips=len(self.rows),
                shards=[str(path) for path in index.shard_paths],
                left_out=self.left_out,
                clips_drawn=clips_drawn,
            )
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
        references: SET[:SPLIT][/SELECTION][@WEIGHT] each; or tars of other tools, by name or pattern, which are one set together.
        labelled: keep only samples that have a label.

    Raises:
        SetError, UsageError: a reference cannot be read.
        DataMismatch: no reference, or no labelled sample.
    """
    if not references:
        raise DataMismatch("No set was given to read; name at least one: --shards SET.")
    opened = [_open_foreign(workspace, texts) for texts in _foreign(references)]
    opened += [_open_sealed(workspace, text) for text in references if not is_foreign(text)]
    if labelled:
        opened = [replace(each, rows=np.flatnonzero(each.index.label_index >= 0)) for each in opened]
    for source in opened:
        if not len(source):
            raise DataMismatch(
                f"{source.index.reference} has {len(source.index)} samples and none with a label; give a labelled set or split."
            )
    return opened


def _foreign(references: Sequence[str]) -> Iterator[list[str]]:
    """References to tars, those without a weight together: a shell hands over a list where a pattern was typed."""
    found = [text for text in references if is_foreign(text)]
    together = [text for text in found if "@" not in text]
    if together:
        yield together
    yield from ([text] for text in found if "@" in text)


def _open_foreign(workspace: Path, texts: Sequence[str]) -> ClipSource:
    found = foreign_set(workspace, texts)
    index = found.index
    LOGGER.warning(
        "Nothing can be proven about %s (%d samples of %d tars of other tools): no checksums, no ledger, no leak check; build a set from them: "
        "stmae-data build.",
        index.reference,
        len(index),
        len(index.shard_paths),
    )
    if found.left_out:
        name, why = next(iter(found.left_out.items()))
        LOGGER.warning(
            "%d samples of %s are left out; the first is %s: %s", len(found.left_out), index.reference, name, why
        )
    return ClipSource(index, np.arange(len(index)), left_out=found.left_out)


def _open_sealed(workspace: Path, text: str) -> ClipSource:
    reference = SetRef.parse(text)
    index = sample_index(workspace, reference)
    opened = open_set(workspace, reference.set_name, books_only=True)
    ledgers = tuple(opened.ledgers(reference.split))
    found = ClipSource(index, np.arange(len(index)), ledgers, opened.version, opened.digest)
    away, url = shards_on_store(opened), store_url(opened.folder)
    if away and url is not None:
        found.store = StoreReader(url, RangeCache(workspace / "cache" / "ranges"))
        found.on_store = frozenset(number for number, path in enumerate(index.shard_paths) if path.stem in away)
    return found


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
