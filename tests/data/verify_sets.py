"""Tiny sealed sets of random bytes, made with the real writers: what the tests of catalogue, verify and report look at."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from pathlib import Path
from typing import Any

from stmae_data import files
from stmae_data.errors import SetError
from stmae_data.records import PLAN_COLUMNS, make_row_id, plan_key, set_folder, web_clip_id
from stmae_data.shards import (
    Sample,
    commit_ledger,
    commit_shard,
    iterate_tar,
    ledger_path,
    sample_json,
    seal_set,
    shard_info,
    shard_name,
)

LABELS = ("running in circles", "falling", "zigzag")
PLAN = PLAN_COLUMNS


def make_set(
    workspace: Path,
    name: str,
    *,
    clips: int = 5,
    splits: tuple[str, ...] = ("train", "val"),
    shard_size: int = 8,
    seed: int = 0,
    media_bytes: int = 700,
    failed: int = 1,
    duplicates: int = 1,
    web: dict[str, Any] | None = None,
    is_sealed: bool = True,
    media: list[bytes] | None = None,
) -> Path:
    """A set of `clips` written clips a split, plus `failed` rows and `duplicates` of the first clip of every split."""
    folder = set_folder(workspace, name)
    plan: list[dict[str, Any]] = []
    infos = []
    counts: dict[str, Any] = {"planned": 0, "written": 0, "dropped": 0, "failed": 0, "reasons": {}}
    for split in splits:
        rows = [_row(split, number, seed, media_bytes, web or {}, media) for number in range(clips)]
        rows += [_failed(split, number) for number in range(failed)]
        rows += [_duplicate(rows[0], split, number) for number in range(duplicates)]
        rows.sort(key=lambda row: (row["plan_order"], row["row_id"]))
        for number in range(0, len(rows), shard_size):
            shard = shard_name(split, number // shard_size)
            part = rows[number : number + shard_size]
            for row in part:
                row["shard"] = shard
                plan.append({column: row.get(column) for column in PLAN_COLUMNS} | {"ordinal": len(plan)})
                counts["planned"] += 1
                counts[row["outcome"]] += 1
                if row.get("reason"):
                    counts["reasons"][row["reason"]] = counts["reasons"].get(row["reason"], 0) + 1
            write_shard(folder, shard, part)
            infos.append(shard_info(folder, shard))
    files.commit_table(
        folder / "meta" / "plan.parquet", plan, PLAN_COLUMNS, point="plan", order_by="split, shard, row_id"
    )
    if is_sealed:
        seal(folder, infos, name=name, counts=counts)
    return folder


def seal(folder: Path, infos: list[Any], *, name: str, counts: dict[str, Any]) -> str:
    """Seal with the facts a build would give."""
    return seal_set(
        folder,
        infos,
        name=name,
        version=1,
        created_from={
            "manifest": "tiny",
            "manifest_sha256": "ab" * 32,
            "plan_sha256": files.sha256_file(folder / "meta" / "plan.parquet"),
        },
        recipe={"encoding": "layered", "layout": "original", "short_side_px": 64, "seed": 0},
        counts=counts,
        parents=[],
        versions={"stmae": "0.1.0", "python": "3.11", "duckdb": "2.0.0"},
    )


def write_seal(folder: Path, document: dict[str, Any]) -> None:
    """Write a changed `set.json` as if it had been sealed so: what it says is wrong, its own sha256 is right."""
    document.pop("seal_sha256", None)
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    document["seal_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / "meta" / "set.json").write_text(text)


def reseal(folder: Path) -> None:
    """Seal what stands there now, whatever it is: damage below then shows by itself."""
    document = json.loads((folder / "meta" / "set.json").read_text())
    infos = []
    for path in sorted(folder.glob("*.tar")):
        info = shard_info(folder, path.stem)
        with path.open("rb") as stream:
            try:
                samples = sum(not member.name.endswith(".json") for member in iterate_tar(stream, name=path.name))
            except SetError:
                samples = info.samples
        infos.append(
            dataclasses.replace(info, sha256=files.sha256_file(path), bytes=path.stat().st_size, samples=samples)
        )
    seal(folder, infos, name=document["name"], counts=count(folder))


def count(folder: Path) -> dict[str, Any]:
    """Outcomes as the ledgers tell them."""
    ledgers = sorted((folder / "meta" / "ledger").glob("*.parquet"))
    rows = files.read_table(ledgers, "SELECT outcome, reason, count(*) AS n FROM book GROUP BY ALL")
    counts: dict[str, Any] = {"planned": 0, "written": 0, "dropped": 0, "failed": 0, "reasons": {}}
    for row in rows:
        counts["planned"] += row["n"]
        counts[row["outcome"]] = counts.get(row["outcome"], 0) + row["n"]
        if row["reason"]:
            counts["reasons"][row["reason"]] = counts["reasons"].get(row["reason"], 0) + row["n"]
    return counts


def change_ledger(folder: Path, shard: str, statement: str) -> None:
    """Rewrite one ledger with an UPDATE or DELETE on `book`, its footer kept."""
    path = ledger_path(folder, shard)
    footer = files.read_table_metadata(path)
    connection = files.connect()
    try:
        connection.execute("CREATE TABLE book AS SELECT * FROM read_parquet(?)", [str(path)])
        connection.execute(statement)
        metadata = {key: footer[key] for key in ("tar_sha256", "tar_bytes")}
        files.copy_table(connection, "SELECT * FROM book", path, point="test", metadata=metadata)
    finally:
        connection.close()


def write_shard(folder: Path, shard: str, rows: list[dict[str, Any]]) -> None:
    """Tar and ledger of one shard; rows that are written get their places."""
    written = [row for row in rows if row["outcome"] == "written"]
    samples = [Sample(row["clip_id"], description(row), row["_media"]) for row in written]
    placements, _, _ = commit_shard(folder / f"{shard}.tar", samples)
    for row, place in zip(written, placements, strict=True):
        row.update(
            ordinal=place.ordinal,
            json_offset=place.json_offset,
            json_bytes=place.json_bytes,
            media_offset=place.media_offset,
            media_bytes=place.media_bytes,
        )
    commit_ledger(folder, shard, rows)


def description(row: dict[str, Any]) -> bytes:
    """The sample json of a row, every field there."""
    note = row["annotations"][0]
    return sample_json(
        {
            "clip_id": row["clip_id"],
            "dataset": note["dataset"],
            "release": note["release"],
            "split": row["split"],
            "label": note["label_raw"],
            "label_index": note["label_index"],
            "fps": row["stored_fps"],
            "num_frames": row["stored_num_frames"],
            "width_px": row["stored_width_px"],
            "height_px": row["stored_height_px"],
            "layout": "original",
            "source_sha256": row["source_sha256"],
            "text": row.get("title"),
            "tags": [tag["tag"] for tag in row["tags"]],
        }
    )


def _row(
    split: str, number: int, seed: int, media_bytes: int, web: dict[str, Any], media: list[bytes] | None
) -> dict[str, Any]:
    stored = (
        media[number % len(media)] if media else random.Random(f"{seed}{split}{number}").randbytes(media_bytes + number)
    )
    source_sha256 = hashlib.sha256(f"source {seed} {split} {number}".encode()).hexdigest()
    clip_id = web_clip_id(source_sha256)
    uri = f"{split}/{seed}-{number}.mp4"
    label = number % len(LABELS)
    return {
        "row_id": make_row_id(split, uri, None, None, None),
        "split": split,
        "plan_order": plan_key(0, clip_id),
        "clip_id": clip_id,
        "media_kind": "video",
        "platform": "file",
        "annotations": [
            {"dataset": "tiny", "release": "1", "split": split, "label_raw": LABELS[label], "label_index": label}
        ],
        "source_uri": uri,
        "source_bytes": 2 * len(stored),
        "source_sha256": source_sha256,
        "tags": [{"tag": "motion", "origin": "tag"}],
        "flags": ["vfr"] if number == 0 else [],
        "outcome": "written",
        "width_px": 320,
        "height_px": 240,
        "fps": 25.0,
        "num_frames": 60 + number,
        "duration_seconds": 2.0 + number / 10,
        "stored_bytes": len(stored),
        "stored_sha256": hashlib.sha256(stored).hexdigest(),
        "stored_width_px": 86,
        "stored_height_px": 64,
        "stored_fps": 30.0,
        "stored_num_frames": 60 + number,
        "stored_seconds": 2.0 + number / 10,
        "signals": {"motion": number / 10, "black_share": 0.0},
        **web,
        "_media": stored,
    }


def _failed(split: str, number: int) -> dict[str, Any]:
    uri = f"{split}/broken-{number}.mp4"
    return {
        "row_id": make_row_id(split, uri, None, None, None),
        "split": split,
        "plan_order": plan_key(0, uri),
        "media_kind": "video",
        "platform": "file",
        "annotations": [],
        "source_uri": uri,
        "source_bytes": 0,
        "outcome": "failed",
        "reason": "empty",
        "reason_detail": "0 bytes",
    }


def _duplicate(first: dict[str, Any], split: str, number: int) -> dict[str, Any]:
    uri = f"{split}/copy-{number}.mp4"
    return {
        **{
            column: first[column]
            for column in ("split", "plan_order", "clip_id", "media_kind", "platform", "annotations")
        },
        "row_id": make_row_id(split, uri, None, None, None),
        "source_uri": uri,
        "source_bytes": first["source_bytes"],
        "source_sha256": first["source_sha256"],
        "outcome": "dropped",
        "reason": "duplicate",
        "duplicate_of": first["clip_id"],
    }


def decide(folder: Path, run: str, rows: list[dict[str, Any]]) -> None:
    """Write a decision file."""
    from stmae_data.catalog.books import DECISION_COLUMNS

    path = folder / "meta" / "decisions" / f"{run}.parquet"
    files.commit_table(path, rows, DECISION_COLUMNS, point="decisions")


def group(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write `meta/groups.parquet`."""
    from stmae_data.catalog.books import GROUP_COLUMNS

    files.commit_table(folder / "meta" / "groups.parquet", rows, GROUP_COLUMNS, point="groups")
