"""Sets of pictures: plain JPEG stays byte for byte, everything else is written anew or told why not, and every command copes."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stmae_data import files
from stmae_data.build import BuildReport, BuildRequest, build
from stmae_data.catalog import stats
from stmae_data.dedup import dedup
from stmae_data.encode import Encoding
from stmae_data.errors import ClipRejected, ManifestError, Reason, UsageError
from stmae_data.manifest import load_manifest
from stmae_data.media import source_of_bytes
from stmae_data.media.picture import Picture, read_picture
from stmae_data.report import render_report
from stmae_data.shards import open_set
from stmae_data.verify import verify

TENCH, GOLDFISH = "n01440764", "n01443537"


def pixels(number: int, width: int = 120, height: int = 80) -> Image.Image:
    """A smooth picture of its own for every number."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def coded(picture: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    with io.BytesIO() as out:
        picture.save(out, kind, **options)
        return out.getvalue()


def huge_png(side: int) -> bytes:
    """A PNG of a few bytes that claims to be `side` pixels wide and high."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixel_rows = chunk(b"IDAT", zlib.compress(bytes(1 << 16)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixel_rows + chunk(b"IEND", b"")


def exif(orientation: int) -> bytes:
    found = Image.Exif()
    found[0x0112] = orientation
    return found.tobytes()


PLAIN = coded(pixels(1), quality=80)
TRAIN = {
    f"{TENCH}_1": PLAIN,
    f"{TENCH}_2": coded(pixels(2).convert("L")),
    f"{TENCH}_3": coded(pixels(3).convert("CMYK")),
    f"{TENCH}_4": coded(pixels(4), "PNG"),
    f"{GOLDFISH}_5": coded(pixels(5), exif=exif(6)),
    f"{GOLDFISH}_6": PLAIN[: len(PLAIN) // 2],
    f"{GOLDFISH}_7": huge_png(30_000),
    f"{GOLDFISH}_8": b"no picture here, only words\n",
    f"{GOLDFISH}_9": PLAIN[:2] + b"\xff\xfe\x00\x06note" + PLAIN[2:],
}
VAL = {"ILSVRC2012_val_00000001": coded(pixels(20)), "ILSVRC2012_val_00000002": coded(pixels(21, 20, 17))}


def tar(members: dict[str, bytes]) -> bytes:
    with io.BytesIO() as stream:
        with tarfile.open(fileobj=stream, mode="w") as written:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                written.addfile(info, io.BytesIO(data))
        return stream.getvalue()


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train as the official tar of tars, validation as a flat folder with its list."""
    root = tmp_path_factory.mktemp("imagenet")
    inner = {
        f"{synset}.tar": tar({f"{name}.JPEG": data for name, data in TRAIN.items() if name.startswith(synset)})
        for synset in (TENCH, GOLDFISH)
    }
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar(inner))
    (root / "val").mkdir()
    for name, data in VAL.items():
        (root / "val" / f"{name}.JPEG").write_bytes(data)
    (root / "val.txt").write_text("".join(f"{name}.JPEG 1\n" for name in VAL))
    return root


def run(workspace: Path, imagenet: Path, **options: Any) -> BuildReport:
    return build(BuildRequest(workspace, load_manifest("in1k"), roots=(imagenet,), **options))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, imagenet: Path) -> tuple[Path, BuildReport]:
    workspace = tmp_path_factory.mktemp("pictures")
    return workspace, run(workspace, imagenet)


def ledger(workspace: Path, name: str = "in1k") -> dict[str, dict[str, Any]]:
    return {row["clip_id"]: row for row in files.read_table(open_set(workspace, name).ledgers())}


def members(workspace: Path, name: str = "in1k") -> dict[str, bytes]:
    found = {}
    for path in sorted((workspace / "sets" / name).glob("*.tar")):
        with tarfile.open(path) as opened:
            for member in opened:
                stream = opened.extractfile(member)
                assert stream is not None
                found[member.name] = stream.read()
    return found


def test_every_picture_has_an_outcome_and_plain_ones_keep_their_bytes(
    built: tuple[Path, BuildReport], trap: Callable[..., None]
) -> None:
    workspace, report = built
    assert report.counts == {
        "planned": 11,
        "written": 8,
        "dropped": 0,
        "failed": 3,
        "reasons": {"bomb": 1, "not_media": 1, "truncated": 1},
    }
    rows, stored = ledger(workspace), members(workspace)
    assert {rows[f"{GOLDFISH}_{number}"]["reason"] for number in (6, 7, 8)} == {"truncated", "bomb", "not_media"}
    for name in (f"{TENCH}_1", f"{TENCH}_2", f"{GOLDFISH}_5", f"{GOLDFISH}_9"):
        assert stored[f"{name}.jpg"] == TRAIN[name] and rows[name]["encode_mode"] == "copy"
    assert stored["ILSVRC2012_val_00000002.jpg"] == VAL["ILSVRC2012_val_00000002"], "small pictures are kept"
    kinds = {name: (rows[name]["container"], rows[name]["pixel_format"]) for name in TRAIN if rows[name]["container"]}
    assert kinds[f"{TENCH}_3"] == ("jpeg", "cmyk") and kinds[f"{TENCH}_4"] == ("png", "rgb24")
    for name, number in ((f"{TENCH}_3", 3), (f"{TENCH}_4", 4)):
        assert rows[name]["encode_mode"] == "jpeg"
        picture = Image.open(io.BytesIO(stored[f"{name}.jpg"]))
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (120, 80))
        off = np.abs(np.asarray(picture, np.int16) - np.asarray(pixels(number), np.int16)).mean()
        assert off < 4, f"{name} is not the same picture any more"
    turned = rows[f"{GOLDFISH}_5"]
    assert (turned["rotation_degrees"], turned["width_px"], turned["stored_width_px"]) == (270, 80, 120)
    sample = json.loads(stored[f"{TENCH}_1.json"])
    assert (sample["layout"], sample["num_frames"], sample["fps"]) == ("image", 1, None)
    assert (sample["label"], sample["label_index"]) == (TENCH, 0)
    trap("ImageNet-1k", "written as an RGB JPEG; the ledger says cmyk", "CMYK in a .JPEG")
    trap("ImageNet-1k", "written as a JPEG; the ledger says png", "PNG in a .JPEG")
    trap("ImageNet-1k", "bytes kept, rotation in the ledger", "a picture turned by EXIF")
    trap("ImageNet-1k", f"failed: {rows[f'{GOLDFISH}_6']['reason']}", "a picture cut short")


