"""Tars of other tools: read as they are, in an order that their headers decide, and said to be unproven everywhere."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stmae_data.errors import SetError, StmaeDataError, UsageError
from stmae_data.frames import read_clips
from stmae_data.records import SetRef
from stmae_data.shards import foreign_set, is_foreign
from stmae_train.config import Recipe
from stmae_train.errors import ConfigError, DataMismatch
from stmae_train.loader import Batch, CropRule, ReadOptions, TrainLoader, open_sources
from stmae_train.pretrain import PretrainRequest, pretrain
from stmae_train.views import FrameRule

CROP = CropRule((0.5, 1.0), (3 / 4, 4 / 3), True)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as written:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            written.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def clips(small_world: Path) -> list[bytes]:
    """Twelve stored videos."""
    (source,) = open_sources(small_world, ["tiny"])
    return [source.media(row) for row in range(12)]


@pytest.fixture
def tars(tmp_path: Path, clips: list[bytes]) -> Path:
    """Three tars of four videos as webdataset users write them: folders in the names, cls and json members, one broken video."""
    for number in range(3):
        members: dict[str, bytes] = {}
        for place in range(4):
            key = f"part/{number}{place}"
            members[f"{key}.cls"] = str(place % 2).encode()
            members[f"{key}.json"] = json.dumps({"label": ["left", "right"][place % 2], "layout": "layered-4"}).encode()
            members[f"{key}.mp4"] = clips[4 * number + place]
        if number == 2:
            members["part/23.mp4"] = b"no video"
            members["part/lonely.txt"] = b"no video either"
            members["part/24.json"] = b"{"
        write_tar(tmp_path / "foreign" / f"x-{number:06d}.tar", members)
    return tmp_path / "foreign"


def loader(workspace: Path, references: list[str], *, world: int = 1, rank: int = 0, workers: int = 0) -> TrainLoader:
    return TrainLoader(
        workspace,
        open_sources(workspace, references),
        rule=FrameRule(4, 4),
        crop=CROP,
        seed=5,
        batch_videos=4,
        repeats=2,
        rank=rank,
        world_size=world,
        options=ReadOptions(workers=workers),
    )


def ids(batches: list[Batch]) -> list[tuple[int, str]]:
    return sorted(
        (int(number), clip_id)
        for batch in batches
        for number, clip_id in zip(batch.numbers, batch.clip_ids, strict=True)
    )


def test_a_pattern_a_glob_and_a_list_are_the_same_samples(tmp_path: Path, tars: Path) -> None:
    pattern = f"{tars}/x-{{000000..000002}}.tar"
    names = [str(path) for path in sorted(tars.iterdir())]
    for references in ([pattern], [f"{tars}/x-*.tar"], names):
        assert all(map(is_foreign, references))
        (source,) = open_sources(tmp_path, references)
        assert len(source) == 11 and source.is_foreign and not source.is_layered
        assert list(source.index.clip_ids[:2]) == ["x-000000/part/00", "x-000000/part/01"]
        assert source.index.num_frames.tolist()[:4] == [64, 64, 64, 64] and source.index.fps[0] == 30
        assert source.left_out.keys() == {"x-000002/part/23", "x-000002/part/24"}
        assert source.index.label_index[:3].tolist() == [0, 1, 0] and source.index.labels[1] == "right"
    digests = {open_sources(tmp_path, [each])[0].index.digest for each in (pattern, f"{tars}/x-*.tar")}
    assert len(digests) == 1 and len(list((tmp_path / "cache").iterdir())) == 1  # lengths are counted once
    assert not any(map(is_foreign, ("k400", "k700:train/clean@0.5", "web@2")))


def test_the_order_depends_on_names_and_sizes_alone(tmp_path: Path, tars: Path, clips: list[bytes]) -> None:
    pattern = [f"{tars}/x-*.tar"]
    whole = list(loader(tmp_path, pattern).batches(0, 6))
    shares = [list(loader(tmp_path, pattern, world=2, rank=rank, workers=rank).batches(0, 6)) for rank in range(2)]
    assert ids([batch for share in shares for batch in share]) == ids(whole)
    assert ids(list(loader(tmp_path, pattern).batches(3, 6))) == ids(whole[3:])
    assert whole[0].skipped == () and {each for batch in whole for each in batch.clip_ids} >= {"x-000000/part/00"}
    elsewhere = tmp_path / "moved"
    tars.rename(elsewhere)
    assert ids(list(loader(tmp_path, [f"{elsewhere}/x-*.tar"]).batches(0, 6))) == ids(whole)
    write_tar(elsewhere / "x-000002.tar", {"new.mp4": clips[0]})
    assert ids(list(loader(tmp_path, [f"{elsewhere}/x-*.tar"]).batches(0, 6))) != ids(whole)


def test_frames_are_read_the_general_way_whatever_their_json_says(tmp_path: Path, tars: Path) -> None:
    reading = loader(tmp_path, [f"{tars}/x-000000.tar"])
    assert reading.reader.caches == [None]  # the cache rests on the aligned way
    (batch,) = reading.batches(0, 1)
    source = reading.sources[0]
    row = list(source.index.clip_ids).index(batch.clip_ids[0])
    (plan,) = reading.plans(0, 1)
    wanted = read_clips(source.media(row), plan.frames[0].tolist(), layout="original")
    found = batch.planes[0, :, : 48 * 48].reshape(4, 48, 48)
    assert torch.equal(found, torch.from_numpy(wanted.y[wanted.rows(plan.frames[0, 0].tolist())]))


def test_tars_of_pictures_are_sets_of_pictures(tmp_path: Path) -> None:
    members = {}
    for number in range(4):
        with io.BytesIO() as out:
            Image.fromarray(np.full((20, 24, 3), 60 * number, dtype=np.uint8)).save(out, "PNG")
            members[f"{number}.png"] = out.getvalue()
    write_tar(tmp_path / "p.tar", members)
    (batch,) = loader(tmp_path, [str(tmp_path / "p.tar")]).batches(0, 1)
    assert len(batch.pictures) == 8 and batch.num_frames == 4
    assert sorted({int(each[0, 0, 0]) for each in batch.pictures}) == [0, 60, 120, 180]


def test_a_run_says_that_nothing_is_proven(
    tmp_path: Path, tars: Path, small_recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    pattern = f"{tars}/x-{{000000..000002}}.tar@1"
    with caplog.at_level(logging.WARNING, logger="stmae.train"):
        run = pretrain(
            PretrainRequest(tmp_path, (pattern,), small_recipe, tmp_path / "run", clips=16, device="cpu", pictures=2)
        )
    assert "Nothing can be proven about" in caplog.text and "2 samples of" in caplog.text
    (entry,) = json.loads((run.run_dir / "data.json").read_text())["sets"]
    assert entry["is_foreign"] and entry["set_digest"] is None and len(entry["shards"]) == 3
    assert entry["clips"] == 11 and entry["left_out"].keys() == {"x-000002/part/23", "x-000002/part/24"}
    assert "foreign tars 11" in (run.run_dir / "CARD.md").read_text()


def test_foreign_tars_are_mixed_with_sets_and_kept_out_of_studies(
    tmp_path: Path, small_world: Path, tars: Path
) -> None:
    reference = f"{tars}/x-*.tar@0.5"
    drawn = ids(list(loader(small_world, [reference, "tiny@0.5"]).batches(0, 256)))
    assert sum(each.startswith("x-") for _, each in drawn) == len(drawn) / 2
    with pytest.raises(UsageError, match="is not a set reference"):
        SetRef.parse(reference)  # what the leak guard of a study asks first


def test_what_cannot_be_read_is_said_in_one_sentence(tmp_path: Path, tars: Path) -> None:
    for reference, kind, words in (
        (f"{tars}/x-{{000000..000009}}.tar", SetError, r"There is no .*x-000003\.tar"),
        (f"{tars}/y-*.tar", SetError, "which .* asks for"),
        (f"{tars}/absent.tar", SetError, r"absent\.tar cannot be read \(No such file"),
        ("https://example.org/x-{000..003}.tar", UsageError, "is not a file here; fetch it first"),
        (f"{tars}/x-*.tar@0", UsageError, "has a weight that is no number above 0"),
    ):
        with pytest.raises(kind, match=words):
            open_sources(tmp_path, [reference])
    packed = tmp_path / "packed.tar"
    packed.write_bytes(b"\x1f\x8b rest")
    with pytest.raises(SetError, match="is compressed"):
        foreign_set(tmp_path, [str(packed)])
    cut = tmp_path / "cut.tar"
    cut.write_bytes((tars / "x-000000.tar").read_bytes()[:5000])
    with pytest.raises(SetError, match="is cut short"):
        foreign_set(tmp_path, [str(cut)])
    (tmp_path / "words.tar").write_bytes(b"words " * 400)
    with pytest.raises(StmaeDataError, match="cannot be read as a tar"):
        foreign_set(tmp_path, [str(tmp_path / "words.tar")])
    write_tar(tmp_path / "texts.tar", {"a.json": b"{}"})
    with pytest.raises(SetError, match="has 1 samples and none that can be read"):
        foreign_set(tmp_path, [str(tmp_path / "texts.tar")])
    write_tar(tmp_path / "unlabelled.tar", {"a.jpg": b"x"})
    with pytest.raises(DataMismatch, match="none with a label"):
        open_sources(tmp_path, [str(tmp_path / "unlabelled.tar")], labelled=True)


def test_prefetch_and_its_bounds() -> None:
    with pytest.raises(ConfigError, match=r"ReadOptions\.prefetch is 0, wanted 1 or more"):
        ReadOptions(prefetch=0)
