"""ImageNet-1k as official tars and as folders, with every way its validation classes come."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from stmae_data.errors import SourceError
from stmae_data.manifest import load_manifest
from stmae_data.records import is_valid_key
from stmae_data.sources import open_member, rows_for

TENCH, GOLDFISH = "n01440764", "n01443537"
VAL = "ILSVRC2012_val_{:08d}".format


def image(path: Path, data: bytes = b"jpeg") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tar(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as written:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            written.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def test_official_tars_are_read_as_they_are(tmp_path: Path, trap: Callable[..., None]) -> None:
    inner = {f"{TENCH}.tar": tar({f"{TENCH}_10026.JPEG": b"a"}), f"{GOLDFISH}.tar": tar({f"{GOLDFISH}_1.JPEG": b"b"})}
    image(tmp_path / "ILSVRC2012_img_train.tar", tar(inner))
    image(tmp_path / "ILSVRC2012_img_val.tar", tar({f"{VAL(1)}.JPEG": b"c", f"{VAL(2)}.JPEG": b"d"}))
    (tmp_path / "val.txt").write_text(f"{VAL(1)}.JPEG 1\n{VAL(2)}.JPEG 0\n")
    listing = rows_for(load_manifest("in1k"), roots=[tmp_path])
    assert [(row.clip_id, row.split, row.media_kind, row.annotations[0].label_index) for row in listing.rows] == [
        (f"{TENCH}_10026", "train", "image", 0),
        (f"{GOLDFISH}_1", "train", "image", 1),
        (VAL(1), "val", "image", 1),
        (VAL(2), "val", "image", 0),
    ]
    assert [b"".join(open_member(row.source_uri, row.source_member or "")) for row in listing.rows] == [
        b"a",
        b"b",
        b"c",
        b"d",
    ]
    assert all(is_valid_key(row.clip_id or "") and row.platform == "imagenet" for row in listing.rows)
    assert not listing.notes
    trap("ImageNet-1k", "read through, nothing unpacked", "a tar of tars")
    trap("ImageNet-1k", "a picture; the key is the stem", "the suffix .JPEG")


def test_folders_give_the_class(tmp_path: Path, trap: Callable[..., None]) -> None:
    image(tmp_path / "train" / GOLDFISH / f"{GOLDFISH}_7.JPEG")
    image(tmp_path / "val" / TENCH / f"{VAL(3)}.JPEG")
    image(tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG")
    image(tmp_path / "train" / GOLDFISH / "notes.txt")
    listing = rows_for(load_manifest("in1k"), roots=[tmp_path])
    assert {row.clip_id: (row.split, row.annotations[0].label_raw) for row in listing.rows} == {
        f"{GOLDFISH}_7": ("train", GOLDFISH),
        VAL(3): ("val", TENCH),
        "ILSVRC2012_test_00000001": ("test", None),
    }
    assert listing.skipped == {"other_file": 1}
    chosen = rows_for(load_manifest("in1k"), roots=[tmp_path], classes=[TENCH], splits=["val"])
    assert [row.clip_id for row in chosen.rows] == [VAL(3)]
    trap("ImageNet-1k", "planned, without a class", "test pictures without a class")


def test_flat_validation_without_a_list_is_kept_and_noted(tmp_path: Path, trap: Callable[..., None]) -> None:
    image(tmp_path / f"{VAL(1)}.JPEG")
    listing = rows_for(load_manifest("in1k"), roots=[tmp_path])
    assert [(row.split, row.annotations[0].label_raw) for row in listing.rows] == [("val", None)]
    assert "1 validation images have no class" in listing.notes[0]
    trap("ImageNet-1k", "kept without a class, and noted", "flat validation without any list")


@pytest.mark.parametrize(
    "text",
    [
        f"{VAL(1)}.JPEG 1\n",
        f"{VAL(1)} {GOLDFISH}\n",
        f"ImageId,PredictionString\n{VAL(1)},{GOLDFISH} 111 108 441 193 \n",
        f'"filename","label"\n"{VAL(1)}.JPEG","{GOLDFISH}"\n',
    ],
)
def test_lists_of_any_layout_are_read(tmp_path: Path, text: str, trap: Callable[..., None]) -> None:
    image(tmp_path / "val" / f"{VAL(1)}.JPEG")
    (tmp_path / "LOC_val_solution.csv").write_text(text)
    (row,) = rows_for(load_manifest("in1k"), roots=[tmp_path]).rows
    assert (row.annotations[0].label_raw, row.annotations[0].label_index) == (GOLDFISH, 1)
    trap("ImageNet-1k", "every picture has its class", "flat validation, its classes in a list of any layout")


def devkit(folder: Path) -> None:
    folder.mkdir()
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "O")]
    savemat(folder / "meta.mat", {"synsets": np.array([(1, GOLDFISH), (2, TENCH)], dtype=kinds)})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n")


def test_devkit_numbers_are_its_own(tmp_path: Path, trap: Callable[..., None]) -> None:
    image(tmp_path / "val" / f"{VAL(1)}.JPEG")
    image(tmp_path / "val" / f"{VAL(2)}.JPEG")
    devkit(tmp_path / "data")
    rows = rows_for(load_manifest("in1k"), roots=[tmp_path]).rows
    assert [(row.clip_id, row.annotations[0].label_raw) for row in rows] == [(VAL(1), TENCH), (VAL(2), GOLDFISH)]
    (tmp_path / "data" / "meta.mat").write_bytes(b"no matlab file")
    with pytest.raises(SourceError, match=r"meta\.mat is not the devkit's table"):
        rows_for(load_manifest("in1k"), roots=[tmp_path])
    (tmp_path / "data" / "meta.mat").unlink()
    with pytest.raises(SourceError, match=r"meta\.mat has to lie beside it"):
        rows_for(load_manifest("in1k"), roots=[tmp_path])
    trap("ImageNet-1k", "translated to synsets by meta.mat", "the devkit's own numbers, in meta.mat")


def test_line_that_names_no_class_is_told(tmp_path: Path) -> None:
    image(tmp_path / f"{VAL(1)}.JPEG")
    bad = tmp_path / "list.txt"
    bad.write_text(f"{VAL(1)} 0\n{VAL(2)} 1000\n")
    with pytest.raises(
        SourceError, match=r"Line 2 of .*list\.txt is .* wanted a validation image and its index or synset"
    ):
        rows_for(load_manifest("in1k"), roots=[tmp_path], annotations=[bad])
