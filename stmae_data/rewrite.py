"""The one way samples leave a set: intent, touched shards, the book of the removed, the seal. Decisions stand before it starts.

Order on disk, each step whole or not at all: decisions (the caller's `prepare`) -> meta/rewrite.json -> per touched shard its tar, its
fingerprints, its ledger -> meta/removed.parquet -> meta/set.json -> rewrite.json goes. Killed anywhere, a rerun finishes what
rewrite.json says and ends with the same bytes: every step looks at keys, never at offsets that may be old already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from stmae_data import files
from stmae_data.errors import Reason, SetError
from stmae_data.records import set_folder
from stmae_data.shards import (
    OWN_KEYS,
    Sample,
    ShardSet,
    commit_ledger,
    commit_shard,
    count_outcomes,
    fingerprint_path,
    iterate_tar,
    ledger_path,
    on_a_store,
    open_set,
    read_range,
    seal_set,
    shard_info,
    store_url,
)

__all__ = ["REMOVED_COLUMNS", "RewriteReport", "Verdict", "finish_rewrite", "refuse_on_store", "rewrite"]

REMOVED_COLUMNS: Final = {
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
"""Columns of `meta/removed.parquet` (FACTS-inputs §4.3). `removed_at` is NULL where the same inputs must give the same bytes."""

_PLACE: Final = ("ordinal", "json_offset", "json_bytes", "media_offset", "media_bytes")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One written row that goes: why, by which decision, and which clip it repeats or leaks.

    A removal (reason `removed`) also takes rows that are not written, so that no later build takes them up again.
    """

    row_id: str
    reason: Reason
    decision_id: str
    duplicate_of: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class RewriteReport:
    """What a set has become. `num_removed` is 0 when there was nothing left to do."""

    set_name: str
    folder: Path
    version: int
    digest: str
    num_removed: int
    num_shards_rewritten: int


