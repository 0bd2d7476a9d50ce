"""A build whose set stands on an object store: the workspace keeps its books, each tar goes as soon as its shard is committed here.

What stands on the store is the truth: books that are missing here are fetched first, so that any machine can go on with a build, and where
another machine has been at work since, its books replace those here. The order of sending is the order of the laws: plan, then tar,
fingerprints and ledger of each shard, `set.json` last; what stands no longer is taken away before it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Container, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from stmae_data import files
from stmae_data.errors import SetError, UsageError
from stmae_data.records import SetRef, set_folder
from stmae_data.shards import ShardSet, fingerprint_path, ledger_path, open_set
from stmae_data.stores import Store

__all__ = ["Outpost", "fetch_set", "outpost"]

_LOCK = "meta/LOCK"
_LOCKS = (_LOCK, "meta/LOCK.jobs")
_SEAL = "meta/set.json"
_OWN = "meta/store.json"
_RETRY = "meta/retry.parquet"
_PLANS = (
    "meta/reconciliation.parquet",
    "meta/plan.json",
    "meta/plan.parquet",
    _RETRY,
)  # what says that there is a plan comes last
_HEADS = (*_PLANS[1:], _SEAL)
"""Whoever works on a set changes one of these first or last."""
_CARDS = ("README.md", "croissant.json", "report.html")
_SHARD = re.compile(r"(?:meta/(?:ledger|fingerprints)/)?([a-z]+-\d{6})\.(?:tar|parquet)")


class Outpost:
    """The set's objects, and what of the books here they already hold."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        path = folder / _OWN
        self.is_new = not path.exists()
        said: dict[str, Any] = {"url": store.url, "sent": {}} if self.is_new else files.read_json(path)
        if said["url"] != store.url:
            raise UsageError(
                f"Set {folder.name} of this workspace goes to {said['url']}, not {store.url}; keep the store, or build with --name."
            )
        self.sent: dict[str, str] = said["sent"]

    def fetch_books(self) -> None:
        """Bring every book that is missing here; where another machine has been at work since, all of them, and forget our own work.

        Raises:
            UsageError: a set that was built here would be replaced by another one on the store.
        """
        there = self.store.names()
        if self.is_new and _PLANS[2] in there and (self.folder / _PLANS[2]).exists():
            raise UsageError(
                f"A set {self.folder.name} stands in this workspace already, and another on {self.store.url}; build with --name."
            )
        self._note()  # whose books these are is known before the first of them arrives
        self.sent = {name: digest for name, digest in self.sent.items() if name in there or name == _RETRY}
        is_old = self._is_old(there)
        books = [name for name in there if name.startswith("meta/") and name not in (*_LOCKS, _OWN)]
        if any(".." in PurePosixPath(name).parts for name in books):
            raise SetError(
                f"{self.store.url} holds names that lead out of a set's folder, so nothing is fetched from it."
            )
        for name in books:
            path = self.folder / name
            if is_old or not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                self.store.get(name, path)
                self.sent[name] = files.sha256_file(path)
        self._forget(there, is_old=is_old)
        self.sent = {name: digest for name, digest in self.sent.items() if name in there}
        self._note()

    def _is_old(self, there: Container[str]) -> bool:
        """Whether another machine has planned, retried or sealed since: the store holds another book than we sent or fetched last."""
        if _RETRY in self.sent and _RETRY not in there:
            return True  # somebody has finished what we began
        return any(self.store.sha256(name) != self.sent.get(name) for name in _HEADS if name in there)

    def _forget(self, there: Container[str], *, is_old: bool) -> None:
        """Remove work that never arrived: a ledger whose tar is gone; of an older plan also plan, seal, and every ledger and tar.

        Books no build makes (decisions, embeddings) stay.
        """
        for path in sorted((self.folder / "meta" / "ledger").glob("*.parquet")):
            tar = self.folder / f"{path.stem}.tar"
            is_lost = not tar.exists() and tar.name not in there
            if f"meta/ledger/{path.name}" not in there and (is_old or is_lost):
                for book in (path, fingerprint_path(self.folder, path.stem)):
                    if book.exists():
                        files.remove_file(book, point="store_forget")
        if not is_old or self.is_new:
            return
        for tar in sorted(self.folder.glob("*.tar")):
            files.remove_file(tar, point="store_forget")
        for name in (_SEAL, *reversed(_PLANS)):
            if name not in there:
                files.remove_file(self.folder / name, point="store_forget")

    def send_plan(self) -> None:
        """The plan stands before work starts."""
        self._send_changed([name for name in _PLANS if (self.folder / name).exists()])

    def send_shard(self, name: str) -> None:
        """Tar, fingerprints, ledger, in this order; then the tar goes here."""
        tar = self.folder / f"{name}.tar"
        if tar.exists():
            self.store.put(tar, tar.name)
        books = (fingerprint_path(self.folder, name), ledger_path(self.folder, name))
        self._send_changed([str(path.relative_to(self.folder)) for path in books if path.exists()])
        if tar.exists():
            files.remove_file(tar, point="store_tar_gone")

    def finish(self) -> None:
        """Whatever is not there yet, `set.json` last."""
        for path in sorted((self.folder / "meta" / "ledger").glob("*.parquet")):
            if (self.folder / f"{path.stem}.tar").exists():
                self.send_shard(path.stem)
        books = sorted(
            str(path.relative_to(self.folder))
            for path in (self.folder / "meta").rglob("*")
            if path.is_file() and not path.name.startswith(files.TEMP_PREFIX)
        )
        cards = [name for name in _CARDS if (self.folder / name).is_file()]
        self._send_changed([*(name for name in books if name not in (*_LOCKS, _OWN, _SEAL)), *cards])
        there = self.store.names()
        for name in sorted(there):
            if (shard := _SHARD.fullmatch(name)) and not ledger_path(self.folder, shard[1]).exists():
                self._take_away(name)  # of a retry that recovered nothing
        if (self.folder / _SEAL).exists():
            self._send_changed([_SEAL])
        if _RETRY in there and not (self.folder / _RETRY).exists():
            self._take_away(_RETRY)
        self._note()

    def _take_away(self, name: str) -> None:
        self.store.remove(name)
        self.sent.pop(name, None)

    def _send_changed(self, names: list[str]) -> None:
        for name in names:
            digest = files.sha256_file(self.folder / name)
            if self.sent.get(name) != digest:
                self.store.put(self.folder / name, name)
                self.sent[name] = digest
        self._note()

    def _note(self) -> None:
        files.commit_json(self.folder / _OWN, {"url": self.store.url, "sent": self.sent}, point="store_note")


