"""What a card may say: read from `set.json`, the ledgers and, where it is the very one, the shipped manifest. Unknown stays out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stmae_data import files
from stmae_data.manifest import Manifest, load_manifest, shipped
from stmae_data.shards import ShardSet, open_set

__all__ = ["CardFacts", "Rights", "SplitFacts", "read_facts", "rights_of"]


@dataclass(frozen=True, slots=True)
class Rights:
    """What is on record about passing clips on: one line for each licence text, with the clips it stands for."""

    license: str | None
    license_origin: str | None
    is_redistributable: bool | None
    num_clips: int


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """One split in numbers; `tars` are the shards that hold samples, `is_whole` says that none is empty."""

    name: str
    num_clips: int
    hours: float
    stored_bytes: int
    num_labels: int
    tars: tuple[str, ...]
    is_whole: bool


@dataclass(frozen=True, slots=True)
class CardFacts:
    """Everything both cards are written from.

    `labels` stand in the order of their index where every label has one, else sorted. `datasets` counts clips by (data set, release),
    `platforms` by where their source is from, `tables` are the sha256 of the annotation tables.
    """

    found: ShardSet
    splits: tuple[SplitFacts, ...]
    rights: tuple[Rights, ...]
    labels: tuple[str, ...]
    label_indices: tuple[int, ...] | None
    datasets: Mapping[tuple[str, str], int]
    platforms: Mapping[str, int]
    tables: tuple[str, ...]
    num_fetched: int
    has_boxes: bool
    is_image_set: bool
    num_removed: int
    manifest: Manifest | None

    @property
    def num_clips(self) -> int:
        """Samples over all splits."""
        return sum(split.num_clips for split in self.splits)

    @property
    def extension(self) -> str:
        """Extension of the media members."""
        return "jpg" if self.is_image_set else "mp4"

    @property
    def title(self) -> str:
        """The manifest's title where it is known, else the set's name."""
        source = self.manifest.title if self.manifest is not None else None
        return f"{self.found.name} ({source})" if source else self.found.name

    @property
    def sources(self) -> tuple[Mapping[str, Any], ...]:
        """The source lines of `set.json`."""
        return tuple(self.found.seal.get("sources") or ())


def read_facts(workspace: Path, set_name: str) -> CardFacts:
    """Gather the facts of a sealed set.

    Raises:
        SetError: the set is missing, unsealed or its ledgers are damaged.
    """
    found = open_set(workspace, set_name, books_only=True)
    ledgers = found.ledgers()
    labels, indices = _labels(ledgers)
    general = files.read_table(
        ledgers,
        """SELECT count(*) FILTER (media_kind = 'image') AS images, count(*) FILTER (resolved_url IS NOT NULL) AS fetched,
                  count(*) FILTER (len([a FOR a IN annotations IF len(a.boxes) > 0]) > 0) AS boxed
           FROM book WHERE outcome = 'written'""",
    )[0]
    removed = found.folder / "meta" / "removed.parquet"
    return CardFacts(
        found=found,
        splits=tuple(_split(found, split) for split in found.splits),
        rights=rights_of(found),
        labels=labels,
        label_indices=indices,
        datasets={
            (row["dataset"], row["release"]): row["n"]
            for row in files.read_table(
                ledgers,
                """SELECT note.dataset AS dataset, note.release AS release, count(DISTINCT clip_id) AS n
                   FROM (SELECT clip_id, unnest(annotations) AS note FROM book WHERE outcome = 'written')
                   WHERE note.dataset IS NOT NULL GROUP BY ALL ORDER BY ALL""",
            )
        },
        platforms=_counted(ledgers, "platform"),
        tables=tuple(
            row["sha256"]
            for row in files.read_table(
                ledgers,
                """SELECT DISTINCT note.annotation_sha256 AS sha256 FROM (SELECT unnest(annotations) AS note FROM book)
                   WHERE note.annotation_sha256 IS NOT NULL ORDER BY ALL""",
            )
        ),
        num_fetched=general["fetched"],
        has_boxes=general["boxed"] > 0,
        is_image_set=general["images"] > 0,
        num_removed=files.read_table(removed, "SELECT count(*) AS n FROM book")[0]["n"] if removed.is_file() else 0,
        manifest=_manifest_of(found.seal),
    )


def rights_of(found: ShardSet) -> tuple[Rights, ...]:
    """What the ledgers say about passing the written clips on, most clips first."""
    rows = files.read_table(
        found.ledgers(),
        """SELECT license, license_origin, is_redistributable, count(*) AS num_clips FROM book WHERE outcome = 'written'
           GROUP BY ALL ORDER BY num_clips DESC, license, license_origin""",
    )
    return tuple(Rights(**row) for row in rows)


def _split(found: ShardSet, split: str) -> SplitFacts:
    shards = found.of_split(split)
    labels = files.read_table(
        found.ledgers(split),
        """SELECT count(DISTINCT note.label_raw) AS n FROM
           (SELECT unnest(annotations) AS note FROM book WHERE outcome = 'written')""",
    )[0]["n"]
    tars = tuple(f"{shard.name}.tar" for shard in shards if shard.samples)
    return SplitFacts(
        split,
        sum(shard.samples for shard in shards),
        sum(shard.seconds for shard in shards) / 3600,
        sum(shard.bytes for shard in shards),
        labels,
        tars,
        len(tars) == len(shards),
    )


def _labels(ledgers: list[Path]) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    rows = files.read_table(
        ledgers,
        """SELECT note.label_raw AS label, min(note.label_index) AS index, count(DISTINCT note.label_index) AS n FROM
           (SELECT unnest(annotations) AS note FROM book WHERE outcome = 'written')
           WHERE note.label_raw IS NOT NULL GROUP BY ALL ORDER BY label""",
    )
    indices = [row["index"] for row in rows]
    if all(row["n"] == 1 for row in rows) and len(set(indices)) == len(rows):
        rows.sort(key=lambda row: row["index"])
        return tuple(row["label"] for row in rows), tuple(row["index"] for row in rows)
    return tuple(row["label"] for row in rows), None


def _counted(ledgers: list[Path], column: str) -> dict[str, int]:
    query = f"SELECT {column} AS value, count(*) AS n FROM book WHERE outcome = 'written' AND {column} IS NOT NULL GROUP BY ALL ORDER BY ALL"
    return {row["value"]: row["n"] for row in files.read_table(ledgers, query)}


def _manifest_of(seal: Mapping[str, Any]) -> Manifest | None:
    """The shipped manifest, only where it is the one the set was made from."""
    created = seal.get("created_from") or {}
    if created.get("manifest") in shipped():
        manifest = load_manifest(str(created["manifest"]))
        if manifest.sha256 == created.get("manifest_sha256"):
            return manifest
    return None
