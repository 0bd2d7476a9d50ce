"""Official parts: lists, numbers and mirrors; tables unpacked; what may not be fetched says where it is."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stmae_data import files
from stmae_data.errors import ManifestError, SourceError, UsageError
from stmae_data.fetch import Client, FetchReport, FetchRequest, Policy, fetch
from stmae_data.manifest import load_manifest
from stmae_data.sources import rows_for

QUICK = Policy(allow_private=True, deadline_seconds=20.0, read_timeout_seconds=5.0, backoff_seconds=0.001)


def bring(workspace: Path, source: str, **options: Any) -> FetchReport:
    return fetch(FetchRequest(workspace, source, **options), client=Client(QUICK))


def tar(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


ID = "abcdefghij{}"
CSV = "label,youtube_id,time_start,time_end,split\n"


@pytest.fixture
def k400(server: Any) -> Any:
    """A mirror of Kinetics-400 in the bucket's own layout, three parts and a replacement; its lists name the official places."""
    official = "https://s3.amazonaws.com/kinetics/400"
    for split, number in (("train", 2), ("val", 1), ("test", 0)):
        urls = [f"{official}/{split}/part_{part}.tar.gz" for part in range(number)]
        server.serve(f"/400/{split}/k400_{split}_path.txt", "\n".join(urls).encode() + b"\n")
        for part in range(number):
            clip = f"{ID.format(part)}_000000_000010.mp4"
            server.serve(f"/400/{split}/part_{part}.tar.gz", tar({f"./{clip}": f"{split} {part}".encode() * 9}))
        rows = "".join(f"zumba,{ID.format(part)},0,10,{split}\n" for part in range(number))
        server.serve(f"/400/annotations/{split}.csv", (CSV + rows).encode())
    server.serve("/400/replacement_for_corrupted_k400.tgz", tar({f"{ID.format(1)}_000000_000010.mp4": b"better" * 9}))
    return server


def test_a_release_is_fetched_and_read(k400: Any, workspace: Path) -> None:
    report = bring(workspace, "k400", base_url=k400.base)
    folder = workspace / "raw" / "k400"
    assert names(folder) == [
        "LOCK",
        "annotations/test.csv",
        "annotations/train.csv",
        "annotations/val.csv",
        "fetch.json",
        "fetched.parquet",
        "replacements/replacement_for_corrupted_k400.tgz",
        "train/part_0.tar.gz",
        "train/part_1.tar.gz",
        "val/part_0.tar.gz",
    ]
    assert report.counts["planned"] == report.counts["fetched"] == 7 and report.exit_code(is_strict=True) == 0
    listing = rows_for(load_manifest("k400"), roots=[folder])
    assert [(row.split, row.platform_id, row.annotations[0].label_raw) for row in listing.rows] == [
        ("train", ID.format(1), "zumba"),
        ("train", ID.format(0), "zumba"),
        ("val", ID.format(0), "zumba"),
    ]
    assert "replacements" in listing.rows[0].source_uri, "the replacement overrules the part"
    urls = files.read_table(folder / "fetched.parquet", "SELECT url FROM book")
    assert all(row["url"].startswith("https://s3.amazonaws.com/kinetics/400/") for row in urls)
    before = len(k400.seen)
    assert bring(workspace, "k400", base_url=k400.base).num_new == 0
    assert {path for path, _ in k400.seen[before:]} == {
        f"/400/{each}/k400_{each}_path.txt" for each in ("train", "val", "test")
    }


def test_splits_limit_and_jobs_choose_parts(k400: Any, workspace: Path) -> None:
    bring(workspace, "k400", base_url=k400.base + "/", splits=("val",), name="a")
    assert (
        names(workspace / "raw" / "a" / "val") == ["part_0.tar.gz"] and not (workspace / "raw" / "a" / "train").exists()
    )
    bring(workspace, "k400", base_url=k400.base, splits=("train",), limit=1, name="b")
    assert names(workspace / "raw" / "b" / "train") == ["part_0.tar.gz"]
    from stmae_data.records import Job

    for number in (1, 2, 3):
        bring(workspace, "k400", base_url=k400.base, job=Job(number, 3), name="c")
    assert len([name for name in names(workspace / "raw" / "c") if name.endswith(("gz", "csv"))]) == 7
    dry = bring(workspace, "k400", base_url=k400.base, is_dry_run=True, name="d")
    assert dry.counts["pending"] == 7 and not (workspace / "raw" / "d").exists()


