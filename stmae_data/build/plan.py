"""Planning: name every row, lay rows out by hash(seed, clip id), cut the line into shards, commit the plan before work starts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stmae_data import files, media
from stmae_data.build.reconcile import merge_reconciliation
from stmae_data.build.removed import Tombstones, read_tombstones
from stmae_data.errors import ClipRejected, Reason, SetError
from stmae_data.manifest import Manifest
from stmae_data.records import PLAN_COLUMNS, SCHEMA_VERSION, SourceRow, is_valid_key, make_row_id, plan_key, web_clip_id
from stmae_data.shards import ledger_path, shard_name
from stmae_data.sources import SourceListing, open_member, source_path

__all__ = [
    "Plan",
    "extend_plan",
    "lay_out",
    "load_plan",
    "open_bytes",
    "refuse_other_settings",
    "row_id_of",
    "successor_of",
]

_BYTES_PER_SECOND = 60_000
"""A layered 256-pixel clip takes 0.3 to 1.0 MB in 10 s (PERFORMANCE)."""
_UNKNOWN_SECONDS = 10.0
_UNKNOWN_PICTURE_BYTES = 110_000


_Waiting = tuple[str, str, int | None, int | None]


@dataclass(frozen=True, slots=True)
class Plan:
    """A committed plan: how many rows each shard holds, and the settings every shard is made with.

    `shards` has no gap: a shard whose rows have all moved on holds none. `waiting` names the rows of addresses whose copy was not
    here yet, by split, name of the copy or address, and interval.
    """

    shards: dict[str, int]
    row_ids: frozenset[str]
    waiting: dict[_Waiting, str]
    settings: dict[str, Any]

    @property
    def num_rows(self) -> int:
        """Rows over all shards."""
        return sum(self.shards.values())

    def task_settings(self) -> dict[str, Any]:
        """What a worker needs beside the rows."""
        keys = (
            "encoding",
            "short_side_px",
            "probe_level",
            "dataset",
            "release",
            "run_id",
            "max_duration_error_seconds",
        )
        return {key: self.settings.get(key) for key in keys}

    def ledgers(self, folder: Path) -> list[Path]:
        """Paths of the ledgers of all planned shards."""
        return [ledger_path(folder, name) for name in self.shards]


def load_plan(folder: Path) -> Plan | None:
    """The committed plan of a set, or None where there is none yet."""
    table = folder / "meta" / "plan.parquet"
    if not table.exists():
        return None
    settings = folder / "meta" / "plan.json"
    if not settings.is_file():
        raise SetError(
            f"Set {folder.name} has a plan but no settings: {settings} is missing; restore it, or build another set with --name."
        )
    columns = "row_id, shard, split, source_uri, source_member, start_ms, end_ms, url"
    rows = files.read_table(table, f"SELECT {columns} FROM book ORDER BY shard, ordinal")
    counts: dict[str, int] = defaultdict(int)
    last: dict[str, int] = {}
    for row in rows:
        counts[row["shard"]] += 1
        split, _, number = row["shard"].rpartition("-")
        last[split] = max(last.get(split, 0), int(number))
    names = [shard_name(split, number) for split, most in sorted(last.items()) for number in range(most + 1)]
    waiting: dict[_Waiting, str] = {}
    for row in rows:
        if row["source_member"] is not None and row["source_uri"].startswith(("http://", "https://")):
            for name in (row["source_member"][:_COPY_HEX], row["url"]):
                key = (row["split"], name, row["start_ms"], row["end_ms"])
                waiting[key] = row["row_id"] if key not in waiting else _AMBIGUOUS
    return Plan(
        {name: counts.get(name, 0) for name in names},
        frozenset(row["row_id"] for row in rows),
        waiting,
        {"probe_level": "full", **files.read_json(settings)},  # older plans do not name it
    )


_COPY_HEX = 32
"""An address is told from others by the first 32 hex of its hash: its row's member, and the stem of the copy `fetch` leaves."""
_AMBIGUOUS = ""


