"""Planning: name every row, lay rows out by hash(seed, clip id), cut the line into shards, commit the plan before work starts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stmae_data import files, media
from stmae_data.errors import ClipRejected, Reason, SetError
from stmae_data.manifest import Manifest
from stmae_data.records import PLAN_COLUMNS, SCHEMA_VERSION, SourceRow, is_valid_key, make_row_id, plan_key, web_clip_id
from stmae_data.shards import shard_name
from stmae_data.sources import SourceListing, open_member, source_path

__all__ = ["Plan", "extend_plan", "load_plan", "open_bytes"]

_BYTES_PER_SECOND = 60_000
"""A layered 256-pixel clip takes 0.3 to 1.0 MB in 10 s (PERFORMANCE)."""
_UNKNOWN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A committed plan: how many rows each shard holds, and the settings every shard is made with."""

    shards: dict[str, int]
    row_ids: frozenset[str]
    settings: dict[str, Any]

    @property
    def num_rows(self) -> int:
        """Rows over all shards."""
        return sum(self.shards.values())

    def task_settings(self) -> dict[str, Any]:
        """What a worker needs beside the rows."""
        return {key: self.settings[key] for key in ("encoding", "short_side_px", "dataset", "release", "run_id")}


def load_plan(folder: Path) -> Plan | None:
    """The committed plan of a set, or None where there is none yet."""
    table = folder / "meta" / "plan.parquet"
    if not table.exists():
        return None
    rows = files.read_table(table, "SELECT row_id, shard FROM book ORDER BY shard, ordinal")
    shards: dict[str, int] = defaultdict(int)
    for row in rows:
        shards[row["shard"]] += 1
    settings = files.read_json(folder / "meta" / "plan.json")
    return Plan(dict(sorted(shards.items())), frozenset(row["row_id"] for row in rows), settings)


def extend_plan(
    plan: Plan | None,
    *,
    folder: Path,
    manifest: Manifest,
    settings: dict[str, Any],
    listing: SourceListing,
    workers: int,
    progress: Callable[[str, int, int], None] | None,
) -> Plan:
    """Plan the rows that are not planned yet behind those that are, and commit; nothing new leaves the plan as it is.

    Raises:
        SetError: the set was planned with other settings.
    """
    if plan is not None:
        _refuse_other_settings(plan.settings, settings, folder)
    known = plan.row_ids if plan else frozenset()
    fresh = [row for row in listing.rows if row_id_of(row) not in known]
    if plan is not None and not fresh:
        return plan
    planned = list(_lay_out(_named(fresh, workers=workers, progress=progress), manifest, settings["seed"], plan))
    run_id = "build-" + files.sha256_text("\n".join(sorted(row["row_id"] for row in planned)))[:12]
    old = files.read_table(folder / "meta" / "plan.parquet") if plan else []
    everything = {
        **settings,
        "schema_version": SCHEMA_VERSION,
        "dataset": manifest.name,
        "release": manifest.release,
        "run_id": run_id,
    }
    if listing.reconciliation:
        files.commit_table(
            folder / "meta" / "reconciliation.parquet", listing.reconciliation, _RECONCILIATION, point="reconciliation"
        )
    files.commit_json(folder / "meta" / "plan.json", everything, point="plan-settings")
    files.commit_table(folder / "meta" / "plan.parquet", [*old, *planned], PLAN_COLUMNS, point="plan")
    committed = load_plan(folder)
    assert committed is not None
    return committed


_RECONCILIATION = {
    "split": "VARCHAR",
    "label": "VARCHAR",
    "annotated": "BIGINT",
    "present": "BIGINT",
    "missing": "BIGINT",
    "unannotated": "BIGINT",
}