def test_missing_part_is_an_exit_code_and_a_reason(k400: Any, workspace: Path) -> None:
    del k400.routes["/400/train/part_1.tar.gz"]
    k400.serve("/400/val/part_0.tar.gz", b"<html>moved</html>")
    report = bring(workspace, "k400", base_url=k400.base)
    assert report.reasons == {"net_4xx": 1, "not_media": 1} and report.exit_code(is_strict=False) == 3


def test_list_that_cannot_be_had_stops_with_a_sentence(k400: Any, workspace: Path) -> None:
    del k400.routes["/400/train/k400_train_path.txt"]
    with pytest.raises(
        SourceError, match=r"list of parts .*k400_train_path\.txt cannot be fetched \(net_4xx: status 404"
    ):
        bring(workspace, "k400", base_url=k400.base)


def test_list_that_leaves_the_mirror_is_refused(k400: Any, workspace: Path) -> None:
    k400.serve("/400/train/k400_train_path.txt", b"https://elsewhere.example/part_0.tar.gz\n")
    with pytest.raises(SourceError, match=r"elsewhere\.example/part_0\.tar\.gz is not below"):
        bring(workspace, "k400", base_url=k400.base)


def test_classes_choose_archives_that_are_named_after_them(server: Any, workspace: Path) -> None:
    official = "https://s3.amazonaws.com/kinetics/600"
    for split in ("train", "val"):
        urls = [f"{official}/{split}/{name}.tar.gz" for name in ("air drumming", "zumba", "yoga")]
        server.serve(f"/600/{split}/k600_{split}_path.txt", "\n".join(urls).encode())
        server.serve(f"/600/annotations/{split}.txt", b"x")
        server.serve(f"/600/{split}/air%20drumming.tar.gz", tar({"a": b"a"}))
        server.serve(f"/600/{split}/zumba.tar.gz", tar({"a": b"b"}))
    bring(workspace, "k600", base_url=server.base, splits=("train", "val"), classes=("Air_Drumming", "zumba"))
    folder = workspace / "raw" / "k600"
    assert names(folder / "train") == ["air drumming.tar.gz", "zumba.tar.gz"] == names(folder / "val")
    with pytest.raises(SourceError, match="has no class 'air drummin'"):
        bring(workspace, "k600", base_url=server.base, splits=("train",), classes=("air drummin",))
    with pytest.raises(
        SourceError, match="archives of k600 test are not named after classes; choose among --split train val"
    ):
        bring(workspace, "k600", base_url=server.base, classes=("zumba",))
    with pytest.raises(
        SourceError, match="k400 train are not named after classes; fetch them all and choose with build --classes"
    ):
        bring(workspace, "k400", base_url=server.base, splits=("train",), classes=("zumba",))


def test_films_of_ava_stand_elsewhere_than_their_list(server: Any, workspace: Path, trap: Callable[..., None]) -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("ava_train_v2.2.csv", "abcdefghijk,0902,0.1,0.1,0.5,0.9,12,0\n")
        archive.writestr("ava_v2.2/ava_val_v2.2.csv", "")
        archive.writestr("../../ava_test_v2.2.txt", "abcdefghijz\n")
        archive.writestr("__MACOSX/._ava_train_v2.2.csv", "x")
        archive.writestr("run.sh", "x")
    server.serve("/annotations/ava_v2.2.zip", zipped.getvalue())
    server.serve("/annotations/ava_file_names_trainval_v2.1.txt", b"abcdefghijk.mkv\nabcdefghijl.mp4\n")
    server.serve("/annotations/ava_file_names_test_v2.1.txt", b"abcdefghijm.mp4\n")
    for place in ("/trainval/abcdefghijk.mkv", "/trainval/abcdefghijl.mp4", "/test/abcdefghijm.mp4"):
        server.serve(place)
    report = bring(workspace, "ava", base_url=server.base)
    folder = workspace / "raw" / "ava"
    assert report.counts["fetched"] == 4
    assert [name for name in names(folder) if "/" in name] == [
        "annotations/ava_test_v2.2.txt",
        "annotations/ava_train_v2.2.csv",
        "annotations/ava_v2.2.zip",
        "annotations/ava_val_v2.2.csv",
        "test/abcdefghijm.mp4",
        "train/abcdefghijk.mkv",
        "train/abcdefghijl.mp4",
    ]
    rows = rows_for(load_manifest("ava"), roots=[folder]).rows
    assert [row.clip_id for row in rows] == ["ava_abcdefghijk_000900_000904"]
    trap("AVA v2.2", "fetch takes the v2.1 names", "no v2.2 list of files, only v2.1")


