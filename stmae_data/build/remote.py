"""A build whose set stands on an object store: the workspace keeps its books, each tar goes as soon as its shard is committed here.

What stands on the store is the truth: books that are missing here are fetched first, so that any machine can go on with a build. The order
of sending is the order of the laws: plan, then tar, fingerprints and ledger of each shard, `set.json` last.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stmae_data import files
from stmae_data.errors import UsageError
from stmae_data.shards import fingerprint_path, ledger_path
from stmae_data.stores import Store

__all__ = ["Outpost", "outpost"]

_LOCK = "meta/LOCK"
_SEAL = "meta/set.json"
_OWN = "meta/store.json"
_PLANS = ("meta/reconciliation.parquet", "meta/plan.json", "meta/plan.parquet")  # the plan itself last


class Outpost:
    """The set's objects, and what of the books here they already hold."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        path = folder / _OWN
        said: dict[str, Any] = files.read_json(path) if path.exists() else {"url": store.url, "sent": {}}
        if said["url"] != store.url:
            raise UsageError(
                f"Set {folder.name} of this workspace goes to {said['url']}, not {store.url}; keep the store, or build with --name."
            )
        self.sent: dict[str, str] = said["sent"]

    def fetch_books(self) -> None:
        """Bring every book that is missing here; forget shards whose commit never arrived and whose tar is gone."""
        there = self.store.names()
        books = [name for name in there if name.startswith("meta/") and name not in (_LOCK, _OWN)]
        # Where another machine has sealed since, what stands here is old.
        is_old = _SEAL in there and hashlib.sha256(self.store.read(_SEAL)).hexdigest() != self.sent.get(_SEAL)
        for name in books:
            path = self.folder / name
            if is_old or not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                self.store.get(name, path)
                self.sent[name] = files.sha256_file(path)
        for path in sorted((self.folder / "meta" / "ledger").glob("*.parquet")):
            tar = self.folder / f"{path.stem}.tar"
            if f"meta/ledger/{path.name}" not in there and not tar.exists() and f"{path.stem}.tar" not in there:
                files.remove_file(path, point="store_forget")
        self._note()

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
        self._send_changed([name for name in books if name not in (_LOCK, _OWN, _SEAL)])
        if (self.folder / _SEAL).exists():
            self._send_changed([_SEAL])

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
