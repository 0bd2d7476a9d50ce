"""Object stores: a set as objects under one URL. One PUT per object; the PUT of a ledger is the commit of its shard.

There is no rename and no fsync out there, and no lock that the kernel frees: a lock is an object that only one writer can create.
Reached through fsspec: `s3://bucket/sets`, `gs://…`, `memory://…`; credentials come from the store's own configuration.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stmae_data import files
from stmae_data.errors import Busy, StmaeDataError, StorageError, UsageError

__all__ = ["Store"]


@dataclass(frozen=True, slots=True)
class Store:
    """The objects under one URL; names are relative to it."""

    url: str
    filesystem: Any
    root: str

    @classmethod
    def open(cls, url: str) -> Store:
        """Reach a store.

        Raises:
            UsageError: no URL, one with credentials in it, or one whose kind is not installed.
        """
        import fsspec

        parts = urlsplit(url)
        if not parts.scheme or parts.username or parts.password:
            raise UsageError(
                f"{parts.scheme or url!r} is no address of a store; wanted a URL without credentials, as in s3://bucket/sets."
            )
        if parts.scheme in ("file", "local"):
            raise UsageError(f"{url} is a folder of this machine; name its workspace with -w and leave --store out.")
        try:
            filesystem, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(
                f"A store {parts.scheme}:// cannot be reached ({error}); install it: pip install 'stmae[cloud]'."
            ) from error
        return cls(url.rstrip("/"), filesystem, root.rstrip("/"))

    @classmethod
    def of(cls, folder: Path) -> Store | None:
        """The store on which the set of `folder` stands, as `meta/store.json` says; None where it stands in the folder itself."""
        path = folder / "meta" / "store.json"
        return cls.open(files.read_json(path)["url"]) if path.is_file() else None

    def names(self) -> dict[str, int]:
        """Every object with its size in bytes.

        Raises:
            StorageError: the store does not answer.
        """
        with self._told("read"):
            self.filesystem.invalidate_cache()
            try:
                found = self.filesystem.find(self.root, detail=True)
            except FileNotFoundError:
                return {}
            return {path.removeprefix(f"{self.root}/"): int(facts["size"]) for path, facts in found.items()}

    def put(self, path: Path, name: str) -> None:
        """Send one file; it stands whole under its name or not at all.

        Raises:
            StorageError: the store refuses, or holds another number of bytes afterwards.
        """
        files.fault_point("store_put")
        with self._told("write"):
            self.filesystem.put_file(str(path), f"{self.root}/{name}")
            self.filesystem.invalidate_cache()
            size = int(self.filesystem.info(f"{self.root}/{name}")["size"])
        if size != path.stat().st_size:
            raise StorageError(
                f"{self.url}/{name} holds {size} bytes, {path.stat().st_size} were sent; run the same command again."
            )
        files.fault_point("store_sent")

    def get(self, name: str, path: Path) -> None:
        """Bring one object to `path`.

        Raises:
            StorageError: the store does not answer, or has no such object.
        """
        with (
            self._told("read"),
            self.filesystem.open(f"{self.root}/{name}", "rb") as source,
            files.committing(path, point="store_get") as stream,
        ):
            while piece := source.read(1 << 22):
                stream.write(piece)

    def read(self, name: str) -> bytes:
        """The bytes of a small object.

        Raises:
            StorageError: the store does not answer, or has no such object.
        """
        with self._told("read"):
            found: bytes = self.filesystem.cat_file(f"{self.root}/{name}")
            return found

    def sha256(self, name: str) -> str:
        """Hash of an object's bytes, read piece by piece.

        Raises:
            StorageError: the store does not answer, or has no such object.
        """
        digest = hashlib.sha256()
        with self._told("read"), self.filesystem.open(f"{self.root}/{name}", "rb") as source:
            while piece := source.read(1 << 22):
                digest.update(piece)
        return digest.hexdigest()

    def remove(self, name: str) -> None:
        """Take one object away.

        Raises:
            StorageError: the store does not answer, or has no such object.
        """
        files.fault_point("store_remove")
        with self._told("write"):
            self.filesystem.rm_file(f"{self.root}/{name}")

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """The bytes [offset, offset + size) of an object.

        Raises:
            StorageError: the store does not answer, or has fewer bytes there.
        """
        with self._told("read"):
            found: bytes = self.filesystem.cat_file(f"{self.root}/{name}", start=offset, end=offset + size)
        if len(found) != size:
            raise StorageError(
                f"{self.url}/{name} gave {len(found)} of {size} bytes at {offset}; verify the set, or run the same command again."
            )
        return found

    @contextlib.contextmanager
    def lock(self, name: str, *, what: str) -> Iterator[None]:
        """Hold the lock object `name`, which only one writer can create.

        Raises:
            Busy: it stands already; the message names its owner.
            StorageError: the store does not answer.
        """
        path = f"{self.root}/{name}"
        owner = {"host": socket.gethostname(), "pid": os.getpid()}
        with self._told("write"):
            try:
                self.filesystem.pipe_file(path, json.dumps(owner).encode(), mode="create")
            except FileExistsError:
                held = json.loads(self.filesystem.cat_file(path))
                raise Busy(
                    f"{what} is being written by process {held.get('pid')} on {held.get('host')}; wait for it. If it has died, "
                    f"remove {self.url}/{name} and run the same command again."
                ) from None
        try:
            yield
        finally:
            with self._told("write"):
                self.filesystem.rm_file(path)

    @contextlib.contextmanager
    def _told(self, verb: str) -> Iterator[None]:
        """Turn what a store's library raises into one sentence."""
        try:
            yield
        except StmaeDataError:
            raise
        except Exception as error:  # the libraries behind fsspec have trees of errors of their own: no credentials, no bucket, no answer
            said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise StorageError(
                f"Cannot {verb} {self.url}: {said}. Nothing is lost; run the same command again."
            ) from error