def test_tables_alone(server: Any, workspace: Path) -> None:
    """The videos of k700 are nowhere, its tables are in one archive."""
    row = CSV + "zumba,abcdefghij1,0,10,{}\n"
    members = {f"kinetics700/{split}.csv": row.format(split).encode() for split in ("train", "validate", "test")}
    server.serve(
        "/kinetics700.tar.gz", tar({**members, "kinetics700/._train.csv": b"x", "kinetics700/readme.md": b"x"})
    )
    bring(workspace, "k700", base_url=server.base, is_tables_only=True)
    assert names(workspace / "raw" / "k700" / "annotations") == [
        "kinetics700.tar.gz",
        "test.csv",
        "train.csv",
        "validate.csv",
    ]


@pytest.mark.parametrize(
    ("name", "where"), [("ssv2", "qualcomm.com"), ("in1k", "image-net.org"), ("k700", "stmae-data fetch k700-2020")]
)
def test_what_may_not_be_fetched_says_where_it_is(name: str, where: str, workspace: Path) -> None:
    with pytest.raises(SourceError, match=where) as caught:
        bring(workspace, name)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and not (workspace / "raw").exists()


TOML = 'name = "own"\nrelease = "1"\nkind = "kinetics"\nbase_url = "{base}/"\n{top}\n[splits.train]\narchives = ["{base}/{path}"]\n{more}'


def own(folder: Path, base: str, path: str, *, top: str = "", more: str = "") -> str:
    (folder / "own.toml").write_text(TOML.format(base=base, path=path, top=top, more=more))
    return str(folder / "own.toml")


def test_numbers_and_checksums_of_a_manifest_of_ones_own(server: Any, workspace: Path, tmp_path: Path) -> None:
    parts = {f"part_{number:02d}.tar": tar({"a": bytes([number])}) for number in (8, 9, 10)}
    for name, data in parts.items():
        server.serve(f"/x/{name}", data)
    md5 = hashlib.md5(parts["part_08.tar"]).hexdigest()
    digests = f'[checksums]\n"x/part_08.tar" = "md5:{md5}"\n"x/part_09.tar" = "sha256:{"0" * 64}"\n'
    report = bring(workspace, own(tmp_path, server.base, "x/part_{08..10}.tar", more=digests))
    assert names(workspace / "raw" / "own" / "train") == ["part_08.tar", "part_10.tar"]
    assert report.reasons == {"hash_mismatch": 1}


def test_part_is_gone_on_with(server: Any, workspace: Path, tmp_path: Path) -> None:
    data = bytes(range(251)) * 20_000
    server.ranges("/x/big.tar", [(data, '"v1"')], cut=1_500_000)
    bring(workspace, own(tmp_path, server.base, "x/big.tar"))
    assert (workspace / "raw" / "own" / "train" / "big.tar").read_bytes() == data
    assert server.seen[1][1]["Range"] == "bytes=1500000-"


@pytest.mark.parametrize(
    ("top", "more", "message"),
    [
        ('base_urls = "x"', "", "unknown key 'base_urls'"),
        ("", 'archives_below = "videos"', "'videos' is no place to fetch from; wanted a URL that ends in /"),
        ('archives_by_class = ["vall"]', "", "no split 'vall'"),
        ("", '[checksums]\n"a" = "crc:1"', 'wanted "sha256:" and 64 or "md5:" and 32'),
    ],
)
def test_mistake_in_a_manifest_is_named(top: str, more: str, message: str, workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=message):
        bring(workspace, own(tmp_path, "http://127.0.0.1", "a.tar", top=top, more=more))


def test_mirror_needs_a_base(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('name = "own"\nrelease = "1"\nkind = "kinetics"\n[splits.train]\n')
    with pytest.raises(UsageError, match="own names no base_url"):
        bring(workspace, str(tmp_path / "own.toml"), base_url="http://127.0.0.1/")
    with pytest.raises(SourceError, match="names nothing to fetch; for addresses of your own give their list"):
        bring(workspace, str(tmp_path / "own.toml"))


def test_bomb_in_place_of_a_table_is_refused(server: Any, workspace: Path, tmp_path: Path) -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.csv", bytes(300 << 20))
    server.serve("/t.zip", zipped.getvalue())
    toml = own(tmp_path, server.base, "none.tar", more=f'annotations = ["{server.base}/t.zip"]\n')
    with pytest.raises(SourceError, match="that is no table, fetch it again"):
        bring(workspace, toml, is_tables_only=True)
    server.serve("/t.zip", b"PK broken zip")
    with pytest.raises(SourceError, match="cannot be unpacked"):
        bring(workspace, toml, is_tables_only=True, name="other")
