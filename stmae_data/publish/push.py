"""To the Hub: only what `verify` has just passed and whose licence lets it be passed on; shards first, `set.json` last.

A reader of the repository therefore never meets a `set.json` whose shards are not there: before shards change, the old `set.json` is taken
away, together with files of ours that the set no longer has. What is there already, by sha256, is not sent again, so an interrupted push
is taken up by the same command. The set is locked until the last file is up. The history of a repository keeps what it ever held: after a
takedown its owner has to squash it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from stmae_data import files
from stmae_data.errors import SetError, StmaeDataError, UsageError
from stmae_data.publish.facts import Rights, rights_of
from stmae_data.report.text import cut
from stmae_data.shards import ShardSet, open_set
from stmae_data.verify import verify

__all__ = ["Client", "Pushed", "Upload", "check_rights", "push", "refused", "uploads"]

_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_OURS: Final = re.compile(r"[a-z]+-\d{6}\.tar|report\.html|meta/.+")
_PER_COMMIT: Final = 20
"""Shards in one commit: few enough that an interrupted push loses little."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One file on its way: where it stands here, its name there, its sha256."""

    path: Path
    name: str
    sha256: str
    bytes: int


class Client(Protocol):
    """What a place to push to has to offer."""

    def prepare(self, repository: str, *, is_private: bool) -> None:
        """Make the repository where it is missing."""

    def known(self, repository: str) -> Mapping[str, str]:
        """Every file that is there by name, with its sha256, "" where that is not known."""

    def withdraw(self, repository: str, names: Sequence[str]) -> None:
        """Take files away, all or none."""

    def commit(self, repository: str, uploads: Sequence[Upload], *, message: str) -> None:
        """Bring files there, all or none."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did: `sent` in the order of sending, `kept` were there already; a dry run sends nothing."""

    set_name: str
    repository: str
    version: int
    digest: str
    sent: tuple[str, ...]
    kept: tuple[str, ...]
    bytes_sent: int
    is_dry_run: bool

    def as_json(self) -> dict[str, Any]:
        """The same facts as JSON values."""
        return {
            "set": self.set_name,
            "repository": self.repository,
            "version": self.version,
            "digest": self.digest,
            "sent": list(self.sent),
            "kept": list(self.kept),
            "bytes": self.bytes_sent,
            "dry_run": self.is_dry_run,
        }


