"""Takedown: what is named leaves every set, its bytes are nowhere left, everything else stays as it was, and it stays away."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stmae_data import files
from stmae_data.errors import Busy, SelectionError, SetError, SourceError, UsageError
from stmae_data.remove import RemoveReport, Wanted, read_wanted, remove
from stmae_data.shards import open_set
from stmae_data.verify import verify

SCRIPT = """
import sys
from pathlib import Path
from stmae_data.remove import Wanted, remove
remove(Path(sys.argv[1]), Wanted(uploaders=("ann",)), reason="asked", removed_at="2026-01-02T03:04:05+00:00")
"""
WEB = "https://films.example/watch"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, small_sets: ModuleType) -> Path:
    """`web`: ten clips of uploaders ann and bob; `k`: YouTube pieces, two of one video, and one clip with the bytes of web's first."""
    workspace = tmp_path_factory.mktemp("shelf")
    clip = small_sets.clip
    web = [
        clip(
            "train", n, uploader_id="ann" if n % 5 == 0 else "bob", channel_id=f"c{n}", url=f"https://v.example/{n}.mp4"
        )
        for n in range(10)
    ]
    small_sets.make(workspace, "web", web)
    k = [
        clip("train", n, source=f"k{n}", youtube=("abcdefghij_" if n < 2 else f"video-{n:05d}", 10 * n, 10 * n + 10))
        for n in range(6)
    ]
    k += [clip("val", n, url=WEB, source=f"film {n}") for n in (90, 91)]
    copy = clip("val", 7, source="another file")
    k.append(copy | {name: web[0][name] for name in ("_media", "stored_sha256", "stored_bytes")})
    small_sets.make(workspace, "k", k)
    return workspace


@pytest.fixture
def workspace(shelf: Path, tmp_path: Path) -> Path:
    """A copy to take things out of."""
    shutil.copytree(shelf, tmp_path / "shelf")
    return tmp_path / "shelf"


def rows(workspace: Path, name: str, where: str = "TRUE") -> list[dict[str, Any]]:
    return files.read_table(
        open_set(workspace, name).ledgers(), f"SELECT * FROM book WHERE {where} ORDER BY shard, ordinal, row_id"
    )


def media_of(workspace: Path, name: str, row: dict[str, Any]) -> bytes:
    with (workspace / "sets" / name / f"{row['shard']}.tar").open("rb") as stream:
        stream.seek(row["media_offset"])
        return stream.read(row["media_bytes"])


def take(workspace: Path, **named: Any) -> RemoveReport:
    options = {key: named.pop(key) for key in ("sets", "dry_run", "removed_at") if key in named}
    return remove(workspace, read_wanted(**named), reason="asked by its owner", **options)


def test_what_is_named_leaves_every_set_and_its_bytes_are_nowhere_left(workspace: Path) -> None:
    row = rows(workspace, "web", "uploader_id = 'ann'")[0]
    media = {media_of(workspace, "web", each) for each in rows(workspace, "web", "uploader_id = 'ann'")}
    before = {name: open_set(workspace, name) for name in ("web", "k")}
    untouched = [
        shard
        for shard in before["web"].shards
        if shard.name not in {r["shard"] for r in rows(workspace, "web", "uploader_id = 'ann'")}
    ]
    report = take(workspace, uploaders=["ann"])
    assert [name for name, _ in report.clips] == ["k", "web", "web"]  # in k under another id, without an uploader
    assert not report.not_found and report.num_barred == 0
    web = workspace / "sets" / "web"
    assert not [path for path in web.rglob("*") if path.is_file() for each in media if each in path.read_bytes()]
    after = open_set(workspace, "web")
    assert (after.version, open_set(workspace, "k").version) == (2, 2)
    assert open_set(workspace, "k").of_split("train") == before["k"].of_split("train")
    assert set(untouched) <= set(after.shards)
    assert verify(workspace, "web").ok
    tombstones = files.read_table(web / "meta" / "removed.parquet")
    assert {each["clip_id"] for each in tombstones} == {clip for name, clip in report.clips if name == "web"}
    assert {(each["reason"], each["detail"]) for each in tombstones} == {("removed", "asked by its owner")}
    decisions = files.read_table(sorted((web / "meta" / "decisions").glob("*.parquet")))
    assert {each["detail"] for each in decisions} == {"by uploader: asked by its owner"}
    now = rows(workspace, "web", f"row_id = '{row['row_id']}'")[0]
    assert now["decision_id"] in {each["decision_id"] for each in decisions} and now["outcome"] == "dropped"