def successor_of(row: SourceRow, plan: Plan) -> str | None:
    """The planned row that waits for the copy `row` stands for; None for any other row."""
    if not plan.waiting or not row.source_uri.startswith("file://") or row.source_member is not None:
        return None
    stem = row.source_uri.rpartition("/")[2].partition(".")[0]
    for name in (stem, row.web.get("url")):
        if name is not None and (found := plan.waiting.get((row.split, name, row.start_ms, row.end_ms))):
            return found
    return None


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

    Every shard of `plan` is committed: its clips are not written twice.
    """
    known = plan.row_ids if plan else frozenset()
    fresh = [
        row for row in listing.rows if row_id_of(row) not in known and (plan is None or successor_of(row, plan) is None)
    ]
    if plan is not None and not fresh:
        return plan
    planned = lay_out(
        fresh,
        plan,
        folder=folder,
        manifest=manifest,
        seed=settings["seed"],
        workers=workers,
        progress=progress,
    )
    run_id = "build-" + files.sha256_text("\n".join(sorted(row["row_id"] for row in planned)))[:12]
    old = files.read_table(folder / "meta" / "plan.parquet") if plan else []
    everything = {
        **settings,
        "schema_version": SCHEMA_VERSION,
        "dataset": manifest.name,
        "release": manifest.release,
        "max_duration_error_seconds": manifest.max_duration_error_seconds,
        "run_id": run_id,
    }
    merge_reconciliation(folder, listing.reconciliation)
    files.commit_json(folder / "meta" / "plan.json", everything, point="plan-settings")
    files.commit_table(folder / "meta" / "plan.parquet", [*old, *planned], PLAN_COLUMNS, point="plan")
    committed = load_plan(folder)
    assert committed is not None
    return committed


def refuse_other_settings(plan: Plan, wanted: Mapping[str, Any], *, folder: Path) -> None:
    """All shards of a set are made alike.

    Raises:
        SetError: the set was planned with other settings.
    """
    for key, value in wanted.items():
        if plan.settings[key] != value:
            raise SetError(
                f"Set {folder.name} was planned with {key} {plan.settings[key]!r}, this build wants {value!r}; "
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
                sha256 = media.hash_once(descriptor)
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


def lay_out(
    rows: Sequence[SourceRow],
    plan: Plan | None,
    *,
    folder: Path,
    manifest: Manifest,
    seed: int,
    workers: int,
    progress: Callable[[str, int, int], None] | None,
) -> list[dict[str, Any]]:
    """Rows of a plan for a new generation of shards behind those of `plan`: named, decided where that can be, ordered, cut.

    Each split is ordered by hash(seed, clip id); equal clip ids stay together in one shard.
    """
    named = _named(rows, workers=workers, progress=progress)
    tombstones = read_tombstones(folder)
    standing: set[str] = set()
    if plan is not None:
        query = "SELECT clip_id FROM book WHERE outcome = 'written'"
        standing = {row["clip_id"] for row in files.read_table(plan.ledgers(folder), query)}
    decided = _once_per_set([_decided(row, tombstones, standing) for row in named], manifest)
    return list(_cut(decided, manifest, seed, plan))


def _decided(row: SourceRow, tombstones: Tombstones, standing: Collection[str]) -> SourceRow:
    """Say at once why a row will not be written, where the set's books know."""
    if row.problem is not None:
        return row
    problem = tombstones.problem_of_id(row_id_of(row), row.clip_id) or tombstones.problem_of_bytes(
        row.source_sha256, is_cut=row.is_cut, start_ms=row.start_ms, end_ms=row.end_ms
    )
    if problem is None and row.clip_id in standing:
        problem = (Reason.DUPLICATE, _STANDS_ALREADY)
    return row if problem is None else dataclasses.replace(row, problem=problem)


_STANDS_ALREADY = "the same clip stands in this set already"


def _once_per_set(rows: list[SourceRow], manifest: Manifest) -> list[SourceRow]:
    """A clip that several splits offer is kept by one: an evaluation split before others, then the first by name."""
    owners: dict[str, str] = {}
    rank = {split: (split not in manifest.evaluation_splits, split) for split in {row.split for row in rows}}
    for row in rows:
        if row.clip_id is not None and row.problem is None:
            owner = owners.setdefault(row.clip_id, row.split)
            owners[row.clip_id] = min(owner, row.split, key=rank.__getitem__)
    return [
        dataclasses.replace(row, problem=(Reason.DUPLICATE, f"the same clip stands in split {owners[row.clip_id]}"))
        if row.problem is None and row.clip_id is not None and owners[row.clip_id] != row.split
        else row
        for row in rows
    ]


def _cut(rows: Iterable[SourceRow], manifest: Manifest, seed: int, plan: Plan | None) -> Iterator[dict[str, Any]]:
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
        elif row.media_kind == "image":
            total += row.source_bytes or _UNKNOWN_PICTURE_BYTES
            continue
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