def _refuse_other_settings(planned: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    for key, value in wanted.items():
        if planned[key] != value:
            raise SetError(
                f"Set {folder.name} was planned with {key} {planned[key]!r}, this build wants {value!r}; "
                f"keep the old value or build another set with --name."
            )


def row_id_of(row: SourceRow) -> str:
    """The row's id in its set (FORMATS)."""
    return make_row_id(row.split, row.source_uri, row.source_member, row.start_ms, row.end_ms)


@contextlib.contextmanager
def open_bytes(source_uri: str, source_member: str | None) -> Iterator[int]:
    """A guarded descriptor of a row's bytes: its file, or a member of its archive in memory.

    Raises:
        ClipRejected: the bytes cannot be had.
    """
    if source_member is None:
        with media.open_source(source_path(source_uri)) as descriptor:
            yield descriptor
    else:
        with media.source_of_bytes(b"".join(open_member(source_uri, source_member))) as descriptor:
            yield descriptor


def _named(
    rows: Sequence[SourceRow], *, workers: int, progress: Callable[[str, int, int], None] | None
) -> Iterable[SourceRow]:
    """Give every row that has bytes its clip id; hashing runs in threads, it waits for the disk."""

    def name(row: SourceRow) -> SourceRow:
        if row.problem is not None or row.clip_id is not None:
            return row
        try:
            with open_bytes(row.source_uri, row.source_member) as descriptor:
                sha256 = media.hash_descriptor(descriptor)
        except ClipRejected as rejected:
            return dataclasses.replace(row, problem=(rejected.reason, rejected.detail))
        clip_id = web_clip_id(sha256, start_ms=row.start_ms, end_ms=row.end_ms)
        return dataclasses.replace(row, clip_id=clip_id, source_sha256=sha256)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for number, row in enumerate(pool.map(name, rows), start=1):
            if progress is not None:
                progress("plan", number, len(rows))
            if row.clip_id is not None and not is_valid_key(row.clip_id):
                row = dataclasses.replace(
                    row, clip_id=None, problem=(Reason.NOT_MEDIA, f"no key can be made of {row.clip_id!r}")
                )
            yield row


def _lay_out(rows: Iterable[SourceRow], manifest: Manifest, seed: int, plan: Plan | None) -> Iterable[dict[str, Any]]:
    """Order each split by hash(seed, clip id) and cut it into shards behind those that stand; equal clip ids stay together."""
    splits: dict[str, list[tuple[int, str, SourceRow]]] = defaultdict(list)
    for row in rows:
        row_id = row_id_of(row)
        splits[row.split].append((plan_key(seed, row.clip_id or row_id), row_id, row))
    for split, entries in sorted(splits.items()):
        entries.sort(key=lambda entry: entry[0])  # stable: of equal clips the first source comes first
        per_shard = _rows_per_shard([row for _, _, row in entries], manifest)
        number = sum(1 for name in plan.shards if name.rpartition("-")[0] == split) if plan else 0
        shard_rows: list[dict[str, Any]] = []
        for position, (order, row_id, row) in enumerate(entries):
            starts_new = len(shard_rows) >= per_shard and order != entries[position - 1][0]
            if starts_new:
                yield from shard_rows
                shard_rows, number = [], number + 1
            shard_rows.append(_plan_row(row, row_id, order, shard_name(split, number), len(shard_rows), manifest))
        yield from shard_rows


def _rows_per_shard(rows: Sequence[SourceRow], manifest: Manifest) -> int:
    """How many clips fill a shard: the manifest's count, else its bytes over the mean estimated size of a clip."""
    if manifest.clips_per_shard is not None:
        return manifest.clips_per_shard
    total = 0.0
    for row in rows:
        if row.start_ms is not None and row.end_ms is not None:
            seconds = (row.end_ms - row.start_ms) / 1000
        else:
            seconds = float(row.web.get("listed_duration_seconds") or _UNKNOWN_SECONDS)
        total += seconds * _BYTES_PER_SECOND * (manifest.short_side_px / 256) ** 2
    return max(1, int(manifest.shard_bytes / (total / len(rows))))


def _plan_row(row: SourceRow, row_id: str, order: int, shard: str, ordinal: int, manifest: Manifest) -> dict[str, Any]:
    values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row) if field.name in PLAN_COLUMNS}
    rights = {
        "license": manifest.license,
        "license_origin": manifest.license_origin,
        "is_redistributable": manifest.is_redistributable,
        "citation": manifest.citation,
    }
    return {
        **rights,
        **values,
        **{key: value for key, value in row.web.items() if value is not None},
        "annotations": [dataclasses.asdict(each) for each in row.annotations],
        "flags": list(row.flags),
        "row_id": row_id,
        "shard": shard,
        "ordinal": ordinal,
        "plan_order": order,
        "planned_reason": str(row.problem[0]) if row.problem else None,
        "planned_detail": row.problem[1] if row.problem else None,
    }
