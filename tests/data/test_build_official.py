"""Official layouts with their traps, built from real clips from end to end."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stmae_data import files
from stmae_data.build import BuildReport, BuildRequest, build
from stmae_data.encode import Encoding, ffmpeg_executable
from stmae_data.errors import SetError
from stmae_data.manifest import load_manifest
from stmae_data.publish import push
from stmae_data.shards import open_set
from stmae_data.verify import verify

A, B, C, D, E = "-abc_DEF-01", "__23456789a", "cccccccccc_", "dddddddddd-", "eeeeeeeeeee"
HEADER = "label,youtube_id,time_start,time_end,split\n"


def tar(path: Path, members: dict[str, bytes], *, is_compressed: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with io.BytesIO() as stream:
        with tarfile.open(fileobj=stream, mode="w") as written:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                written.addfile(info, io.BytesIO(data))
        path.write_bytes(gzip.compress(stream.getvalue()) if is_compressed else stream.getvalue())


def run(workspace: Path, name: str, root: Path, **options: Any) -> BuildReport:
    return build(BuildRequest(workspace, load_manifest(name), roots=(root,), **options))


def rows(workspace: Path, name: str) -> dict[str, dict[str, Any]]:
    """Ledger rows by the id of their video."""
    return {row["platform_id"]: row for row in files.read_table(open_set(workspace, name).ledgers())}


@pytest.fixture(scope="module")
def videos(kinetics_tree: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(kinetics_tree.rglob("*.mp4"))]


def test_k400_is_built_from_its_archives(
    workspace: Path, tmp_path: Path, videos: list[bytes], trap: Callable[..., None]
) -> None:
    name = "./{}_000001_000011.mp4".format
    part = {f"./._{A}_000001_000011.mp4": b"x", name(A): videos[0], name(B): videos[1][:1500], name(C): b""}
    tar(tmp_path / "train" / "part_120.tar.gz", {**part, name(D): videos[2][:1500]}, is_compressed=False)
    tar(tmp_path / "val" / "part_0.tar.gz", {name(E): videos[3]})
    tar(tmp_path / "replacement_for_corrupted_k400.tgz", {f"replacement/{B}_000001_000011.mp4": videos[1]})
    (tmp_path / "annotations").mkdir()
    lines = "".join(f'"abseiling",{each},1,11,train,0\n' for each in (A, B, C, D, "ggggggggggg"))
    (tmp_path / "annotations" / "train.csv").write_text(HEADER.replace("split", "split,is_cc") + lines)
    (tmp_path / "annotations" / "validate.csv").write_text(f"{HEADER}abseiling,{E},1.0,11.0,validate\n")
    report = run(workspace, "k400", tmp_path)
    assert report.counts["reasons"] == {"empty": 1, "truncated": 1} and report.counts["written"] == 3
    found = rows(workspace, "k400")
    ends = {key: (row["split"], row["outcome"], row["reason"]) for key, row in found.items()}
    assert ends == {
        A: ("train", "written", None),
        B: ("train", "written", None),
        C: ("train", "failed", "empty"),
        D: ("train", "failed", "truncated"),
        E: ("val", "written", None),
    }
    assert found[B]["source_uri"].endswith("replacement_for_corrupted_k400.tgz")
    assert {row["annotations"][0]["label_index"] for row in found.values()} == {0}
    book = files.read_table(workspace / "sets" / "k400" / "meta" / "reconciliation.parquet")
    (line,) = [each for each in book if each["split"] == "train" and each["annotated"]]
    assert (line["annotated"], line["present"], line["missing"], line["replaced"]) == (5, 4, 1, 1)
    assert verify(workspace, "k400").ok
    trap("Kinetics folders", f"failed: {found[D]['reason']}", "moov atom not found")


def test_an_archive_of_k700_2020_holds_its_class_folder(
    workspace: Path, tmp_path: Path, videos: list[bytes], trap: Callable[..., None]
) -> None:
    tar(tmp_path / "train" / "k700_train_017.tar.gz", {f"zumba/{A}_000001_000011.mp4": videos[0]})
    tar(tmp_path / "test" / "k700_test_003.tar.gz", {f"{B}_000001_000011.mp4": videos[1]})
    run(workspace, "k700-2020", tmp_path)
    found = rows(workspace, "k700-2020")
    ends = {key: (row["split"], row["annotations"][0]["label_raw"]) for key, row in found.items()}
    assert ends == {A: ("train", "zumba"), B: ("test", None)}
    trap(
        "CVDF archives",
        "the folder inside names the class",
        "an archive named by number, its class folder inside (K700-2020)",
    )


def test_k600_holds_more_files_than_its_lists_name(
    workspace: Path, tmp_path: Path, videos: list[bytes], trap: Callable[..., None]
) -> None:
    members = {f"{each}_000001_000011.mp4": data for each, data in zip((A, B, C), videos, strict=False)}
    tar(tmp_path / "train" / "zumba.tar.gz", members)
    (tmp_path / "train.txt").write_text(f"zumba,{A},1,11,train\n")
    (tmp_path / "test.csv").write_text(f"youtube_id,time_start,time_end,split\n{C},1,11,test\n")
    (tmp_path / "kinetics600_holdout_test.csv").write_text(f"{HEADER}yoga,{C},1,11,holdout_test\n")
    run(workspace, "k600", tmp_path)
    found = rows(workspace, "k600")
    ends = {key: (row["split"], row["annotations"][0]["label_raw"]) for key, row in found.items()}
    assert ends == {A: ("train", "zumba"), B: ("train", None), C: ("test", "yoga")}
    book = files.read_table(workspace / "sets" / "k600" / "meta" / "reconciliation.parquet")
    assert sum(line["unannotated"] for line in book if line["split"] == "train") == 1
    trap("CVDF archives", "kept without a label, counted as unannotated", "files the release lacks (K600)")
    trap("Kinetics tables", "it labels the clips of test.csv", "a held-out test table of its own (K600)")


def webm(path: Path, number: int) -> None:
    """VP9 at 12 frames a second, as the release has it, of a picture of its own."""
    picture = f"testsrc2=size=86x64:rate=12:duration=2,hue=h={60 * number}"
    command = [ffmpeg_executable(), "-v", "error", "-f", "lavfi", "-i", picture, "-c:v", "libvpx-vp9", "-deadline"]
    subprocess.run([*command, "realtime", "-cpu-used", "8", "-pix_fmt", "yuv420p", str(path)], check=True)


@pytest.mark.parametrize("mode", ["layered", "remux"])
def test_something_something_is_built_and_never_passed_on(
    workspace: Path, tmp_path: Path, mode: str, trap: Callable[..., None]
) -> None:
    folder = tmp_path / "20bn-something-something-v2"
    folder.mkdir()
    train = [{"id": "42", "label": "holding cup", "template": "Holding [something]", "placeholders": ["cup"]}]
    for name, value in (("labels", {"Holding something": "0"}), ("train", train), ("validation", [])):
        (tmp_path / f"something-something-v2-{name}.json").write_text(json.dumps(value))
    webm(folder / "42.webm", 1)
    run(workspace, "ssv2", tmp_path, encoding=Encoding(mode=mode, short_side_px=240))
    row = rows(workspace, "ssv2")["42"]
    assert (row["clip_id"], row["video_codec"], row["stored_num_frames"] > 16) == ("ssv2_42", "vp9", True)
    with tarfile.open(workspace / "sets" / "ssv2" / "train-000000.tar") as stored:
        assert stored.getnames() == ["ssv2_42.json", "ssv2_42.mp4"]
    assert verify(workspace, "ssv2").ok
    with pytest.raises(SetError, match=r"Set ssv2 may not be passed on: its manifest ssv2"):
        push(workspace, "ssv2", "me/ssv2")
    trap(
        "Something-Something V2",
        f"stored as mp4 by {row['encode_mode']}",
        "webm, VP9, which the Hub does not type as video",
    )
    trap("Something-Something V2", "push refuses in one sentence", "no redistribution")
