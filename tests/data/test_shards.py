"""Tars of ours: fixed bytes, strict reading, one seal."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from stmae_data import files, shards
from stmae_data.errors import SetError
from stmae_data.records import SAMPLE_FIELDS, SetRef


def some_samples(count: int) -> list[shards.Sample]:
    return [
        shards.Sample(
            f"clip{number:03d}", shards.sample_json({"clip_id": f"clip{number:03d}"}), bytes([number]) * (700 + number)
        )
        for number in range(count)
    ]


def seal_one(folder: Path, count: int = 5) -> shards.ShardInfo:
    """A sealed set of one shard of made-up bytes."""
    samples = some_samples(count)
    places, sha256, _ = shards.commit_shard(folder / "train-000000.tar", samples)
    rows = [
        {
            "row_id": f"{number:032x}",
            "split": "train",
            "clip_id": sample.key,
            "plan_order": number,
            "outcome": "written",
            "shard": "train-000000",
            "ordinal": place.ordinal,
            "media_offset": place.media_offset,
            "media_bytes": place.media_bytes,
            "stored_num_frames": 64,
            "stored_fps": 30.0,
            "stored_seconds": 2.0,
            "stored_sha256": "x",
            "media_kind": "video",
            "annotations": [{"label_raw": "a", "label_index": number}] if number else [],
        }
        for number, (sample, place) in enumerate(zip(samples, places, strict=True))
    ]
    shards.commit_ledger(folder, "train-000000", rows, tar_sha256=sha256)
    info = shards.shard_info(folder, "train-000000")
    shards.seal_set(
        folder,
        [info],
        name=folder.name,
        version=1,
        created_from={},
        recipe={"layout": "layered-4"},
        counts={},
        parents=[],
        versions={},
    )
    return info


def test_the_same_samples_give_the_same_tar_and_an_empty_one_is_two_zero_blocks(tmp_path: Path) -> None:
    first = shards.commit_shard(tmp_path / "a.tar", some_samples(3))
    second = shards.commit_shard(tmp_path / "b.tar", some_samples(3))
    assert first == second
    shards.commit_shard(tmp_path / "c.tar", [])
    assert (tmp_path / "c.tar").read_bytes() == bytes(1024)


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset's own streams
def test_a_tar_opens_in_tarfile_and_in_plain_webdataset(tmp_path: Path) -> None:
    shards.commit_shard(tmp_path / "train-000000.tar", some_samples(3))
    with tarfile.open(tmp_path / "train-000000.tar") as archive:
        assert archive.getnames() == [f"clip{n:03d}.{kind}" for n in range(3) for kind in ("json", "mp4")]
    import webdataset

    with webdataset.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False) as dataset:
        found = list(dataset)
    assert [sample["__key__"] for sample in found] == ["clip000", "clip001", "clip002"]
    assert set(json.loads(found[0]["json"])) == set(SAMPLE_FIELDS)


def test_offsets_reach_the_bytes(tmp_path: Path) -> None:
    samples = some_samples(3)
    places, _, _ = shards.commit_shard(tmp_path / "a.tar", samples)
    with (tmp_path / "a.tar").open("rb") as stream:
        for sample, place in zip(samples, places, strict=True):
            assert shards.read_range(stream.fileno(), place.media_offset, place.media_bytes, name="a") == sample.media
        with pytest.raises(SetError, match="shorter than its ledger says"):
            shards.read_range(stream.fileno(), places[-1].media_offset, 10**6, name="a.tar")


def test_every_cut_of_a_tar_is_noticed(tmp_path: Path) -> None:
    shards.commit_shard(tmp_path / "a.tar", some_samples(20))
    data = (tmp_path / "a.tar").read_bytes()
    assert len(list(shards.iterate_tar(io.BytesIO(data), name="a.tar"))) == 40
    for size in range(0, len(data), 512):
        with pytest.raises(SetError):
            list(shards.iterate_tar(io.BytesIO(data[:size]), name="a.tar"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_only_regular_members_are_read(kind: bytes) -> None:
    header = tarfile.TarInfo("x.mp4")
    header.type = kind
    with pytest.raises(SetError, match="not a regular file"):
        list(shards.iterate_tar(io.BytesIO(header.tobuf() + bytes(1024)), name="a.tar"))


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "é", "a" * 96])
def test_a_bad_or_repeated_key_is_refused_and_leaves_no_tar(tmp_path: Path, key: str) -> None:
    with pytest.raises(SetError, match="cannot be a key"):
        shards.commit_shard(tmp_path / "a.tar", [shards.Sample(key, b"", b"")])
    with pytest.raises(SetError, match="cannot be a key"):
        shards.commit_shard(tmp_path / "a.tar", [shards.Sample("k", b"", b""), shards.Sample("k", b"", b"")])
    assert not list(tmp_path.iterdir())


def test_the_longest_key_fits_into_a_tar(tmp_path: Path) -> None:
    longest = shards.Sample("a" * 95, b"{}", b"x", extension="webm")
    shards.commit_shard(tmp_path / "a.tar", [longest])
    with (tmp_path / "a.tar").open("rb") as stream:
        assert [member.name for member in shards.iterate_tar(stream, name="a.tar")] == [
            "a" * 95 + ".json",
            "a" * 95 + ".webm",
        ]


def test_a_set_is_read_through_its_seal(workspace: Path) -> None:
    seal_one(workspace / "sets" / "tiny")
    index = shards.sample_index(workspace, SetRef("tiny"))
    assert len(index) == 5
    assert index.label_index.tolist() == [-1, 1, 2, 3, 4]
    assert index.labels.tolist() == [None, "a", "a", "a", "a"]
    assert np.all(index.num_frames == 64)
    assert index.layout == "layered-4"


def test_what_is_missing_or_cut_is_named(workspace: Path) -> None:
    with pytest.raises(SetError, match="There is no set 'tiny'"):
        shards.open_set(workspace, "tiny")
    folder = workspace / "sets" / "tiny"
    seal_one(folder)
    with pytest.raises(SetError, match="has no split 'val'; it has train"):
        shards.sample_index(workspace, SetRef("tiny", "val"))
    with pytest.raises(SetError, match="There is no selection 'clean'"):
        shards.sample_index(workspace, SetRef("tiny", "train", "clean"))
    tar = folder / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(SetError, match=r"train-000000.tar has .* bytes, set.json says"):
        shards.open_set(workspace, "tiny")
    tar.unlink()
    with pytest.raises(SetError, match=r"train-000000.tar is missing"):
        shards.open_set(workspace, "tiny")
    (folder / "meta" / "set.json").unlink()
    with pytest.raises(SetError, match=r"has no meta/set.json, so its build has not finished"):
        shards.open_set(workspace, "tiny")


def test_a_selection_is_refused_once_its_set_has_changed(workspace: Path) -> None:
    seal_one(workspace / "sets" / "tiny")
    digest = shards.open_set(workspace, "tiny").digest
    base = workspace / "selections" / "two"
    files.commit_table(
        base.with_suffix(".parquet"),
        [{"clip_id": "clip001"}, {"clip_id": "clip003"}],
        {"clip_id": "VARCHAR"},
        point="s",
    )
    files.commit_json(
        base.with_suffix(".json"), {"digest": "d", "parents": [{"name": "tiny", "digest": digest}]}, point="s"
    )
    index = shards.sample_index(workspace, SetRef("tiny", "train", "two"))
    assert index.clip_ids.tolist() == ["clip001", "clip003"]
    assert index.digest == "d"
    files.commit_json(
        base.with_suffix(".json"), {"digest": "d", "parents": [{"name": "tiny", "digest": "other"}]}, point="s"
    )
    with pytest.raises(SetError, match="was made from another state of tiny"):
        shards.sample_index(workspace, SetRef("tiny", "train", "two"))