@contextlib.contextmanager
def outpost(url: str | None, folder: Path) -> Iterator[Outpost | None]:
    """The store of a set while its build runs, its lock held and its books fetched; None where the set stands here.

    Raises:
        UsageError: no such kind of store. Busy: somebody else builds this set there. StorageError: it does not answer.
    """
    if url is None:
        if (folder / _OWN).exists():
            url = files.read_json(folder / _OWN)["url"].rpartition("/")[0]
        else:
            yield None
            return
    store = Store.open(f"{url.rstrip('/')}/{folder.name}")
    with store.lock(_LOCK, what=f"Set {folder.name} on {store.url}"):
        found = Outpost(store, folder)
        found.fetch_books()
        yield found


def fetch_set(url: str, workspace: Path) -> ShardSet:
    """Bring the books of a sealed set on a store, or bring them up to date; its tars stay there and training reads them there.

    Args:
        url: the set's own address, such as s3://bucket/sets/k400; its last part is the set's name.
        workspace: gets `sets/<name>/meta`.

    Raises:
        SetError: no sealed set stands there, or it is being written. UsageError: another set of that name stands here.
        StorageError: the store does not answer. Busy: somebody writes the books here.
    """
    store = Store.open(url)
    name = SetRef.parse(store.url.rpartition("/")[2]).set_name
    folder = set_folder(workspace, name)
    if folder.is_dir() and not (folder / _OWN).exists():
        raise UsageError(f"A set {name} stands in {workspace} already; fetch into another workspace: -w.")
    if _SEAL not in store.names():
        raise SetError(f"No sealed set stands at {store.url}; name the set itself, as in s3://bucket/sets/k400.")
    with files.lock(folder / _LOCK, what=f"Set {name}"):
        Outpost(store, folder).fetch_books()
        found = open_set(workspace, name, books_only=True)
        wrong = [
            path
            for path, shard in zip(found.ledgers(), found.shards, strict=True)
            if not path.is_file() or files.sha256_file(path) != shard.ledger_sha256
        ]
        if wrong:
            for path in (folder / _SEAL, *wrong):  # nobody trains on them, and the next fetch brings them anew
                files.remove_file(path, point="fetch_set")
            raise SetError(
                f"The books at {store.url} do not fit together ({wrong[0].name}), as while a build writes there; fetch again when it is done."
            )
    return found
