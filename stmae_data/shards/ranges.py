"""Samples of sets that stand on a store, brought here by range reads into a folder that stays below a limit.

A file is named after the sha256 of the bytes it holds, so sets, versions and selections share it, and it can be deleted at any time. Any
number of threads and processes may use one folder: `flock` is the only word between them, and the kernel takes it back from the dead.

    <folder>/ab/ab12…          a sample; held open with a shared lock while somebody reads it, its time is that of its last use
    <folder>/parts/ab12…       one on its way, under an exclusive lock; without a lock it was left by a process that died
    <folder>/LOCK              held for the moment of an entry: bytes taken, those on their way included
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stmae_data import files
from stmae_data.errors import SetError, StorageError
from stmae_data.stores import Store

__all__ = ["DEFAULT_RANGE_BYTES", "Pin", "RangeCache", "StoreReader"]

DEFAULT_RANGE_BYTES = 20_000_000_000
_KEPT_SHARE = (
    0.9  # of the limit, after old files have been removed: so that not every new file has to look for old ones
)
_PAUSES = (0.5, 2.0)  # seconds before a store is asked again


@dataclass(frozen=True, slots=True)
class Pin:
    """A file of the cache that stays until it is closed."""

    path: Path
    descriptor: int

    def read(self) -> bytes:
        """All of it."""
        return os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)

    def close(self) -> None:
        """Let the file go."""
        _unlock(self.descriptor)


@dataclass(frozen=True, slots=True)
class RangeCache:
    """Files by the sha256 of their bytes, below `limit_bytes` together; the least recently used leave first."""

    folder: Path
    limit_bytes: int = DEFAULT_RANGE_BYTES

    def pin(self, sha256: str, size: int, bring: Callable[[], bytes], *, is_checked: bool = False) -> Pin:
        """Hold the file of these bytes, brought first where it is missing or damaged.

        Args:
            sha256: of the bytes.
            size: of the bytes.
            bring: fetches them; what it brings is checked.
            is_checked: the bytes that stand here have been hashed before and need not be again.

        Raises:
            SetError: other bytes came.
            StorageError: the disk is full, or everything in the cache is in use and nothing more fits in.
        """
        path = self.folder / sha256[:2] / sha256
        part = self.folder / "parts" / sha256
        while True:
            held = _held(path)
            if held is not None:
                if is_checked or hashlib.sha256(held.read()).hexdigest() == sha256:
                    return held
                if _stands(path, held.descriptor):  # nobody else has brought it anew
                    path.unlink(missing_ok=True)
                held.close()
            with _growing(part) as descriptor:
                if descriptor is None:
                    continue  # somebody else has brought it
                try:
                    if path.is_file():
                        part.unlink()
                        continue
                    self._reserve(size, part, descriptor)
                    self._fill(descriptor, size, sha256, part, bring)
                    files.commit_part(part, path, point="range")
                except BaseException:
                    part.unlink(missing_ok=True)
                    raise
                kept = os.dup(descriptor)
                fcntl.flock(kept, fcntl.LOCK_SH)  # one lock with `descriptor`, which is closed now
                return Pin(path, kept)

    def _fill(self, descriptor: int, size: int, sha256: str, part: Path, bring: Callable[[], bytes]) -> None:
        """Bring the bytes, check them, write them; where that fails, the room that was taken for them is given back."""
        try:
            data = bring()
            if hashlib.sha256(data).hexdigest() != sha256:
                raise SetError(f"wanted sha256 {sha256[:12]}…, got {hashlib.sha256(data).hexdigest()[:12]}…")
            with files.storage_errors(part):
                files.fault_point("range.write")
                os.pwrite(descriptor, data, 0)
        except BaseException:
            with self._accounts() as (taken, write):
                write(max(0, taken - size))
            raise

    def used_bytes(self) -> int:
        """Bytes of all files, those on their way included, at one moment: nothing is added or made room for while they are counted."""
        with self._accounts():
            return self._counted()

    def _reserve(self, size: int, part: Path, descriptor: int) -> None:
        """Take room for `size` bytes, at once and on the disk, and make it where there is none."""
        with self._accounts() as (taken, write):
            if taken + size > self.limit_bytes:
                taken = self._make_room(size)
            if taken + size > self.limit_bytes:
                raise StorageError(
                    f"The cache {self.folder} may hold {self.limit_bytes:,} bytes and {taken:,} are in use, so {size:,} more do not fit in; "
                    f"raise --store-cache-gb, or lower --prefetch or --workers."
                )
            with files.storage_errors(part):
                files.fault_point("range.reserve")
                os.posix_fallocate(descriptor, 0, size)
            write(taken + size)

    @contextlib.contextmanager
    def _accounts(self) -> Iterator[tuple[int, Callable[[int], None]]]:
        """The bytes that are taken, and how to write down another number, for one process at a time."""
        path = self.folder / "LOCK"
        with files.storage_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            text = os.pread(descriptor, 32, 0)

            def write(taken: int) -> None:
                os.pwrite(descriptor, b"%031d\n" % taken, 0)

            yield (int(text) if text.strip().isdigit() else self._counted()), write
        finally:
            _unlock(descriptor)

    def _make_room(self, size: int) -> int:
        """Remove what nobody holds, the least recently used first, until `size` more bytes fit in; returns the bytes that are left.

        What somebody who died had taken and not used is found out here too: files are counted anew.
        """
        found = sorted(self._files())
        taken = sum(each for _, each, _ in found)
        goal = min(self.limit_bytes - size, int(self.limit_bytes * _KEPT_SHARE))
        has_moved = False
        for _, each, path in found:
            if taken <= goal:
                break
            if _removed(path):
                taken -= each
            else:
                has_moved |= not path.exists()  # it came under its final name since it was counted
        return self._make_room(size) if has_moved and taken > self.limit_bytes - size else taken

    def _counted(self) -> int:
        return sum(size for _, size, _ in self._files())

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """(time of the last use, bytes, path) of every file, once each though they move: first the place that they come from."""
        seen = set()
        for pattern in ("parts/*", "??/*"):
            for path in self.folder.glob(pattern):
                with contextlib.suppress(FileNotFoundError):  # it has just left, or come under its final name
                    found = path.stat()
                    if found.st_ino not in seen:
                        yield found.st_mtime_ns, found.st_size, path
                    seen.add(found.st_ino)


def _unlock(descriptor: int) -> None:
    """Unlock, then close: a process that was forked meanwhile has the descriptor too, and would keep the lock."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _held(path: Path) -> Pin | None:
    """The file with a shared lock, marked as used now; None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if _stands(path, descriptor):
        os.utime(descriptor)
        return Pin(path, descriptor)
    os.close(descriptor)
    return None


@contextlib.contextmanager
def _growing(part: Path) -> Iterator[int | None]:
    """A descriptor of the file on its way, ours alone; None where somebody else was at it, after that has ended."""
    with files.storage_errors(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        # Waited for with a shared lock: once it is in its place, others hold it with one for as long as they like.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not (_stands(part, descriptor) and _locked(descriptor) and _stands(part, descriptor)):
            yield None
            return
        os.ftruncate(descriptor, 0)  # whatever a process that died had written
        yield descriptor
    finally:
        os.close(descriptor)  # its lock may live on in a pin


def _locked(descriptor: int) -> bool:
    """Take the file for us alone, unless somebody holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _removed(path: Path) -> bool:
    """Remove a file unless somebody holds it; whether that was done."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)  # NFS wants it writable to lock it alone
    except FileNotFoundError:
        return False
    try:
        if _locked(descriptor) and _stands(path, descriptor):
            path.unlink(missing_ok=True)
            return True
        return False
    finally:
        os.close(descriptor)


def _stands(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@dataclass(slots=True)
class StoreReader:
    """Samples of the shards on one store, through a cache."""

    url: str
    cache: RangeCache
    _stores: dict[int, Store] = field(default_factory=dict, repr=False)

    def pin(self, name: str, offset: int, size: int, sha256: str, *, is_checked: bool = False) -> Pin:
        """Hold the bytes [offset, offset + size) of a shard; `is_checked` as for `RangeCache.pin`.

        Raises:
            SetError: the store holds other bytes there than the set's books say.
            StorageError: it does not answer, three times over; or the disk is full.
        """
        try:
            return self.cache.pin(sha256, size, lambda: self._bring(name, offset, size), is_checked=is_checked)
        except SetError as error:
            raise SetError(
                f"{self.url}/{name} holds other bytes at {offset} than its ledger says ({error}); verify the set."
            ) from error

    def _bring(self, name: str, offset: int, size: int) -> bytes:
        # A store is opened anew in every process: the libraries behind it do not survive a fork.
        store = self._stores.get(os.getpid()) or self._stores.setdefault(os.getpid(), Store.open(self.url))
        for pause in _PAUSES:
            try:
                return store.read_range(name, offset, size)
            except StorageError:
                time.sleep(pause)
        return store.read_range(name, offset, size)
