"""The loader: one order whoever asks, one pixel whatever path, and damaged data named."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from stmae_data.errors import SetError
from stmae_data.frames import Planes
from stmae_train.config import Recipe
from stmae_train.errors import ConfigError, DataMismatch
from stmae_train.loader import (
    Batch,
    ClipSource,
    CropRule,
    Mix,
    ReadOptions,
    SweepLoader,
    TrainLoader,
    check_labels,
    dividing_sizes,
    open_sources,
    permute,
)
from stmae_train.loader.cache import open_cache
from stmae_train.runlog import commit_in_common
from stmae_train.views import FrameRule

RULE, CROP = FrameRule(4, 4), CropRule((0.5, 1.0), (3 / 4, 4 / 3), True)
NO_CACHE = 0


def loader(
    workspace: Path, *, shards: Sequence[str] = ("tiny",), rank: int = 0, world: int = 1, **options: int
) -> TrainLoader:
    return TrainLoader(
        workspace,
        open_sources(workspace, shards),
        rule=RULE,
        crop=CROP,
        seed=7,
        batch_videos=8,
        repeats=2,
        rank=rank,
        world_size=world,
        options=ReadOptions(**options),
    )


def facts(batches: Sequence[Batch]) -> list[tuple[int, str, int, int, int, bool, bytes]]:
    """Everything that decides a clip, by global number."""
    found = []
    for batch in batches:
        for place, number in enumerate(batch.numbers):
            boxes = batch.boxes
            box = int(boxes.top[place]), int(boxes.left[place]), int(boxes.width[place]), bool(boxes.is_flipped[place])
            content = batch.planes[place].flatten()
            found.append((int(number), batch.clip_ids[place], *box, content[content != 0].numpy().tobytes()))
    return sorted(found)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_the_order_is_a_bijection_in_every_epoch(size: int) -> None:
    orders = [permute(np.arange(size), size=size, key=99, epoch=epoch) for epoch in range(3)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(size))
    if size > 7:
        assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], np.arange(size))
        mixed = permute(np.arange(size), size=size, key=99, epoch=np.arange(size) % 3)
        assert all(mixed[place] == orders[place % 3][place] for place in range(size))


def test_every_video_comes_once_per_epoch() -> None:
    mix = Mix.of([24], [1.0], digests=["a"], seed=0)
    _, rows = mix.locate(np.arange(24 * 5))
    assert all(len(set(epoch)) == 24 for epoch in rows.reshape(5, 24))


def test_a_mix_keeps_its_shares_and_its_sets_keep_their_epochs() -> None:
    mix = Mix.of([10, 500, 30], [0.25, 0.5, 0.25], digests=["a", "b", "c"], seed=3)
    chosen, rows = mix.locate(np.arange(8192))
    assert np.allclose(np.bincount(chosen) / 8192, [0.25, 0.5, 0.25], atol=1e-3)
    assert np.allclose(np.bincount(chosen[1000:1200]) / 200, [0.25, 0.5, 0.25], atol=0.12)  # mixed, not in stretches
    counts = np.bincount(rows[chosen == 0])
    assert len(counts) == 10 and counts.max() - counts.min() <= 1
    one_by_one = [mix.locate(np.array([draw])) for draw in (0, 1023, 1024, 5000)]
    assert [(int(a[0]), int(b[0])) for a, b in one_by_one] == [
        (int(chosen[d]), int(rows[d])) for d in (0, 1023, 1024, 5000)
    ]


def test_sets_without_weights_are_a_union() -> None:
    assert Mix.of([10, 30], [1.0, 1.0], digests=["a", "b"], seed=0).shares == (0.25, 0.75)
    with pytest.raises(DataMismatch, match="raise its weight"):
        Mix.of([1, 100000], [1.0, 1.0], digests=["a", "b"], seed=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(small_world: Path, workers: int) -> None:
    alone = list(loader(small_world, cache_bytes=NO_CACHE).batches(0, 3))
    shared = list(loader(small_world, cache_bytes=NO_CACHE, workers=workers).batches(0, 3))
    for ours, theirs in zip(alone, shared, strict=True):
        assert ours.clip_ids == theirs.clip_ids and torch.equal(ours.planes, theirs.planes)


def test_the_cache_changes_no_pixel(small_world: Path, small_recipe: Recipe) -> None:
    direct = list(loader(small_world, cache_bytes=NO_CACHE).batches(0, 4))
    cached = list(loader(small_world).batches(0, 4))
    assert list((small_world / "cache").iterdir())
    cpu = torch.device("cpu")
    for ours, theirs in zip(direct, cached, strict=True):
        assert torch.equal(ours.planes, theirs.planes)
        assert torch.equal(ours.clips(small_recipe.model, device=cpu), theirs.clips(small_recipe.model, device=cpu))


def test_world_sizes_and_restarts_see_the_same_clips_and_crops(small_world: Path) -> None:
    whole = facts(list(loader(small_world).batches(0, 4)))
    for world in (2, 4):
        shares = [list(loader(small_world, rank=rank, world=world).batches(0, 4)) for rank in range(world)]
        assert facts([batch for share in shares for batch in share]) == whole
    restarted = [*loader(small_world).batches(0, 1), *loader(small_world, rank=0, world=1).batches(1, 4)]
    assert facts(restarted) == whole


def test_a_batch_that_cannot_be_shared_names_the_sizes_that_work(small_world: Path) -> None:
    assert dividing_sizes(8, accumulate=2) == [1, 2, 4]
    with pytest.raises(ConfigError, match=r"shared by 3 processes; these numbers of processes work: 1, 2, 4, 8\."):
        loader(small_world, world=3)


def test_two_sets_are_mixed_by_weight(small_world: Path) -> None:
    ids = [
        each
        for batch in loader(small_world, shards=("tiny@0.5", "even@0.5")).batches(0, 128)
        for each in batch.clip_ids
    ]
    assert sum(each.startswith("even") for each in ids) == len(ids) / 2


def test_a_sweep_gives_every_sample_once_with_its_views(small_world: Path) -> None:
    sweep = SweepLoader(small_world, open_sources(small_world, ["tiny:val"]), rule=RULE, views=3, batch_videos=5)
    batches = list(sweep.batches())
    assert [len(batch) for batch in batches] == [15, 15, 6]
    assert np.array_equal(np.concatenate([batch.numbers for batch in batches]), np.arange(36))
    ids = [each for batch in batches for each in batch.clip_ids]
    assert ids == [f"tinyval{number:04d}" for number in range(12) for _ in range(3)]
    assert torch.cat([batch.labels for batch in batches])[::3].tolist() == [number % 4 for number in range(12)]


def spoil(monkeypatch: pytest.MonkeyPatch, rows: Sequence[int], act: Callable[[], None]) -> None:
    """Let reading some rows go wrong."""
    honest = ClipSource.planes

    def planes(self: ClipSource, row: int, clips: Sequence[Sequence[int]]) -> Planes:
        if row in rows:
            act()
        return honest(self, row, clips)

    monkeypatch.setattr(ClipSource, "planes", planes)


def broken() -> None:
    raise SetError("Frame 4 did not arrive.")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_stops_the_run_by_name(
    small_world: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    spoil(monkeypatch, [3], broken)
    reading = loader(small_world, cache_bytes=NO_CACHE, workers=workers)
    with pytest.raises(
        DataMismatch, match=r"Clip tinytrain0003 of tiny:train cannot be decoded \(Frame 4 did not arrive\)"
    ):
        list(reading.batches(0, 3))


def test_damaged_samples_are_left_out_and_never_replaced(small_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = facts(list(loader(small_world, cache_bytes=NO_CACHE).batches(0, 3)))
    spoil(monkeypatch, [3], broken)
    reading = loader(small_world, cache_bytes=NO_CACHE, skip_damaged=1)
    batches = list(reading.batches(0, 3))
    assert [fact[:2] for fact in facts(batches)] == [fact[:2] for fact in whole if fact[1] != "tinytrain0003"]
    assert reading.reader.skipped == {"tinytrain0003": "Frame 4 did not arrive."}
    assert [name for batch in batches for name in batch.skipped] == ["tinytrain0003"]


def test_bytes_that_changed_behind_the_ledger_are_not_trained_on(small_world: Path) -> None:
    (source,) = open_sources(small_world, ["even"])
    source.index.stored_sha256[2] = "0" * 64
    with pytest.raises(SetError, match=r"train-000000\.tar holds other bytes at \d+ than its ledger says"):
        source.media(2)


def test_what_a_killed_writer_left_beside_the_cache_is_removed_unless_somebody_is_writing(
    small_world: Path, tmp_path: Path
) -> None:
    (source,) = open_sources(small_world, ["tiny"])
    folder = tmp_path / "cache"
    with commit_in_common(folder / "first.planes") as stream:
        left = Path(stream.name)
    left.write_bytes(b"as a writer leaves it that is killed")
    with commit_in_common(folder / "second.planes") as stream:
        assert open_cache(tmp_path, source, RULE) is not None
        assert left.exists() and Path(stream.name).exists()
    assert open_cache(tmp_path, source, RULE) is not None
    assert not left.exists() and (folder / "second.planes").is_file()
    left.touch()
    (folder / "LOCK").unlink()
    (folder / "LOCK").mkdir()  # nothing can be locked there: the cache is read as it is
    assert open_cache(tmp_path, source, RULE) is not None and left.exists()


def test_the_cache_is_the_same_whoever_decodes_it(small_world: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        (source,) = open_sources(small_world, ["tiny:val"])
        open_cache(tmp_path / str(workers), source, RULE, workers=workers)
    ours, theirs = (
        {path.name: path.read_bytes() for path in (tmp_path / each / "cache").glob("*.planes")} for each in "02"
    )
    assert ours == theirs and len(ours) == 2


def test_a_dead_worker_is_replaced_in_the_same_order(
    small_world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = facts(list(loader(small_world, cache_bytes=NO_CACHE).batches(0, 3)))
    marker = tmp_path / "died"

    def die_once() -> None:
        if not marker.exists():
            marker.touch()
            os._exit(9)

    spoil(monkeypatch, [5], die_once)
    assert facts(list(loader(small_world, cache_bytes=NO_CACHE, workers=2).batches(0, 3))) == whole
    assert marker.exists()


def test_a_clip_that_kills_its_worker_twice_is_named(small_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, [5], lambda: os._exit(9))
    with pytest.raises(
        DataMismatch,
        match=r"Clip tinytrain0005 of tiny:train cannot be decoded \(it ended the process that decoded it twice: exit code 9\)",
    ):
        list(loader(small_world, cache_bytes=NO_CACHE, workers=2).batches(0, 3))


def test_only_labelled_samples_are_taken_where_labels_are_wanted(small_world: Path) -> None:
    (source,) = open_sources(small_world, ["tiny"], labelled=True)
    assert len(source) == 24
    source.index.label_index[:] = -1
    train, evaluation = open_sources(small_world, ["tiny", "tiny:val"], labelled=True)
    assert check_labels([train], [evaluation]) == 4
    evaluation.index.labels[0] = "jumping"
    with pytest.raises(DataMismatch, match="Label 0 is 'right' in tiny:train and 'jumping' in tiny:val"):
        check_labels([train], [evaluation])


def test_nothing_to_read_is_one_sentence(small_world: Path) -> None:
    with pytest.raises(DataMismatch, match="name at least one"):
        open_sources(small_world, [])
    with pytest.raises(SetError, match="There is no set 'absent'"):
        open_sources(small_world, ["absent"])