def test_every_command_copes_with_a_set_of_pictures(built: tuple[Path, BuildReport]) -> None:
    workspace, _ = built
    assert verify(workspace, "in1k", deep=True).as_json()["damages"] == []
    counted = stats(workspace, "in1k")
    assert (counted.written, counted.hours) == (8, 0.0)
    assert {split.split: split.encodings for split in counted.splits} == {
        "train": {"copy": 4, "jpeg": 2},
        "val": {"copy": 2},
    }
    page = render_report(workspace, "in1k").read_text()
    assert "pictures" in page and "of video" not in page
    found = dedup(workspace, ("in1k",), dry_run=True)
    pairs = {frozenset((pair["a"], pair["b"])) for pair in found.as_json()["pairs"]}
    assert pairs == {frozenset((f"{TENCH}_1", f"{GOLDFISH}_9"))}, "the same pixels in two files"


def test_pictures_are_made_smaller_where_the_manifest_asks(workspace: Path, imagenet: Path, tmp_path: Path) -> None:
    toml = tmp_path / "small.toml"
    toml.write_text(
        'name = "small"\nrelease = "1"\nkind = "imagenet"\nshort_side_px = 32\n[splits.train]\n[splits.val]\n'
    )
    build(BuildRequest(workspace, load_manifest(str(toml)), roots=(imagenet / "val",)))
    rows = ledger(workspace, "small")
    sizes = {name: (row["encode_mode"], row["stored_width_px"], row["stored_height_px"]) for name, row in rows.items()}
    assert sizes == {"ILSVRC2012_val_00000001": ("jpeg", 48, 32), "ILSVRC2012_val_00000002": ("copy", 20, 17)}


def test_an_encoding_of_videos_is_refused(workspace: Path, imagenet: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="in1k holds images, which encoding 'layered' cannot store"):
        run(workspace, imagenet, encoding=Encoding())
    with pytest.raises(UsageError, match="web holds videos, which encoding 'image' cannot store"):
        build(BuildRequest(workspace, load_manifest("web"), roots=(tmp_path,), encoding=Encoding(mode="image")))
    toml = tmp_path / "odd.toml"
    toml.write_text('name = "odd"\nrelease = "1"\nkind = "kinetics"\nmedia_kind = "image"\n[splits.train]\n')
    with pytest.raises(ManifestError, match="media_kind is 'image', wanted video for the kind kinetics"):
        load_manifest(str(toml))


def read(data: bytes, short_side_px: int = 0) -> Picture:
    with source_of_bytes(data) as descriptor:
        return read_picture(descriptor, short_side_px=short_side_px)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (huge_png(7_000), Reason.BOMB),
        (coded(Image.new("RGB", (9_000, 20))), Reason.TOO_LARGE),
        (coded(pixels(1), "WEBP"), Reason.NOT_MEDIA),
        (b"#EXTM3U\nhttp://example.org/a.ts\n", Reason.UNSAFE_PLAYLIST),
        (PLAIN[:40], Reason.TRUNCATED),
        (coded(pixels(1), "PNG")[:200], Reason.TRUNCATED),
        (PLAIN[:3] + b"\0" * 400, Reason.CORRUPT_HEADER),
    ],
)
def test_a_hostile_picture_is_refused_with_its_reason(data: bytes, reason: Reason) -> None:
    with pytest.raises(ClipRejected) as rejected:
        read(data)
    assert rejected.value.reason is reason, rejected.value


def test_pixels_are_named_apart_from_their_file() -> None:
    plain = read(PLAIN)
    noted = read(PLAIN[:2] + b"\xff\xfe\x00\x06note" + PLAIN[2:])
    assert plain.pixels_sha256 == noted.pixels_sha256 and plain.data != noted.data
    upright = pixels(9)
    turned = read(coded(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif(6)))
    assert (turned.width_px, turned.height_px) == upright.size
    assert turned.pixels_sha256 == read(coded(upright, "PNG")).pixels_sha256


def test_alpha_stands_over_black_and_deep_gray_becomes_8_bits() -> None:
    clear = Image.new("RGBA", (40, 40), (200, 100, 50, 0))
    assert read(coded(clear, "PNG")).luma.max() == 0
    deep = Image.fromarray(np.full((40, 40), 0x8000, np.uint16))
    assert set(np.unique(read(coded(deep, "PNG")).luma)) == {128}
