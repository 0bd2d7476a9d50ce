"""Sets that stand on a store are read as those that stand here: the same batches, through a cache below its limit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stmae_data.errors import SetError, StorageError
from stmae_data.shards import RangeCache, open_set
from stmae_data.stores import Store
from stmae_train.errors import DataMismatch
from stmae_train.loader import Batch, CropRule, ReadOptions, TrainLoader, open_sources
from stmae_train.views import FrameRule

ROOMY = 1_000_000_000


def loader(workspace: Path, shards: Sequence[str] = ("tiny",), **options: int) -> TrainLoader:
    return TrainLoader(
        workspace,
        open_sources(workspace, shards),
        rule=FrameRule(4, 4),
        crop=CropRule((0.5, 1.0), (3 / 4, 4 / 3), True),
        seed=7,
        batch_videos=8,
        repeats=2,
        options=ReadOptions(**{"cache_bytes": 0, **options}),
    )


def put(workspace: Path, url: str) -> Store:
    """Put the tars of set `tiny` on a store, as a build with --store leaves them."""
    folder = workspace / "sets" / "tiny"
    store = Store.open(f"{url}/tiny")
    for tar in folder.glob("*.tar"):
        store.put(tar, tar.name)
        tar.unlink()
    (folder / "meta" / "store.json").write_text(json.dumps({"url": store.url, "sent": {}}))
    return store


@pytest.fixture
def stored(small_world: Path, tmp_path: Path) -> tuple[Path, Store]:
    """A workspace whose set `tiny` stands on a store in memory, and that store."""
    workspace = tmp_path / "stored"
    shutil.copytree(small_world / "sets", workspace / "sets")
    return workspace, put(workspace, f"memory://{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}/sets")


def same(ours: Sequence[Batch], theirs: Sequence[Batch]) -> bool:
    return all(
        a.clip_ids == b.clip_ids and torch.equal(a.planes, b.planes) and (a.numbers == b.numbers).all()
        for a, b in zip(ours, theirs, strict=True)
    )


def test_a_sample_is_hashed_once_in_the_process_that_brings_it(
    stored: tuple[Path, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []

    def counted(data: bytes) -> Any:
        hashed.append(len(data))
        return hashlib.sha256(data)

    (source,) = open_sources(stored[0], ["tiny"])
    wanted = [source.media(row) for row in (0, 1)]
    monkeypatch.setattr("stmae_data.shards.ranges.hashlib", SimpleNamespace(sha256=counted))
    assert [source.media(row) for row in (0, 1)] == wanted and not hashed
    (worker,) = open_sources(stored[0], ["tiny"])
    worker.trust(0)  # as a decoding process does, whose parent holds the sample
    assert [worker.media(row) for row in (0, 1)] == wanted and hashed == [len(wanted[1])]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_set_on_this_disk(small_world: Path, stored: tuple[Path, Store], workers: int) -> None:
    workspace, store = stored
    here = list(loader(small_world).batches(0, 6))
    assert same(list(loader(workspace, workers=workers).batches(0, 6)), here)
    # Every sample has come once and is here: the store is not asked again, so it may be gone.
    kept = RangeCache(workspace / "cache" / "ranges")
    samples = sum(shard.samples for shard in open_set(small_world, "tiny").of_split("train"))
    assert len(list(kept.folder.glob("??/*"))) == samples
    reading = loader(workspace, workers=workers)
    store.filesystem.rm(store.root, recursive=True)
    assert same(list(reading.batches(0, 6)), here)


def test_sets_here_and_there_are_mixed_and_the_decoded_cache_is_the_same(
    small_world: Path, stored: tuple[Path, Store]
) -> None:
    workspace, _ = stored
    both = ("tiny@0.5", "even@0.5")
    here = list(loader(small_world, both).batches(0, 3))
    assert same(list(loader(workspace, both, workers=1).batches(0, 3)), here)
    assert same(list(loader(workspace, both, cache_bytes=ROOMY).batches(0, 3)), here)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_limit_holds_while_samples_leave_and_come_back(
    small_world: Path, stored: tuple[Path, Store], workers: int
) -> None:
    workspace, _ = stored
    here = list(loader(small_world).batches(0, 9))
    sizes = sum(int(source.index.media_bytes.sum()) for source in open_sources(small_world, ["tiny"]))
    cache, found = RangeCache(workspace / "cache" / "ranges"), []
    # 24 samples, of which 16 are asked for at a time and a few are with the workers: three epochs turn the cache over again and again.
    reading = loader(workspace, workers=workers, prefetch=1, store_cache_bytes=int(sizes * 0.98))
    for batch in reading.batches(0, 9):
        found.append(batch)
        assert cache.used_bytes() <= int(sizes * 0.98)
    assert same(found, here)


def test_a_cache_too_small_for_the_samples_in_work_says_what_to_change(stored: tuple[Path, Store]) -> None:
    with pytest.raises(StorageError, match=r"may hold 10,000 bytes .* raise --store-cache-gb"):
        list(loader(stored[0], store_cache_bytes=10_000).batches(0, 3))


def test_a_store_that_vanishes_ends_in_one_sentence(
    stored: tuple[Path, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stmae_data.shards.ranges._PAUSES", ())
    workspace, store = stored
    reading = loader(workspace, workers=1, skip_damaged=100)
    store.filesystem.rm(store.root, recursive=True)
    # It is no damage of a sample: nothing is skipped for it.
    with pytest.raises(StorageError, match=r"Cannot read memory://.*/sets/tiny: "):
        list(reading.batches(0, 3))
    assert not reading.reader.skipped


def test_a_set_that_is_not_whole_on_its_store_is_refused_at_the_start(stored: tuple[Path, Store]) -> None:
    workspace, store = stored
    tar = store.read("train-000001.tar")
    store.filesystem.pipe_file(f"{store.root}/train-000001.tar", tar[:-512])
    with pytest.raises(SetError, match=r"memory://.*/train-000001\.tar has \d+ bytes, set\.json says \d+"):
        loader(workspace)
    store.filesystem.rm_file(f"{store.root}/train-000001.tar")
    with pytest.raises(SetError, match=r"memory://.*/train-000001\.tar is missing"):
        loader(workspace)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_is_damaged_on_the_store_is_named_or_counted(stored: tuple[Path, Store], workers: int) -> None:
    workspace, store = stored
    (source,) = open_sources(workspace, ["tiny"])
    row = int(source.index.clip_ids.tolist().index("tinytrain0003"))
    name = source.index.shard_paths[int(source.index.shard[row])].name
    tar = bytearray(store.read(name))
    tar[int(source.index.media_offset[row]) + 100] ^= 1
    store.filesystem.pipe_file(f"{store.root}/{name}", bytes(tar))
    with pytest.raises(
        DataMismatch, match=r"Clip tinytrain0003 of tiny:train cannot be decoded \(memory://.* other bytes"
    ):
        list(loader(workspace, workers=workers).batches(0, 3))
    reading = loader(workspace, workers=workers, skip_damaged=1)
    assert "tinytrain0003" in [name for batch in reading.batches(0, 3) for name in batch.skipped]
    assert list(reading.reader.skipped) == ["tinytrain0003"]


READ = """
import hashlib, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from test_loader_stores import loader
digest = hashlib.sha256()
for batch in loader(Path(sys.argv[2]), workers=2, prefetch=1, store_cache_bytes=int(sys.argv[3])).batches(0, 6):
    digest.update(batch.planes.numpy().tobytes())
print(digest.hexdigest())
"""


def test_processes_read_a_set_on_s3_through_one_cache(
    small_world: Path, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes beside each other, each with worker processes; whatever one has brought the other finds."""
    import s3fs

    settings = {"AWS_ENDPOINT_URL": s3_server, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    for key, value in {**settings, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(key, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("training")
    shutil.copytree(small_world / "sets", tmp_path / "sets")
    put(tmp_path, "s3://training/sets")
    limit = sum(int(source.index.media_bytes.sum()) for source in open_sources(small_world, ["tiny"]))
    running = [
        subprocess.Popen(
            [sys.executable, "-c", READ, __file__, str(tmp_path), str(limit)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    here = hashlib.sha256()
    for batch in loader(small_world).batches(0, 6):
        here.update(batch.planes.numpy().tobytes())
    for each in running:
        said, errors = each.communicate(timeout=120)
        assert each.returncode == 0, errors
        assert said.strip() == here.hexdigest()
    assert RangeCache(tmp_path / "cache" / "ranges").used_bytes() <= limit
