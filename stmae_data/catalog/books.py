"""Which books a workspace has, and how they become tables of a DuckDB connection.

    clip         one row per planned clip of every set: `set_name` and all ledger columns
    written      the rows of `clip` that stand in a shard
    annotation   one row per clip and annotation: set_name, row_id, clip_id, outcome, shard_split, then the annotation's fields
    tag          one row per clip and tag: set_name, row_id, clip_id, tag, origin
    signal       one row per clip and measured signal: set_name, row_id, clip_id, name, value
    decision     what dedup, leaks, filters and removals decided, with evidence, and the `run` it was decided in
    group_member near-duplicate groups: set_name, group_id, kind, clip_id, score, is_keeper
    removed      what left a set later: set_name, clip_id, source_sha256, shard, reason, detail, …
    shard_set    one row per set: set_name, version, digest, is_sealed
    shard_file   one row per sealed shard: set_name, name, split, sha256, bytes, samples, seconds, ledger_sha256
    embedding    vectors of a frozen encoder: set_name, clip_id, model, vector; loaded only for an SQL text that names them

A sealed set shows the ledgers its `set.json` lists, an unsealed one every ledger committed so far.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stmae_data import files
from stmae_data.errors import SetError
from stmae_data.records import LEDGER_COLUMNS
from stmae_data.shards import ledger_path

__all__ = [
    "DECISION_COLUMNS",
    "GROUP_COLUMNS",
    "REMOVED_COLUMNS",
    "TABLES",
    "SetBooks",
    "find_books",
    "insert_known",
    "load_books",
]

TABLES = (
    "clip",
    "written",
    "annotation",
    "tag",
    "signal",
    "decision",
    "group_member",
    "removed",
    "shard_set",
    "shard_file",
    "embedding",
)

DECISION_COLUMNS: dict[str, str] = {
    "clip_id": "VARCHAR",
    "verb": "VARCHAR",
    "reason": "VARCHAR",
    "level": "VARCHAR",
    "other_clip_id": "VARCHAR",
    "other_set": "VARCHAR",
    "distance_bits": "DOUBLE",
    "overlap_ms": "BIGINT",
    "threshold": "DOUBLE",
    "policy_version": "VARCHAR",
    "run_id": "VARCHAR",
    "detail": "VARCHAR",
}
"""What every decision says (FACTS-inputs §4.3); a decision file may hold more columns, which are left in the file."""

GROUP_COLUMNS: dict[str, str] = {
    "group_id": "VARCHAR",
    "kind": "VARCHAR",
    "clip_id": "VARCHAR",
    "score": "DOUBLE",
    "is_keeper": "BOOLEAN",
}

REMOVED_COLUMNS: dict[str, str] = {
    "clip_id": "VARCHAR",
    "row_id": "VARCHAR",
    "source_sha256": "VARCHAR",
    "shard": "VARCHAR",
    "set_version_before": "INTEGER",
    "set_version_after": "INTEGER",
    "removed_at": "VARCHAR",
    "reason": "VARCHAR",
    "detail": "VARCHAR",
    "run_id": "VARCHAR",
}

_EMBEDDING_COLUMNS: dict[str, str] = {"clip_id": "VARCHAR", "model": "VARCHAR", "vector": "FLOAT[]"}

_SHARD_COLUMNS: dict[str, str] = {
    "name": "VARCHAR",
    "split": "VARCHAR",
    "sha256": "VARCHAR",
    "bytes": "BIGINT",
    "samples": "BIGINT",
    "seconds": "DOUBLE",
    "ledger_sha256": "VARCHAR",
}

_VIEWS = (
    "CREATE VIEW written AS SELECT * FROM clip WHERE outcome = 'written'",
    "CREATE VIEW annotation AS SELECT set_name, row_id, clip_id, outcome, split AS shard_split, unnest(annotations, max_depth := 2) FROM clip",
    "CREATE VIEW tag AS SELECT set_name, row_id, clip_id, entry.tag AS tag, entry.origin AS origin "
    "FROM (SELECT set_name, row_id, clip_id, unnest(tags) AS entry FROM clip)",
    "CREATE VIEW signal AS SELECT set_name, row_id, clip_id, entry.key AS name, entry.value AS value "
    "FROM (SELECT set_name, row_id, clip_id, unnest(map_entries(signals)) AS entry FROM clip)",
)


@dataclass(frozen=True, slots=True)
class SetBooks:
    """The files that tell everything about one set; `seal` is `set.json`, or None before the build has ended."""

    name: str
    folder: Path
    seal: Mapping[str, Any] | None
    ledgers: tuple[Path, ...]

    @property
    def decisions(self) -> tuple[Path, ...]:
        """Decision files, oldest name first."""
        return _tables(self.folder / "meta" / "decisions")

    @property
    def shards(self) -> list[dict[str, Any]]:
        """The shard lines of `set.json`, each with its split."""
        splits = {} if self.seal is None else self.seal["splits"]
        return [{**line, "split": split} for split, content in sorted(splits.items()) for line in content["shards"]]


def _tables(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(path for path in folder.glob("*.parquet") if not path.name.startswith(files.TEMP_PREFIX)))


def find_books(workspace: Path, sets: Iterable[str] | None = None) -> list[SetBooks]:
    """The books of the named sets, or of every set of the workspace, sorted by name.

    Raises:
        SetError: a named set does not exist, or a `set.json` is damaged.
    """
    root = workspace / "sets"
    known = sorted(each.name for each in root.iterdir() if (each / "meta").is_dir()) if root.is_dir() else []
    wanted = known if sets is None else sorted(set(sets))
    missing = [name for name in wanted if name not in known]
    if missing:
        raise SetError(
            f"There is no set {missing[0]!r} in {workspace}; it has {', '.join(known) or 'none'}. Build it: stmae-data build."
        )
    return [_books_of(root / name) for name in wanted]


def _books_of(folder: Path) -> SetBooks:
    path = folder / "meta" / "set.json"
    if not path.is_file():
        return SetBooks(folder.name, folder, None, _tables(folder / "meta" / "ledger"))
    seal = files.read_json(path)
    try:
        names = [line["name"] for content in seal["splits"].values() for line in content["shards"]]
        seal["version"], seal["digest"]
    except (KeyError, TypeError, AttributeError) as error:
        raise SetError(f"{path} lacks {error}; verify the set: stmae-data verify {folder.name}.") from error
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[a-z]+-\d{6}", name):
            raise SetError(
                f"{path} names a shard {name!r:.80}; wanted <split>-<six digits>. Restore it or rebuild the set."
            )
        if not ledger_path(folder, name).is_file():
            raise SetError(
                f"Set {folder.name}: the ledger of {name} is missing; verify the set: stmae-data verify {folder.name}."
            )
    return SetBooks(folder.name, folder, seal, tuple(ledger_path(folder, name) for name in sorted(names)))


def load_books(connection: Any, books: Iterable[SetBooks], *, has_embeddings: bool = False) -> None:
    """Read the books into tables of `connection` (its current schema) and lay the views over them.

    Embeddings are large: their table stays empty unless they are asked for.

    Raises:
        SetError: a table is damaged.
    """
    import duckdb

    _create(connection, "clip", {"set_name": "VARCHAR", **LEDGER_COLUMNS})
    _create(connection, "decision", {"set_name": "VARCHAR", "run": "VARCHAR", **DECISION_COLUMNS})
    _create(connection, "group_member", {"set_name": "VARCHAR", **GROUP_COLUMNS})
    _create(connection, "removed", {"set_name": "VARCHAR", **REMOVED_COLUMNS})
    _create(
        connection,
        "shard_set",
        {"set_name": "VARCHAR", "version": "INTEGER", "digest": "VARCHAR", "is_sealed": "BOOLEAN"},
    )
    _create(connection, "shard_file", {"set_name": "VARCHAR", **_SHARD_COLUMNS})
    _create(connection, "embedding", {"set_name": "VARCHAR", **_EMBEDDING_COLUMNS})
    for each in books:
        seal = each.seal or {}
        connection.execute(
            "INSERT INTO shard_set VALUES (?, ?, ?, ?)",
            [each.name, seal.get("version"), seal.get("digest"), each.seal is not None],
        )
        for line in each.shards:
            values = [each.name, *(line.get(name) for name in _SHARD_COLUMNS)]
            connection.execute(f"INSERT INTO shard_file VALUES ({', '.join('?' * len(values))})", values)
        meta = each.folder / "meta"
        try:
            insert_known(connection, "clip", LEDGER_COLUMNS, each.ledgers, {"set_name": each.name})
            for path in each.decisions:
                insert_known(
                    connection, "decision", DECISION_COLUMNS, [path], {"set_name": each.name, "run": path.stem}
                )
            if has_embeddings:
                vectors = _tables(meta / "embeddings")
                insert_known(connection, "embedding", _EMBEDDING_COLUMNS, vectors, {"set_name": each.name})
            for table, columns in (("groups", GROUP_COLUMNS), ("removed", REMOVED_COLUMNS)):
                path = meta / f"{table}.parquet"
                if path.is_file():
                    insert_known(
                        connection,
                        "group_member" if table == "groups" else table,
                        columns,
                        [path],
                        {"set_name": each.name},
                    )
        except duckdb.Error as error:
            raise SetError(
                f"A book of set {each.name} cannot be read ({str(error).splitlines()[0]}); verify the set: stmae-data verify {each.name}."
            ) from error
    for view in _VIEWS:
        connection.execute(view)


def _create(connection: Any, table: str, columns: Mapping[str, str]) -> None:
    fields = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
    connection.execute(f"CREATE TABLE {table} ({fields})")


def insert_known(
    connection: Any, table: str, columns: Mapping[str, str], paths: Iterable[Path], constants: Mapping[str, str]
) -> None:
    """Insert the known columns of Parquet files; a column the files lack is NULL, one we do not know is left out."""
    names = [str(path) for path in paths]
    if not names:
        return
    described = connection.execute("DESCRIBE SELECT * FROM read_parquet(?, union_by_name := true)", [names]).fetchall()
    present = {row[0] for row in described}
    chosen = [f'"{name}"' for name in columns if name in present]
    given = [f'? AS "{name}"' for name in constants]
    connection.execute(
        f"INSERT INTO {table} BY NAME SELECT {', '.join([*given, *chosen])} FROM read_parquet(?, union_by_name := true)",
        [*constants.values(), names],
    )
