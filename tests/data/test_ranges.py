"""The cache of what is read from stores: below its limit, whole, and the same for everybody who shares it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stmae_data.errors import SetError, StorageError
from stmae_data.shards import Pin, RangeCache, StoreReader
from stmae_data.stores import Store


def content(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest() * 32


def sha(number: int) -> str:
    return hashlib.sha256(content(number)).hexdigest()


def pin(cache: RangeCache, number: int) -> Pin:
    return cache.pin(sha(number), len(content(number)), lambda: content(number))


def read(cache: RangeCache, number: int) -> bytes:
    held = pin(cache, number)
    try:
        return held.read()
    finally:
        held.close()


def names(cache: RangeCache) -> set[str]:
    return {path.name for path in cache.folder.glob("*/*")}


def test_the_limit_holds_and_the_least_recently_used_leave_first(tmp_path: Path) -> None:
    size = len(content(0))
    cache = RangeCache(tmp_path, 10 * size)
    for number in range(50):
        assert read(cache, number) == content(number)
        assert read(cache, 0) == content(0)  # always in use, so never the oldest
        assert cache.used_bytes() <= cache.limit_bytes
    assert sha(0) in names(cache) and sha(49) in names(cache) and sha(1) not in names(cache)
    # Another instance, as of another process, reads what is there without bringing it.
    assert RangeCache(tmp_path, 10 * size).pin(sha(49), size, lambda: pytest.fail("brought again")).read() == content(
        49
    )


def test_what_is_held_stays_and_a_cache_too_small_for_it_says_so(tmp_path: Path) -> None:
    size = len(content(0))
    cache = RangeCache(tmp_path, 4 * size)
    held = [pin(cache, number) for number in range(4)]
    with pytest.raises(StorageError, match=r"may hold .* so .* more do not fit in; raise --store-cache-gb"):
        pin(cache, 4)
    held.pop(1).close()
    assert read(cache, 4) == content(4)
    assert names(cache) == {sha(0), sha(2), sha(3), sha(4)}
    for each in held:
        each.close()


def test_other_bytes_are_refused_and_a_damaged_file_is_brought_again(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path)
    with pytest.raises(SetError, match="wanted sha256"):
        cache.pin(sha(1), len(content(1)), lambda: content(2))
    assert not names(cache)
    read(cache, 1)
    (path,) = cache.folder.glob("??/*")
    path.write_bytes(content(1)[:-1] + b"x")
    assert read(cache, 1) == content(1)
    path.write_bytes(content(1)[:10])
    assert read(cache, 1) == content(1) and path.read_bytes() == content(1)


@pytest.mark.parametrize("point", ["range.reserve", "range.write", "range.rename"])
def test_a_full_disk_ends_in_one_sentence_and_leaves_nothing(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = RangeCache(tmp_path, 3 * len(content(0)))
    monkeypatch.setenv("STMAE_FAULT", f"{point}:1:ENOSPC")
    monkeypatch.setattr("stmae_data.files._passed", {})
    with pytest.raises(StorageError, match="No space left on device"):
        pin(cache, 1)
    monkeypatch.delenv("STMAE_FAULT")
    assert not names(cache)
    for number in range(9):
        assert read(cache, number) == content(number)


def test_what_comes_into_its_place_while_files_are_counted_is_not_taken_for_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = RangeCache(tmp_path, 2 * len(content(0)))
    held = [pin(cache, number) for number in (0, 1)]
    place, on_its_way = tmp_path / sha(1)[:2] / sha(1), tmp_path / "parts" / sha(1)
    place.rename(on_its_way)
    counted = RangeCache._files

    def files_before_it_came(self: RangeCache) -> list[tuple[int, int, Path]]:
        found = list(counted(self))
        if on_its_way.exists():
            on_its_way.rename(place)
        return found

    monkeypatch.setattr(RangeCache, "_files", files_before_it_came)
    with pytest.raises(StorageError, match="are in use"):
        pin(cache, 2)
    assert cache.used_bytes() == cache.limit_bytes
    held[1].close()
    assert read(cache, 2) == content(2) and cache.used_bytes() == cache.limit_bytes
    held[0].close()


READ = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from test_ranges import RangeCache, content, read
cache = RangeCache(Path(sys.argv[2]), int(sys.argv[3]))
def turn(number):
    assert read(cache, number % 24) == content(number % 24)
    assert cache.used_bytes() <= cache.limit_bytes
with ThreadPoolExecutor(4) as pool:
    list(pool.map(turn, [int(each) for each in sys.argv[4].split(",")]))
"""