def rewrite(
    workspace: Path,
    set_name: str,
    verdicts: Sequence[Verdict],
    *,
    run_id: str,
    to: str | None = None,
    expected_digest: str | None = None,
    removed_at: str | None = None,
    prepare: Callable[[Path], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> RewriteReport:
    """Take rows out of a set, or make a new set without them.

    Args:
        workspace: where the set stands.
        set_name: the set. Rows that are not `written` any more are passed over, but for removals.
        run_id: which run decided; the same run on the same set is taken up where it was killed.
        to: name of a new set; the old one then stays as it is, untouched tars are hard links.
        expected_digest: state of the set the verdicts were made on.
        removed_at: time to note in the book of the removed, NULL unless said.
        prepare: called with the folder that will change, under its lock, before anything changes: writes the decisions.
        progress: told (stage, done, total) per shard.

    Raises:
        Busy: somebody else writes the set; SetError: the set has changed, or `to` stands already as something else;
        StorageError: the disk.
    """
    source = set_folder(workspace, set_name)
    if not source.is_dir():
        open_set(workspace, set_name)  # says which sets there are
    refuse_on_store(workspace, [set_name])
    with ExitStack() as stack:
        stack.enter_context(files.lock(source / "meta" / "LOCK", what=f"Set {set_name}"))
        _sweep(source)
        if (source / "meta" / "retry.parquet").is_file():
            raise SetError(f"A retry of {set_name} was interrupted; finish it first: run its stmae-data build again.")
        _finish(source, progress)
        found = open_set(workspace, set_name)
        if expected_digest not in (None, found.digest):
            raise SetError(
                f"Set {set_name} has changed since it was compared (digest {str(expected_digest)[:12]}, now {found.digest[:12]}); run the same command again."
            )
        if to is None:
            intent = _intent(found, verdicts, run_id=run_id, removed_at=removed_at, target=None)
            if not intent["rows"]:
                return RewriteReport(set_name, source, found.version, found.digest, 0, 0)
            return _start(source, intent, prepare, progress)
        target = set_folder(workspace, to)
        if to == set_name:
            raise SetError(f"A new set cannot be written over its source {set_name}; name another with --to.")
        stack.enter_context(files.lock(target / "meta" / "LOCK", what=f"Set {to}"))
        _sweep(target)
        intent = _intent(found, verdicts, run_id=run_id, removed_at=removed_at, target=to)
        done = _standing(target, intent)
        return done or _start(target, intent, prepare, progress)


def refuse_on_store(workspace: Path, set_names: Iterable[str]) -> None:
    """Nothing is taken out of a set on a store; asked before the first of several sets changes.

    Raises:
        SetError: one of the sets stands on a store.
    """
    for name in set_names:
        if (url := store_url(set_folder(workspace, name))) is not None:
            raise on_a_store(name, url)


def finish_rewrite(workspace: Path, set_name: str) -> bool:
    """Finish a rewrite that was killed; whether there was one.

    Raises:
        Busy: somebody is writing the set right now.
    """
    folder = set_folder(workspace, set_name)
    if not (folder / "meta" / "rewrite.json").is_file():
        return False
    with files.lock(folder / "meta" / "LOCK", what=f"Set {set_name}"):
        _sweep(folder)
        return _finish(folder, None) is not None


def _start(
    folder: Path,
    intent: dict[str, Any],
    prepare: Callable[[Path], None] | None,
    progress: Callable[[str, int, int], None] | None,
) -> RewriteReport:
    if prepare is not None:
        prepare(folder)
    files.commit_json(folder / "meta" / "rewrite.json", intent, point="intent")
    report = _finish(folder, progress)
    assert report is not None
    return report


def _sweep(folder: Path) -> None:
    for each in (
        folder,
        folder / "meta",
        *((folder / "meta" / name) for name in ("ledger", "fingerprints", "decisions", "embeddings")),
    ):
        files.sweep_temp(each)


def _intent(
    found: ShardSet, verdicts: Sequence[Verdict], *, run_id: str, removed_at: str | None, target: str | None
) -> dict[str, Any]:
    """What rewrite.json says: everything needed to finish without knowing why."""
    wanted = {verdict.row_id: verdict for verdict in verdicts}
    query = """SELECT row_id, clip_id, shard, source_sha256, outcome = 'written' AS is_written, reason = 'removed' AS is_removed
               FROM book ORDER BY row_id"""
    rows = [
        {
            **{column: row[column] for column in ("row_id", "clip_id", "shard", "source_sha256")},
            **asdict(wanted[row["row_id"]]),
            "reason": str(wanted[row["row_id"]].reason),
        }
        for row in files.read_table(found.ledgers(), query)
        if row["row_id"] in wanted
        and (row["is_written"] or (wanted[row["row_id"]].reason is Reason.REMOVED and not row["is_removed"]))
    ]
    intent: dict[str, Any] = {
        "schema_version": 1,
        "run_id": run_id,
        "removed_at": removed_at,
        "name": target or found.name,
        "parent": {"name": found.name, "version": found.version, "digest": found.digest},
        "version_after": 1 if target else found.version + 1,
        "shards": sorted({row["shard"] for row in rows}),
        "rows": rows,
    }
    if target:
        intent["source"] = found.name
    return intent


def _standing(target: Path, intent: dict[str, Any]) -> RewriteReport | None:
    """The target as an earlier run of the same intent left it, sealed; None where it is still to be written.

    Raises:
        SetError: something else stands there.
    """
    name = target.name
    if (target / "meta" / "set.json").is_file() and not (target / "meta" / "rewrite.json").is_file():
        seal = files.read_json(target / "meta" / "set.json")
        if seal.get("parents") == [intent["parent"]] and seal.get("rewritten_by") == intent["run_id"]:
            return RewriteReport(name, target, seal["version"], seal["digest"], len(intent["rows"]), 0)
        raise SetError(f"There is a set {name} already, made from something else; choose another name with --to.")
    if (target / "meta" / "rewrite.json").is_file():
        pending = files.read_json(target / "meta" / "rewrite.json")
        if pending != intent:
            raise SetError(
                f"{name} is half written by another run ({str(pending.get('run_id'))[:12]}); repeat that command, remove {target}, or choose another name with --to."
            )
    elif (target / "meta" / "plan.parquet").exists() or any(target.glob("*.tar")):
        raise SetError(
            f"There is an unfinished set {name} already; finish its build, or choose another name with --to."
        )
    return None


def _finish(folder: Path, progress: Callable[[str, int, int], None] | None) -> RewriteReport | None:
    """Do what rewrite.json says, from wherever an earlier run was killed; None where there is nothing to do."""
    path = folder / "meta" / "rewrite.json"
    if not path.is_file():
        return None
    intent = files.read_json(path)
    source = folder.parent / intent["source"] if "source" in intent else folder
    try:
        rows = {row["row_id"]: row for row in intent["rows"]}
        touched, after = list(intent["shards"]), int(intent["version_after"])
    except (KeyError, TypeError) as error:
        raise SetError(f"{path} lacks {error}; it is damaged: verify the set.") from error
    seal = files.read_json(source / "meta" / "set.json")
    if source != folder and seal["digest"] != intent["parent"]["digest"]:
        raise SetError(
            f"{folder.name} was being made from {source.name}, which has changed since; remove {folder} and run the same command again."
        )
    names = [line["name"] for split in seal["splits"].values() for line in split["shards"]]
    if source != folder:
        _carry_over(source, folder, [name for name in names if name not in touched], touched)
    for done, name in enumerate(touched):
        if progress is not None:
            progress("rewrite", done, len(touched))
        _rewrite_shard(source, folder, name, rows)
    if progress is not None:
        progress("rewrite", len(touched), len(touched))
    if intent["rows"]:
        _note_removed(folder, intent)
        for path_of_vectors in sorted((folder / "meta" / "embeddings").glob("[!.]*.parquet")):
            _drop_rows(path_of_vectors, {row["clip_id"] for row in rows.values()}, point="embeddings")
    digest = _seal(folder, seal, intent, sorted(names))
    files.remove_file(folder / "report.html", point="stale_report")  # it may show clips that have just left
    files.remove_file(path, point="intent_done")
    return RewriteReport(intent["name"], folder, after, digest, len(rows), len(touched))


def _carry_over(source: Path, folder: Path, untouched: Sequence[str], touched: Sequence[str]) -> None:
    """Give a new set everything that does not change; a file that stands already is the same file."""
    meta = Path("meta")
    books = [meta / name for name in ("plan.parquet", "plan.json", "reconciliation.parquet", "removed.parquet")]
    books += [meta / "decisions" / each.name for each in sorted((source / meta / "decisions").glob("[!.]*.parquet"))]
    books += [meta / "embeddings" / each.name for each in sorted((source / meta / "embeddings").glob("[!.]*.parquet"))]
    for name in untouched:
        books += [ledger_path(meta.parent, name), fingerprint_path(meta.parent, name), Path(f"{name}.tar")]
    for name in touched:  # copies to rewrite from: the source may change or go while this is unfinished
        books += [ledger_path(meta.parent, name), fingerprint_path(meta.parent, name)]
    for book in books:
        if (source / book).is_file() and not (folder / book).exists():
            files.link_or_copy(source / book, folder / book, point="carry")


def _rewrite_shard(source: Path, folder: Path, name: str, rows: dict[str, dict[str, Any]]) -> None:
    """Tar, fingerprints and ledger of one shard without `rows`; nothing to do where its ledger says so already."""
    ledger = files.read_table(ledger_path(folder, name), "SELECT * FROM book ORDER BY plan_order, row_id")
    mine = [row for row in ledger if row["row_id"] in rows]
    going = {row["row_id"] for row in mine if row["decision_id"] != rows[row["row_id"]]["decision_id"]}
    if not going:
        return
    tar_sha256 = _rewrite_tar(source, folder, name, ledger, going)
    for row in ledger:
        if row["row_id"] in going:
            verdict = rows[row["row_id"]]
            row.update(dict.fromkeys(_PLACE))
            row.update(
                outcome="dropped",
                stage="rewrite",
                reason=verdict["reason"],
                reason_detail=(verdict["detail"] or "")[:200] or None,
                duplicate_of=verdict["duplicate_of"],
                decision_id=verdict["decision_id"],
            )
    commit_ledger(folder, name, ledger, tar_sha256=tar_sha256)


def _rewrite_tar(source: Path, folder: Path, name: str, ledger: Sequence[dict[str, Any]], going: set[str]) -> str:
    """Tar and fingerprints without the rows that go, the new places noted in those that stay; returns the tar's sha256."""
    gone = {row["clip_id"] for row in ledger if row["row_id"] in going and row["outcome"] == "written"}
    if not gone and (folder / f"{name}.tar").exists():
        return files.read_table_metadata(ledger_path(folder, name))["tar_sha256"]
    kept = {row["clip_id"]: row for row in ledger if row["outcome"] == "written" and row["row_id"] not in going}
    tar = folder / f"{name}.tar"
    keys: list[str] = []
    placements, tar_sha256, _ = commit_shard(tar, _samples(tar if tar.exists() else source / tar.name, kept, keys))
    if len(keys) != len(kept):
        raise SetError(
            f"{tar} holds {len(keys)} of the {len(kept)} samples its ledger names; verify the set, rebuild the shard."
        )
    for key, place in zip(keys, placements, strict=True):
        kept[key].update({column: getattr(place, column) for column in _PLACE})
    _drop_rows(fingerprint_path(folder, name), gone, point="fingerprints")
    return tar_sha256


def _samples(tar: Path, kept: dict[str, dict[str, Any]], keys: list[str]) -> Iterator[Sample]:
    """The samples to keep, in their order; `keys` collects which they were."""
    with tar.open("rb") as stream:
        description = b""
        for member in iterate_tar(stream, name=tar.name):
            key, _, extension = member.name.rpartition(".")
            if key not in kept:
                continue
            data = read_range(stream.fileno(), member.offset, member.size, name=tar.name)
            if extension == "json":
                description = data
            else:
                keys.append(key)
                yield Sample(key, description, data, extension)


def _drop_rows(path: Path, gone: set[str], *, point: str) -> None:
    """Rewrite a table of clips without those that go; its footer stays."""
    if not path.is_file():
        return
    footer = {key: value for key, value in files.read_table_metadata(path).items() if key != "schema_version"}
    connection = files.connect()
    try:
        connection.execute("CREATE TABLE gone AS SELECT unnest(?::VARCHAR[]) AS clip_id", [sorted(filter(None, gone))])
        connection.execute("CREATE TABLE prints AS SELECT * FROM read_parquet(?)", [str(path)])
        query = "SELECT * FROM prints ANTI JOIN gone USING (clip_id) ORDER BY prints.rowid"
        files.copy_table(connection, query, path, point=point, metadata=footer)
    finally:
        connection.close()


def _note_removed(folder: Path, intent: dict[str, Any]) -> None:
    """Add the rows to the book of the removed, once."""
    path = folder / "meta" / "removed.parquet"
    book = files.read_table(path) if path.is_file() else []
    known = {(row["row_id"], row["run_id"]) for row in book}
    book += [
        {
            **{column: row[column] for column in ("clip_id", "row_id", "source_sha256", "shard", "reason", "detail")},
            "set_version_before": intent["parent"]["version"],
            "set_version_after": intent["version_after"],
            "removed_at": intent["removed_at"],
            "run_id": intent["run_id"],
        }
        for row in intent["rows"]
        if (row["row_id"], intent["run_id"]) not in known
    ]
    files.commit_table(path, book, REMOVED_COLUMNS, point="removed", order_by="set_version_after, row_id")


def _seal(folder: Path, seal: dict[str, Any], intent: dict[str, Any], names: Sequence[str]) -> str:
    """The new `set.json`: same origin, new version, counts taken from the ledgers."""
    return seal_set(
        folder,
        [shard_info(folder, name) for name in names],
        name=intent["name"],
        version=int(intent["version_after"]),
        created_from=seal["created_from"],
        recipe=seal["recipe"],
        counts=count_outcomes([ledger_path(folder, name) for name in names]),
        parents=[intent["parent"]] if "source" in intent else seal["parents"],
        versions=seal["versions"],
        extra={**{key: value for key, value in seal.items() if key not in OWN_KEYS}, "rewritten_by": intent["run_id"]},
    )
