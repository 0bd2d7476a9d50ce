"""Taking failed rows up again: they are planned as a new generation of shards behind the old ones, and those that succeed move there.

Order on disk, each step whole or not at all: meta/retry.parquet (the plan of the new shards) -> the new shards as in any build -> old
ledgers (recovered rows go, others learn their new reason) -> new ledgers (only recovered rows stay) -> meta/plan.parquet ->
meta/set.json (the caller's) -> retry.parquet goes. Killed anywhere, the next build finishes what retry.parquet says. No old tar is
touched, and rows that fail as before leave no trace: a retry that changes nothing changes no byte.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

from stmae_data import files
from stmae_data.build.plan import Plan, lay_out, row_id_of, successor_of
from stmae_data.build.removed import read_tombstones
from stmae_data.errors import Reason, UsageError
from stmae_data.manifest import Manifest
from stmae_data.records import PLAN_COLUMNS
from stmae_data.shards import commit_ledger, fingerprint_path, ledger_path
from stmae_data.sources import SourceListing

__all__ = ["end_retry", "has_retry", "plan_retry", "reasons_of", "retry_run_id", "retry_shards", "settle_retry"]

_COLUMNS: Final = {**PLAN_COLUMNS, "old_row_id": "VARCHAR", "old_shard": "VARCHAR", "attempts": "INTEGER"}
_IDENTITY: Final = ("row_id", "shard", "plan_order", "source_uri", "source_member")
_DECIDED: Final = frozenset({Reason.REMOVED, Reason.LEAK, Reason.LICENSE_BLOCK, Reason.OPTED_OUT})


def reasons_of(codes: Collection[str]) -> frozenset[Reason]:
    """The reasons `--retry-failed` names; the retryable ones when it names none.

    Raises:
        UsageError: a code is none of the list, or stands for a decision that a retry must not undo.
    """
    known = {str(reason): reason for reason in Reason if reason not in _DECIDED}
    unknown = sorted(set(codes) - known.keys())
    if unknown:
        raise UsageError(f"There is nothing to retry under {unknown[0]!r}; wanted one of {', '.join(known)}.")
    return frozenset(known[code] for code in codes) or frozenset(each for each in Reason if each.is_retryable)


def has_retry(folder: Path) -> bool:
    """Whether a retry of the set is under way."""
    return _table(folder).is_file()


def retry_shards(folder: Path) -> dict[str, int]:
    """The planned new shards and their rows."""
    query = "SELECT shard, count(*) AS n FROM book GROUP BY shard ORDER BY shard"
    return {row["shard"]: row["n"] for row in files.read_table(_table(folder), query)}


def plan_retry(
    folder: Path,
    plan: Plan,
    *,
    listing: SourceListing,
    reasons: Collection[Reason],
    manifest: Manifest,
    workers: int,
    progress: Callable[[str, int, int], None] | None,
) -> bool:
    """Plan the rows to take up again and commit that plan; whether there are any.

    Rows of `reasons` that the listing still offers are taken up, and always rows that waited for a copy which is here now.
    """
    query = "SELECT row_id, shard, reason, attempts FROM book WHERE outcome != 'written'"
    ended = {row["row_id"]: row for row in files.read_table(plan.ledgers(folder), query)}
    stays_away = read_tombstones(folder).row_ids
    rows, old_of = [], {}
    for row in listing.rows:
        awaited = successor_of(row, plan)
        old = ended.get(awaited or row_id_of(row))
        if old is None or old["row_id"] in stays_away or (awaited is None and old["reason"] not in reasons):
            continue
        if row.problem is None or str(row.problem[0]) != old["reason"]:
            rows.append(row)
            old_of[row_id_of(row)] = old
    if not rows:
        return False
    planned = [
        {
            **row,
            "old_row_id": old_of[row["row_id"]]["row_id"],
            "old_shard": old_of[row["row_id"]]["shard"],
            "attempts": (old_of[row["row_id"]]["attempts"] or 1) + 1,
        }
        for row in lay_out(
            rows,
            plan,
            folder=folder,
            manifest=manifest,
            seed=plan.settings["seed"],
            workers=workers,
            progress=progress,
        )
    ]
    files.commit_table(_table(folder), planned, _COLUMNS, point="retry")
    return True


def retry_run_id(folder: Path) -> str:
    """Names the run of a retry by the rows it takes up."""
    rows = files.read_table(_table(folder), "SELECT row_id FROM book ORDER BY row_id")
    return "retry-" + files.sha256_text("\n".join(row["row_id"] for row in rows))[:12]


def settle_retry(folder: Path) -> None:
    """Let every row taken up stand in one ledger and one place of the plan; all new shards are committed."""
    rows = files.read_table(_table(folder), "SELECT * FROM book ORDER BY shard, ordinal")
    names = sorted({row["shard"] for row in rows})
    ended = {row["row_id"]: row for row in files.read_table([ledger_path(folder, name) for name in names])}
    by_old_shard: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_old_shard[row["old_shard"]].append(row)
    for name, taken in sorted(by_old_shard.items()):
        _update_old(folder, name, {row["old_row_id"]: ended.get(row["row_id"]) for row in taken})
    recovered = [row for row in rows if (found := ended.get(row["row_id"])) and found["outcome"] == "written"]
    for name in names:
        _keep_recovered(folder, name, {row["row_id"] for row in recovered})
    _remove_void(folder, names, {row["shard"] for row in recovered})
    if recovered:
        _move_in_plan(folder, recovered)


def end_retry(folder: Path) -> None:
    """The set is sealed: nothing is left to finish."""
    if has_retry(folder):
        files.remove_file(_table(folder), point="retry_done")


def _table(folder: Path) -> Path:
    return folder / "meta" / "retry.parquet"


def _update_old(folder: Path, name: str, ended: Mapping[str, dict[str, Any] | None]) -> None:
    """An old ledger: rows that are written now go, rows that failed otherwise than before say so, all others stay."""
    ledger = _ledger(folder, name)
    kept = []
    for row in ledger:
        new = ended.get(row["row_id"])
        if new is None or (new["outcome"], new["reason"]) == (row["outcome"], row["reason"]):
            kept.append(row)
        elif new["outcome"] != "written":
            kept.append({**new, **{column: row[column] for column in _IDENTITY}})
    if kept != ledger:
        _commit(folder, name, kept)


def _keep_recovered(folder: Path, name: str, recovered: Collection[str]) -> None:
    ledger = _ledger(folder, name)
    kept = [row for row in ledger if row["row_id"] in recovered]
    if len(kept) < len(ledger):
        _commit(folder, name, kept)


def _remove_void(folder: Path, names: Collection[str], filled: Collection[str]) -> None:
    """Take away new shards at the end of their split that hold nothing; one in the middle stays, so that ranges have no gap."""
    last = {split: max(each for each in filled if each.rpartition("-")[0] == split) for split in map(_split, filled)}
    for name in sorted(names, reverse=True):
        if name > last.get(_split(name), ""):
            for path in (ledger_path(folder, name), fingerprint_path(folder, name), folder / f"{name}.tar"):
                files.remove_file(path, point="retry_void")


def _split(name: str) -> str:
    return name.rpartition("-")[0]


def _move_in_plan(folder: Path, recovered: list[dict[str, Any]]) -> None:
    path = folder / "meta" / "plan.parquet"
    gone = {row[column] for row in recovered for column in ("old_row_id", "row_id")}
    stays = [row for row in files.read_table(path) if row["row_id"] not in gone]
    files.commit_table(path, [*stays, *recovered], PLAN_COLUMNS, point="plan")


def _ledger(folder: Path, name: str) -> list[dict[str, Any]]:
    return files.read_table(ledger_path(folder, name), "SELECT * FROM book ORDER BY plan_order, row_id")


def _commit(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Write a ledger of a tar that does not change, and may stand on a store."""
    footer = files.read_table_metadata(ledger_path(folder, name))
    size = int(footer["tar_bytes"])
    commit_ledger(folder, name, rows, tar_sha256=footer["tar_sha256"], tar_bytes=size, point="settle")