def test_the_same_bytes_under_another_id_go_along(workspace: Path) -> None:
    copy = rows(workspace, "k", "split = 'val' AND url IS NULL")[0]
    report = take(workspace, hashes=[copy["stored_sha256"]])
    assert {name for name, _ in report.clips} == {"web", "k"}
    (twin,) = [row for row in rows(workspace, "web") if row["stored_sha256"] == copy["stored_sha256"]]
    assert twin["reason"] == "removed"


def test_a_whole_file_takes_the_pieces_cut_from_it_along_and_a_piece_only_itself(
    tmp_path: Path, small_sets: ModuleType
) -> None:
    small_sets.make(tmp_path, "whole", [small_sets.clip("train", n, source=f"film {n}") for n in range(2)])
    pieces = [
        small_sets.clip("train", 10 + n, source="film 0", youtube=(f"piece-{n:05d}", 10 * n, 10 * n + 10))
        for n in range(3)
    ]
    small_sets.make(tmp_path, "pieces", pieces)
    whole = rows(tmp_path, "whole")
    first = next(row for row in whole if row["source_sha256"] == pieces[0]["source_sha256"])
    gone = take(tmp_path, ids=["piece-00001"], dry_run=True)
    assert [clip_id for _, clip_id in gone.clips] == ["piece-00001_000010_000020"]
    gone = take(tmp_path, ids=[first["clip_id"]])
    assert [name for name, _ in gone.clips] == ["pieces", "pieces", "pieces", "whole"]


@pytest.mark.parametrize(
    ("named", "clips"),
    [
        ({"ids": ["abcdefghij_"]}, 2),
        ({"ids": ["abcdefghij__000010_000020"]}, 1),
        ({"urls": ["https://www.youtube.com/watch?v=abcdefghij_&t=3"]}, 2),
        ({"urls": ["https://youtu.be/video-00003"]}, 1),
        ({"urls": ["http://user@V.example:80/3.mp4?x=1#y"]}, 1),
        ({"urls": [WEB]}, 2),
        ({"uploaders": ["c4", "c5"]}, 2),
    ],
)
def test_clips_are_found_as_people_name_them(workspace: Path, named: dict[str, list[str]], clips: int) -> None:
    before = {name: open_set(workspace, name).digest for name in ("web", "k")}
    report = take(workspace, **named, dry_run=True)
    assert len(report.clips) == clips and not report.not_found and not report.sets
    assert {name: open_set(workspace, name).digest for name in before} == before
    assert not (workspace / "remove.lock").exists()


def test_an_address_whose_query_tells_films_apart_takes_nothing_blindly(workspace: Path) -> None:
    with pytest.raises(SelectionError, match=r"stands for 2 clips of k.*name them by --ids or --hashes"):
        take(workspace, urls=[f"{WEB}?film=90"])


def test_only_the_named_sets_are_touched(workspace: Path) -> None:
    copy = rows(workspace, "k", "split = 'val' AND url IS NULL")[0]
    take(workspace, hashes=[copy["stored_sha256"]], sets=["k"])
    assert open_set(workspace, "web").version == 1 and open_set(workspace, "k").version == 2