def process(folder: Path, limit: int, numbers: range, **environment: str) -> subprocess.Popen[bytes]:
    given = [__file__, str(folder), str(limit), ",".join(map(str, numbers))]
    return subprocess.Popen(
        [sys.executable, "-c", READ, *given], env={**os.environ, **environment}, stderr=subprocess.PIPE
    )


def test_processes_and_threads_share_one_folder_below_one_limit(tmp_path: Path) -> None:
    limit = 14 * len(content(0))  # a few more than are held at a time
    running = [process(tmp_path, limit, range(start, start + 400, step)) for start, step in ((0, 1), (12, 1), (5, 7))]
    for each in running:
        _, errors = each.communicate(timeout=120)
        assert each.returncode == 0, errors.decode()
    assert not list(tmp_path.glob("parts/*"))


@pytest.mark.parametrize(
    "point", ["range.reserve:3", "range.write:3", "range.fsync:3", "range.rename:3", "range.done:3"]
)
def test_killed_anywhere_nothing_wrong_is_left(point: str, tmp_path: Path) -> None:
    size = len(content(0))
    killed = process(tmp_path, 4 * size, range(4), STMAE_FAULT=point)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    cache = RangeCache(tmp_path, 4 * size)
    for number in range(12):
        assert read(cache, number) == content(number)
        assert cache.used_bytes() <= cache.limit_bytes
    assert not list(tmp_path.glob("parts/*"))
    # Its room is not lost for good: as many as fit in are there.
    held = [pin(cache, number) for number in range(4)]
    for each in held:
        each.close()


def test_two_that_want_the_same_bring_it_once(tmp_path: Path) -> None:
    cache, brought = RangeCache(tmp_path), []

    def bring() -> bytes:
        brought.append(1)
        return content(7)

    def turn(_: int) -> bytes:
        held = cache.pin(sha(7), len(content(7)), bring)
        try:
            return held.read()
        finally:
            held.close()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(turn, range(64))) == {content(7)}
    assert len(brought) == 1


def test_a_store_is_asked_again_before_it_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stmae_data.shards.ranges._PAUSES", (0.0, 0.0))
    store = Store.open("memory://ranges/sets/tiny")
    store.filesystem.pipe_file(f"{store.root}/train-000000.tar", b"-" * 512 + content(3) + b"-" * 512)
    honest, asked = type(store.filesystem).cat_file, []

    def cat_file(*arguments: object, **options: object) -> bytes:
        asked.append(1)
        if len(asked) < 3:
            raise OSError("connection reset")
        return bytes(honest(*arguments, **options))

    monkeypatch.setattr(type(store.filesystem), "cat_file", cat_file)
    reader = StoreReader(store.url, RangeCache(tmp_path))
    assert reader.pin("train-000000.tar", 512, len(content(3)), sha(3)).read() == content(3)
    monkeypatch.setattr(type(store.filesystem), "cat_file", honest)
    with pytest.raises(SetError, match=r"memory://ranges/sets/tiny/train-000000\.tar holds other bytes at 0"):
        reader.pin("train-000000.tar", 0, len(content(4)), sha(4))
    with pytest.raises(StorageError, match="gave 512 of"):
        reader.pin("train-000000.tar", 512 + len(content(3)), len(content(4)), sha(4))
    with pytest.raises(StorageError, match=r"Cannot read memory://ranges/sets/tiny"):
        reader.pin("train-000009.tar", 0, len(content(4)), sha(4))
