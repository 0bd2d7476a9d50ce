"""Takedown: clips leave every set of a workspace by id, address, uploader or hash, and stay away.

First the workspace's book notes what is named and what was found by it, which no later build of any set takes in. Then, per set: what an
earlier rewrite left is finished -> matching rows are found -> decisions are written -> `rewrite` takes the rows out of the shards they stand
in, tombstones them and seals a new version. Rows of the same bytes under another id, in any of the sets, go along; rows that failed or were
dropped are tombstoned too. Killed anywhere, the same command finishes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stmae_data import files
from stmae_data.catalog import find_books
from stmae_data.catalog.books import DECISION_COLUMNS
from stmae_data.errors import Reason, SelectionError, SetError, UsageError
from stmae_data.records import set_folder
from stmae_data.remove.book import note_takedown
from stmae_data.remove.match import Hit, hits_in, kin_in
from stmae_data.remove.wanted import Wanted, read_wanted
from stmae_data.rewrite import RewriteReport, Verdict, finish_rewrite, refuse_on_store, rewrite
from stmae_data.shards import store_url
from stmae_data.sources import source_path

__all__ = ["RemoveReport", "Wanted", "read_wanted", "remove"]

_DECISION: Final = {"decision_id": "VARCHAR", "row_id": "VARCHAR", **DECISION_COLUMNS}
_MOST_ROUNDS: Final = 5
_WORD: Final = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class RemoveReport:
    """What a takedown came to.

    `clips` are the written clips that went (or would go), `num_barred` rows were not written and are kept from coming back,
    `num_before` rows had been removed earlier, `not_found` is what no set knows. `copies` are files on this disk that still hold such clips:
    sources, clips that `export --unpack` wrote, and pages with pictures of them (`dedup --review`, `select --hashtags-of`).
    """

    clips: tuple[tuple[str, str], ...]
    num_barred: int
    num_before: int
    not_found: tuple[str, ...]
    copies: tuple[Path, ...]
    sets: tuple[RewriteReport, ...]
    is_dry_run: bool

    def as_json(self) -> dict[str, Any]:
        """The same facts as JSON values."""
        return {
            "removed": [{"set": name, "clip_id": clip_id} for name, clip_id in self.clips],
            "barred": self.num_barred,
            "removed_before": self.num_before,
            "not_found": list(self.not_found),
            "copies": [str(path) for path in self.copies],
            "sets": [
                {
                    "set": each.set_name,
                    "version": each.version,
                    "digest": each.digest,
                    "rows": each.num_removed,
                    "shards": each.num_shards_rewritten,
                }
                for each in self.sets
            ],
            "dry_run": self.is_dry_run,
        }


def remove(
    workspace: Path,
    wanted: Wanted,
    *,
    reason: str,
    sets: Sequence[str] = (),
    dry_run: bool = False,
    removed_at: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> RemoveReport:
    """Take clips out of sets.

    Args:
        workspace: where the sets stand.
        wanted: what is to go.
        reason: why, for the books: decisions and tombstones keep it.
        sets: set names; every set of the workspace unless given.
        dry_run: find and report, write nothing.
        removed_at: time to note in the tombstones.
        progress: told (stage, done, total).

    Raises:
        SelectionError: no set knows anything of it; SetError: a set is missing or damaged, or still being built and plans such clips;
        Busy: another removal or a writer of a set is at work; StorageError: the disk.
    """
    if not reason.strip():
        raise UsageError("A removal needs a reason for the books; say it with --reason.")
    if not (workspace / "sets").is_dir():  # before the lock, which would make the folder
        raise SetError(f"There are no sets in {workspace}; name the folder that holds sets/ with --workspace.")
    if dry_run:
        return _remove(workspace, wanted, reason, sets, None, removed_at, progress)
    with files.lock(workspace / "remove.lock", what=f"A removal in {workspace}"):
        return _remove(workspace, wanted, reason, sets, [], removed_at, progress)


def _remove(
    workspace: Path,
    wanted: Wanted,
    reason: str,
    sets: Sequence[str],
    written: list[RewriteReport] | None,
    removed_at: str | None,
    progress: Callable[[str, int, int], None] | None,
) -> RemoveReport:
    """The removal itself; `written` collects what was rewritten, None for a dry run."""
    names = [book.name for book in find_books(workspace, sets or None)]
    if written is not None:
        for name in names:
            finish_rewrite(workspace, name)
    kin = {each for name in names for each in kin_in(workspace, name, wanted)}
    if written is not None:  # before the first set changes
        first = {name: hits_in(workspace, name, wanted, kin)[0] for name in names}
        away = [name for name in names if store_url(set_folder(workspace, name)) is not None]
        refuse_on_store(workspace, [name for name in away if any(map(_is_going, first[name]))])
        known = [hit for mine in first.values() for hit in mine]
        if known:
            note_takedown(workspace, wanted, known, reason=reason, sets=sets, removed_at=removed_at)
    hits: dict[tuple[str, str], Hit] = {}
    found: set[tuple[str, str]] = set()
    for name in names:
        for _ in range(_MOST_ROUNDS):
            mine, matched = hits_in(workspace, name, wanted, kin)
            found |= matched
            for hit in mine:  # the first look at a row tells what it was
                hits.setdefault((name, hit.row_id), hit)
            going = [hit for hit in mine if _is_going(hit)]
            if written is None or not going:
                break
            written.append(_apply(workspace, name, going, wanted, reason, removed_at, progress))
        else:
            raise SetError(
                f"Set {name} gets new rows of this kind all the time; end its build, then run the same command again."
            )
    not_found = tuple(f"{kind} {value}" for kind, value in wanted.pairs() if (kind, value) not in found)
    if not hits:
        raise SelectionError(
            f"No set of {workspace} knows any of it ({', '.join(not_found)[:160]}); see that it is spelled as in the ledgers: stmae-data sql."
        )
    told = [hit for hit in hits.values() if not hit.is_waiting]
    report = RemoveReport(
        clips=tuple(sorted({(hit.set_name, str(hit.clip_id)) for hit in told if hit.is_written})),
        num_barred=sum(not hit.is_written and not hit.is_removed for hit in told),
        num_before=sum(hit.is_removed for hit in told),
        not_found=not_found,
        copies=_copies_here(workspace, hits.values()),
        sets=tuple(written or ()),
        is_dry_run=written is None,
    )
    waiting = sorted({hit.set_name for hit in hits.values() if hit.is_waiting})
    if waiting and written is not None:
        raise SetError(
            f"Set {waiting[0]} plans such clips that are not built yet, which a build at work may still take in; everything else is removed: "
            f"finish its build (stmae-data build), then run the same command again."
        )
    return report


def _is_going(hit: Hit) -> bool:
    return not hit.is_waiting and (hit.is_written or not hit.is_removed)


def _apply(
    workspace: Path,
    name: str,
    going: Sequence[Hit],
    wanted: Wanted,
    reason: str,
    removed_at: str | None,
    progress: Callable[[str, int, int], None] | None,
) -> RewriteReport:
    """Decisions of one set, then its rewrite."""
    facts = json.dumps([name, reason, wanted.pairs(), sorted(hit.row_id for hit in going)])
    run_id = "remove-" + files.sha256_text(facts)[:16]
    verdicts = [
        Verdict(hit.row_id, Reason.REMOVED, _decision_id(run_id, hit.row_id), detail=reason[:200]) for hit in going
    ]
    rows: list[Mapping[str, Any]] = [
        {
            "decision_id": _decision_id(run_id, hit.row_id),
            "row_id": hit.row_id,
            "clip_id": hit.clip_id,
            "verb": "drop",
            "reason": str(Reason.REMOVED),
            "run_id": run_id,
            "detail": f"by {hit.why}: {reason}"[:200],
        }
        for hit in going
    ]

    def prepare(folder: Path) -> None:
        path = folder / "meta" / "decisions" / f"{run_id}.parquet"
        files.commit_table(path, rows, _DECISION, point="decisions", order_by="row_id")

    return rewrite(workspace, name, verdicts, run_id=run_id, removed_at=removed_at, prepare=prepare, progress=progress)


def _decision_id(run_id: str, row_id: str) -> str:
    return hashlib.sha256(f"{run_id}\0{row_id}".encode()).hexdigest()[:32]


def _copies_here(workspace: Path, hits: Iterable[Hit]) -> tuple[Path, ...]:
    """Files on this disk that hold such clips outside of sets: the user's to delete."""
    found = list(hits)
    uris = {hit.source_uri for hit in found if hit.source_uri is not None and hit.source_uri.startswith("file:///")}
    sources = [path for uri in sorted(uris) if (path := source_path(uri)).exists()]
    ids = {hit.clip_id for hit in found if hit.clip_id is not None}
    unpacked = [path for path in sorted((workspace / "exports").glob("*/*")) if path.stem in ids]
    shown = ids | {clip_id[:79] for clip_id in ids}  # pages cut what is longer
    pages = [workspace / "review.html", *sorted((workspace / "selections").glob("*.html"))]
    telling = [
        path
        for path in pages
        if path.is_file() and not shown.isdisjoint(_WORD.findall(path.read_text("utf-8", "replace")))
    ]
    return (*sources, *unpacked, *telling)