def test_rows_that_failed_are_barred_too(workspace: Path) -> None:
    row = rows(workspace, "web", "uploader_id = 'bob'")[0]
    ledger = workspace / "sets" / "web" / "meta" / "ledger" / f"{row['shard']}.parquet"
    take(workspace, ids=[row["clip_id"]])
    _reopen(workspace, row["row_id"], ledger)
    before = (workspace / "sets" / "web" / f"{row['shard']}.tar").stat().st_ino
    report = take(workspace, ids=[row["clip_id"]])
    assert report.num_barred == 1 and not report.clips
    assert (workspace / "sets" / "web" / f"{row['shard']}.tar").stat().st_ino == before
    now = rows(workspace, "web", f"row_id = '{row['row_id']}'")[0]
    assert (now["outcome"], now["reason"]) == ("dropped", "removed") and verify(workspace, "web").ok
    assert take(workspace, ids=[row["clip_id"]]).num_before == 1


def _reopen(workspace: Path, row_id: str, ledger: Path) -> None:
    """Let a row have failed for a passing reason, as if it had never been removed."""
    from stmae_data.shards import commit_ledger, count_outcomes, seal_set, shard_info

    folder = workspace / "sets" / "web"
    table = files.read_table(ledger)
    for row in table:
        if row["row_id"] == row_id:
            row.update(outcome="failed", reason="net_error", decision_id=None)
    commit_ledger(folder, ledger.stem, table)
    found = open_set(workspace, "web")
    seal_set(
        folder,
        [shard_info(folder, shard.name) for shard in found.shards],
        name="web",
        version=found.version + 1,
        created_from=found.seal["created_from"],
        recipe=found.seal["recipe"],
        counts=count_outcomes(found.ledgers()),
        parents=[],
        versions={},
    )


def test_vectors_of_removed_clips_go_too(workspace: Path) -> None:
    row = rows(workspace, "web")[0]
    path = workspace / "sets" / "web" / "meta" / "embeddings" / "enc.parquet"
    vectors = [{"clip_id": each["clip_id"], "model": "enc"} for each in rows(workspace, "web")]
    files.commit_table(path, vectors, {"clip_id": "VARCHAR", "model": "VARCHAR"}, point="x", metadata={"model": "enc"})
    take(workspace, ids=[row["clip_id"]])
    left = {each["clip_id"] for each in files.read_table(path)}
    assert left == {each["clip_id"] for each in vectors} - {row["clip_id"]}
    assert files.read_table_metadata(path)["model"] == "enc"


STEPS = [
    f"{point}.{step}:{number}"
    for point, number in (
        ("takedown", 1),
        ("decisions", 1),
        ("intent", 1),
        ("shard", 1),
        ("shard", 2),
        ("fingerprints", 1),
        ("ledger", 1),
        ("ledger", 2),
        ("removed", 1),
        ("seal", 1),
    )
    for step in ("write", "rename", "done")
]


def run(workspace: Path, fault: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"STMAE_FAULT": fault} if fault else {})}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(workspace)], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "steps",
    [
        ["decisions.done:1", "shard.rename:1", "ledger.done:1", "seal.write:1"],
        pytest.param([*STEPS, "stale_report.remove:1", "intent_done.remove:1"], marks=pytest.mark.battery),
    ],
)
def test_killed_anywhere_the_same_command_finishes(
    workspace: Path, small_sets: ModuleType, tmp_path: Path, steps: list[str]
) -> None:
    clean = tmp_path / "clean"
    shutil.copytree(workspace, clean)
    assert run(clean).returncode == 0
    wanted = small_sets.snapshot(clean / "sets")
    for step in steps:
        killed = tmp_path / "killed"
        shutil.copytree(workspace, killed)
        assert run(killed, step).returncode == -9, step
        remove(killed, Wanted(uploaders=("ann",)), reason="asked", removed_at="2026-01-02T03:04:05+00:00")
        assert small_sets.snapshot(killed / "sets") == wanted, step
        shutil.rmtree(killed)


def test_a_second_removal_is_told_to_wait(workspace: Path) -> None:
    with files.lock(workspace / "remove.lock", what="x"), pytest.raises(Busy, match="is being written by process"):
        take(workspace, uploaders=["ann"])
    with (
        files.lock(workspace / "sets" / "web" / "meta" / "LOCK", what="x"),
        pytest.raises(Busy, match="Set web is being written by process"),
    ):
        take(workspace, uploaders=["ann"])
    assert Busy.exit_code == 75 and open_set(workspace, "web").version == 1