def push(
    workspace: Path,
    set_name: str,
    repository: str,
    *,
    is_private: bool = True,
    is_dry_run: bool = False,
    client: Client | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Pushed:
    """Bring a set to a data set repository of the Hub.

    Args:
        workspace: where the set stands.
        set_name: the set.
        repository: OWNER/NAME.
        is_private: how a repository is made that is not there yet.
        is_dry_run: check everything, list what would be sent, send nothing and ask nobody.
        client: where to push; the Hub unless given.
        progress: told (stage, done, total).

    Raises:
        UsageError: the repository's name; SetError: the licence forbids it, or `verify` finds damage; Busy: somebody writes the set;
        StmaeDataError: the extra is not installed, or the Hub refuses.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"{repository!r:.120} names no repository; wanted OWNER/NAME, as in my-group/my-set.")
    found = open_set(workspace, set_name)
    check_rights(found)
    hold = files.lock(found.folder / "meta" / "LOCK", what=f"Set {set_name}")
    with contextlib.nullcontext() if is_dry_run else hold:
        found = open_set(workspace, set_name)
        check_rights(found)  # once more under the lock: what is checked is what is sent
        stages = _checked(workspace, found, progress)
        everything = [upload for stage in stages for upload in stage]
        if is_dry_run:
            names = tuple(upload.name for upload in everything)
            total = sum(upload.bytes for upload in everything)
            return Pushed(set_name, repository, found.version, found.digest, names, (), total, True)
        if client is None:
            from stmae_data.publish.hub import Hub

            client = Hub()
        client.prepare(repository, is_private=is_private)
        there = client.known(repository)
        outdated = _outdated(there, stages)
        if outdated:
            client.withdraw(repository, outdated)
        sent: list[Upload] = []
        kept = [upload.name for upload in everything if there.get(upload.name) == upload.sha256]
        for stage in stages:
            todo = [upload for upload in stage if upload.name not in kept]
            for start in range(0, len(todo), _PER_COMMIT):
                part = todo[start : start + _PER_COMMIT]
                message = f"{set_name} version {found.version}: {part[0].name}" + (" …" if len(part) > 1 else "")
                client.commit(repository, part, message=message)
                sent += part
                if progress is not None:
                    progress("push", len(sent) + len(kept), len(everything))
    return Pushed(
        set_name,
        repository,
        found.version,
        found.digest,
        tuple(upload.name for upload in sent),
        tuple(kept),
        sum(upload.bytes for upload in sent),
        False,
    )


def _outdated(there: Mapping[str, str], stages: Sequence[Sequence[Upload]]) -> list[str]:
    """Files of ours that must go first: what the set no longer has, and a seal whose shards or ledgers are about to change."""
    wanted = {upload.name for stage in stages for upload in stage}
    gone = [name for name in there if _OURS.fullmatch(name) and name not in wanted]
    seal = stages[-1][0].name
    is_changing = any(there.get(upload.name) != upload.sha256 for stage in stages[:2] for upload in stage)
    return sorted(gone + ([seal] if seal in there and is_changing else []))


def check_rights(found: ShardSet) -> None:
    """Refuse a set with a clip that may not be passed on, or of which nobody says that it may.

    Raises:
        SetError: in one sentence.
    """
    for source in found.seal.get("sources") or ():
        if not source.get("is_redistributable"):
            raise _refusal(found, f"its manifest {source.get('name')}", source.get("license"))
    bad: list[Rights] = [each for each in rights_of(found) if not each.is_redistributable]
    if bad:
        raise _refusal(found, f"{sum(each.num_clips for each in bad):,} of its clips", bad[0].license)


def _refusal(found: ShardSet, whose: str, license: str | None) -> SetError:
    said = f"licence {cut(license)!r}" if license else "no licence on record"
    return SetError(
        f"Set {found.name} may not be passed on: {whose} with {said} are not marked as redistributable; share a list of clips instead: "
        f"stmae-data export {found.name} --format csv"
    )


def _checked(workspace: Path, found: ShardSet, progress: Callable[[str, int, int], None] | None) -> list[list[Upload]]:
    """The uploads of a set that is whole and has its cards."""
    for card in ("README.md", "croissant.json"):
        path = found.folder / card
        if not path.is_file() or found.digest not in path.read_text(encoding="utf-8", errors="replace"):
            raise SetError(
                f"Set {found.name} has no {card} of its version {found.version}; write it first: stmae-data card {found.name}"
            )
    advance = None if progress is None else lambda done, total: progress("verify", done, total)
    report = verify(workspace, found.name, advance=advance)
    if not report.ok:
        first = report.damages[0]
        raise SetError(
            f"Set {found.name} is not pushed: verify found {len(report.damages)} damages, {first.code} in {first.file} first; "
            f"see them all: stmae-data verify {found.name}"
        )
    return uploads(found)


def uploads(found: ShardSet) -> list[list[Upload]]:
    """Files in the order of sending, stage by stage: shards, ledgers, other books, cards, `set.json`. Nothing else goes."""
    meta = found.folder / "meta"
    tars = [
        Upload(found.folder / f"{shard.name}.tar", f"{shard.name}.tar", shard.sha256, shard.bytes)
        for shard in found.shards
    ]
    ledgers = [_upload(found.folder, meta / "ledger" / f"{shard.name}.parquet") for shard in found.shards]
    books = [meta / "fingerprints" / f"{shard.name}.parquet" for shard in found.shards]
    books += [meta / name for name in ("plan.parquet", "plan.json", "groups.parquet", "removed.parquet")]
    books += sorted((meta / "decisions").glob("[!.]*.parquet"))
    cards = [found.folder / name for name in ("README.md", "croissant.json", "report.html")]
    present = [[_upload(found.folder, path) for path in paths if path.is_file()] for paths in (books, cards)]
    return [tars, ledgers, *present, [_upload(found.folder, meta / "set.json")]]


def _upload(folder: Path, path: Path) -> Upload:
    return Upload(path, path.relative_to(folder).as_posix(), files.sha256_file(path), path.stat().st_size)


def refused(what: str, error: Exception) -> StmaeDataError:
    """An answer of the far side in one sentence, without addresses, headers or tokens."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    answer = f"status {status}" if status else type(error).__name__
    return StmaeDataError(
        f"The Hub did not take {what} ({answer}); see that the name is right and that you are logged in (hf auth login), then run the same command again."
    )