def test_a_set_that_still_plans_such_clips_is_told(workspace: Path) -> None:
    plan = workspace / "sets" / "k" / "meta" / "plan.parquet"
    from stmae_data.records import PLAN_COLUMNS

    planned = files.read_table(plan)
    planned.append({"row_id": "f" * 32, "split": "train", "shard": "train-000009", "uploader_id": "ann"})
    files.commit_table(plan, planned, PLAN_COLUMNS, point="plan")
    with pytest.raises(SetError, match="Set k plans such clips that are not built yet"):
        take(workspace, uploaders=["ann"])
    assert open_set(workspace, "web").version == 2


def test_copies_on_this_disk_are_named_and_left(workspace: Path, small_sets: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "film.mp4"
    source.write_bytes(b"film")
    small_sets.make(workspace, "mine", [small_sets.clip("train", 1, uploader_id="eve", source_uri=f"file://{source}")])
    unpacked = workspace / "exports" / "mine-train" / f"{rows(workspace, 'mine')[0]['clip_id']}.mp4"
    unpacked.parent.mkdir(parents=True)
    unpacked.write_bytes(b"clip")
    report = take(workspace, uploaders=["eve"], removed_at="2026-01-02T03:04:05+00:00")
    assert report.copies == (source, unpacked) and source.is_file() and unpacked.is_file()
    (tombstone,) = files.read_table(workspace / "sets" / "mine" / "meta" / "removed.parquet")
    assert tombstone["removed_at"] == "2026-01-02T03:04:05+00:00"


def test_pages_with_pictures_of_them_are_named_and_left(workspace: Path) -> None:
    gone, stays = (rows(workspace, "web", f"uploader_id = '{name}'")[0]["clip_id"] for name in ("ann", "bob"))
    (workspace / "selections").mkdir()
    pages = [workspace / name for name in ("review.html", "selections/a.html", "selections/b.html")]
    for page, clip_id in zip(pages, (gone, gone, stays), strict=True):
        page.write_text(f"<h4><code>{clip_id}</code></h4><img src='data:image/jpeg;base64,/9j/x+='>")
    assert take(workspace, ids=[gone]).copies == tuple(pages[:2]) and all(page.is_file() for page in pages)
    pages[0].write_text("made anew")
    assert take(workspace, ids=[gone]).copies == (pages[1],)


def test_lists_may_come_from_files(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("A" * 64 + "\n\n" + "b" * 64 + "\n")
    assert read_wanted(hashes=[str(path), "c" * 64]).hashes == ("a" * 64, "b" * 64, "c" * 64)
    path.write_text("x y\n")
    with pytest.raises(UsageError, match=r"Line 1 of .* is 'x y', wanted a clip or platform id"):
        read_wanted(ids=[str(path)])
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(SourceError, match="cannot be read as lines of text"):
        read_wanted(ids=[str(path)])


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ({}, "Nothing is named; say what is to go"),
        ({"hashes": ["abc"]}, "'abc' is neither a sha256 of 64 hex digits nor a file"),
        ({"urls": ["v.example/1"]}, "neither an address as https"),
        ({"ids": ["a b"]}, "neither a clip or platform id"),
    ],
)
def test_what_is_no_name_is_refused(named: dict[str, list[str]], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_wanted(**named)


def test_a_folder_without_sets_is_told_and_stays_as_it_was(tmp_path: Path) -> None:
    for workspace in (tmp_path / "typo", tmp_path):
        with pytest.raises(SetError, match=r"There are no sets in .*; name the folder that holds sets/"):
            take(workspace, ids=["x"])
    assert not list(tmp_path.iterdir())


def test_what_no_set_knows_is_told(workspace: Path) -> None:
    with pytest.raises(SelectionError, match=r"knows any of it \(id nobody\)"):
        take(workspace, ids=["nobody"])
    report = take(workspace, ids=["nobody"], uploaders=["ann"], dry_run=True)
    assert report.not_found == ("id nobody",)
    with pytest.raises(UsageError, match="needs a reason"):
        remove(workspace, Wanted(ids=("x",)), reason=" ")
