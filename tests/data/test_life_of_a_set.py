"""The life of a set after its first build: what failed recovers, what left stays away, what grows keeps every old byte."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stmae_data import files
from stmae_data.build import BuildReport, BuildRequest, build, reasons_of
from stmae_data.build.removed import read_tombstones
from stmae_data.errors import Reason, SetError, UsageError
from stmae_data.manifest import load_manifest
from stmae_data.records import PLAN_COLUMNS, Job
from stmae_data.rewrite import REMOVED_COLUMNS, Verdict, rewrite
from stmae_data.shards import open_set
from stmae_data.sources.listed import fetched_name
from stmae_data.verify import verify

WEB = 'name = "web"\nrelease = "1"\nkind = "{kind}"\nshort_side_px = 64\n{more}'
ONE_SPLIT, TWO_SPLITS = "[splits.train]\n", 'evaluation_splits = ["val"]\n[splits.train]\n[splits.val]\n'


def manifest(folder: Path, *, kind: str = "folder", more: str = ONE_SPLIT) -> Path:
    path = folder / "web.toml"
    path.write_text(WEB.format(kind=kind, more=more))
    return path


def run(workspace: Path, toml: Path, *roots: Path, retry: str | None = None, **options: Any) -> BuildReport:
    reasons = frozenset() if retry is None else reasons_of(retry.split())
    return build(BuildRequest(workspace, load_manifest(str(toml)), roots=roots, retry=reasons, **options))


def rows(workspace: Path) -> dict[str, dict[str, Any]]:
    """Ledger rows of the set `web` by the name of their file."""
    found = files.read_table(open_set(workspace, "web").ledgers())
    return {Path(row["source_uri"]).name: row for row in found}


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): files.sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("LOCK", "LOCK.jobs")
    }


@pytest.fixture(scope="module")
def videos(kinetics_tree: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((kinetics_tree / "train").rglob("*.mp4"))]


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory, videos: list[bytes]) -> Path:
    """A set of one good file, one that was cut short and one that is no video; then the cut one is whole again."""
    base = tmp_path_factory.mktemp("failed")
    (base / "raw").mkdir()
    (base / "raw" / "good.mp4").write_bytes(videos[0])
    (base / "raw" / "late.mp4").write_bytes(videos[1][:1500])
    (base / "raw" / "text.mp4").write_text("no video here\n")
    toml = manifest(base)
    run(base, toml, base / "raw")
    before = snapshot(base / "sets" / "web")
    run(base, toml, base / "raw", retry="truncated not_media")
    assert snapshot(base / "sets" / "web") == before, "a retry that recovers nothing leaves no trace"
    (base / "raw" / "late.mp4").write_bytes(videos[1])
    return base


@pytest.fixture(scope="module")
def recovered(tmp_path_factory: pytest.TempPathFactory, failed: Path) -> tuple[Path, BuildReport]:
    workspace = copy_of(failed, tmp_path_factory.mktemp("recovered"))
    return workspace, run(workspace, failed / "web.toml", failed / "raw", retry="truncated not_media")


def copy_of(base: Path, workspace: Path) -> Path:
    shutil.copytree(base / "sets", workspace / "sets")
    return workspace


def test_a_recovered_row_moves_behind_the_old_shards(failed: Path, recovered: tuple[Path, BuildReport]) -> None:
    workspace, report = recovered
    assert (report.version, report.counts["planned"], report.counts["written"]) == (2, 3, 2)
    found, old = rows(workspace), rows(failed)
    assert {name: row["reason"] for name, row in found.items()} == {
        "good.mp4": None,
        "late.mp4": None,
        "text.mp4": "not_media",
    }
    assert (found["late.mp4"]["shard"], found["late.mp4"]["attempts"]) == ("train-000001", 2)
    assert (found["late.mp4"]["row_id"], old["late.mp4"]["shard"]) == (old["late.mp4"]["row_id"], "train-000000")
    assert found["text.mp4"] == old["text.mp4"]
    tar = Path("sets") / "web" / "train-000000.tar"
    assert (workspace / tar).read_bytes() == (failed / tar).read_bytes()
    assert verify(workspace, "web").as_json()["damages"] == []
    before = snapshot(workspace / "sets" / "web")
    run(workspace, failed / "web.toml", failed / "raw", retry="truncated not_media")
    assert snapshot(workspace / "sets" / "web") == before


QUICK = {"retry.done", "settle.done:2", "plan.rename", "retry_done.remove"}
POINTS = [
    pytest.param(point, marks=() if point in QUICK else pytest.mark.battery)
    for point in (
        *(f"retry.{step}" for step in ("write", "fsync", "rename", "done")),
        *(f"settle.{step}:{number}" for step in ("write", "fsync", "rename", "done") for number in (1, 2)),
        *(f"plan.{step}" for step in ("write", "fsync", "rename", "done")),
        *(f"seal.{step}" for step in ("write", "fsync", "rename", "done")),
        *("shard.rename", "ledger.rename", "ledger.done", "retry_done.remove"),
    )
]


@pytest.mark.parametrize("point", POINTS)
def test_a_retry_killed_anywhere_ends_with_the_same_bytes(
    failed: Path, recovered: tuple[Path, BuildReport], workspace: Path, point: str
) -> None:
    copy_of(failed, workspace)
    places = [str(failed / "web.toml"), "--from", str(failed / "raw"), "-w", str(workspace), "--workers", "1"]
    command = [sys.executable, "-m", "stmae_cli.data", "build", *places, "--retry-failed", "truncated", "not_media"]
    environment = {**os.environ, "STMAE_FAULT": point if ":" in point else f"{point}:1"}
    killed = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert killed.returncode in (-signal.SIGKILL, 1), killed.stderr
    if point == "settle.done:2":
        with pytest.raises(SetError, match=r"A retry of web was interrupted; finish it first"):
            rewrite(workspace, "web", [], run_id="x")
        assert "rewrite_unfinished" in {damage.code for damage in verify(workspace, "web").damages}
    run(workspace, failed / "web.toml", failed / "raw", retry="truncated not_media")
    assert snapshot(workspace / "sets" / "web") == snapshot(recovered[0] / "sets" / "web")


def test_only_reasons_that_may_be_undone_are_retried() -> None:
    assert reasons_of([]) == {reason for reason in Reason if reason.is_retryable}
    assert reasons_of(["empty"]) == {Reason.EMPTY}
    for code in ("timeouts", "removed", "leak"):
        with pytest.raises(UsageError, match=f"nothing to retry under '{code}'; wanted one of empty, not_media"):
            reasons_of([code])


@pytest.mark.parametrize("job", [None, Job(1, 1)], ids=["build", "job"])
def test_a_copy_that_arrives_later_takes_the_place_of_its_address(
    workspace: Path, tmp_path: Path, videos: list[bytes], job: Job | None
) -> None:
    url = "https://example.org/films/one.mp4?key=secret"
    (tmp_path / "list.csv").write_text(f"url,title\n{url},one\n")
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "local.mp4").write_bytes(videos[2])
    toml = manifest(tmp_path, kind="table")
    table = (tmp_path / "list.csv",)
    first = run(workspace, toml, raw, annotations=table)
    assert first.counts["reasons"] == {"net_error": 1}
    (raw / fetched_name(url)).write_bytes(videos[0])
    second = run(workspace, toml, raw, annotations=table, job=job)
    assert (second.version, second.counts["planned"], second.counts["written"]) == (2, 1, 1)
    assert not (workspace / "sets" / "web" / "meta" / "retry.parquet").exists()
    assert rows(workspace)[fetched_name(url)]["title"] == "one"
    assert verify(workspace, "web").as_json()["damages"] == []


def test_what_was_taken_out_stays_out_under_any_name(workspace: Path, tmp_path: Path, videos: list[bytes]) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for number, name in enumerate(("gone.mp4", "kept.mp4")):
        (raw / name).write_bytes(videos[number])
    toml = manifest(tmp_path)
    run(workspace, toml, raw)
    row_id = rows(workspace)["gone.mp4"]["row_id"]
    rewrite(workspace, "web", [Verdict(row_id, Reason.LEAK, "d" * 32, detail="of k400:val")], run_id="r1")
    cleaned = open_set(workspace, "web")
    # Back under another name, and a copy of a clip that stands.
    (raw / "back.mp4").write_bytes(videos[0])
    (raw / "twin.mp4").write_bytes(videos[1])
    third = run(workspace, toml, raw)
    found = rows(workspace)
    assert (third.version, third.counts["planned"], third.counts["written"]) == (3, 4, 1)
    assert {name: row["reason"] for name, row in found.items()} == {
        "gone.mp4": "leak",
        "kept.mp4": None,
        "back.mp4": "removed",
        "twin.mp4": "duplicate",
    }
    assert found["back.mp4"]["reason_detail"] == "it was taken out of this set before (leak)"
    assert found["twin.mp4"]["duplicate_of"] == found["kept.mp4"]["clip_id"]
    assert verify(workspace, "web").as_json()["damages"] == []
    # A shard that was lost comes back as it was cleaned, not as it was planned.
    folder = workspace / "sets" / "web"
    (folder / "train-000000.tar").unlink()
    (folder / "meta" / "ledger" / "train-000000.parquet").unlink()
    run(workspace, toml, raw)
    assert files.sha256_file(folder / "train-000000.tar") == cleaned.shards[0].sha256
    assert rows(workspace)["gone.mp4"]["reason"] == "removed"
    assert verify(workspace, "web").as_json()["damages"] == []


def test_source_bytes_that_were_taken_out_stay_out_under_another_id(
    workspace: Path, tmp_path: Path, videos: list[bytes]
) -> None:
    """Clips that have ids of their own are known by their bytes only once they are read."""
    raw = tmp_path / "train"
    raw.mkdir()
    (raw / "aaaaaaaaaaa_000000_000010.mp4").write_bytes(videos[0])
    toml = manifest(tmp_path, kind="kinetics")
    run(workspace, toml, raw)
    (row,) = rows(workspace).values()
    rewrite(workspace, "web", [Verdict(row["row_id"], Reason.OPTED_OUT, "d" * 32)], run_id="r1")
    (raw / "bbbbbbbbbbb_000000_000010.mp4").write_bytes(videos[0])
    run(workspace, toml, raw)
    found = rows(workspace)["bbbbbbbbbbb_000000_000010.mp4"]
    assert (found["reason"], found["stage"]) == ("removed", "decode")


def test_a_piece_that_was_taken_out_leaves_the_other_pieces_of_its_film(tmp_path: Path, workspace: Path) -> None:
    plan = [
        {"row_id": "cut", "split": "train", "shard": "train-000000", "is_cut": True, "start_ms": 0, "end_ms": 4000},
        {"row_id": "whole", "split": "train", "shard": "train-000000", "is_cut": False},
    ]
    gone = [
        {"row_id": "cut", "clip_id": "ava_x_000000_000004", "source_sha256": "f" * 64, "reason": "removed"},
        {"row_id": "whole", "clip_id": "web_y", "source_sha256": "e" * 64, "reason": "filtered"},
    ]
    files.commit_table(tmp_path / "meta" / "plan.parquet", plan, PLAN_COLUMNS, point="plan")
    files.commit_table(tmp_path / "meta" / "removed.parquet", gone, REMOVED_COLUMNS, point="removed")
    found = read_tombstones(tmp_path)
    assert found.problem_of_bytes("f" * 64, is_cut=True, start_ms=0, end_ms=4000) is not None
    assert found.problem_of_bytes("f" * 64, is_cut=True, start_ms=4000, end_ms=8000) is None
    assert found.problem_of_bytes("f" * 64, is_cut=False, start_ms=None, end_ms=None) is None
    assert found.problem_of_bytes("e" * 64, is_cut=True, start_ms=4000, end_ms=8000) is not None
    assert found.problem_of_id("new", "ava_x_000000_000004") == found.problem_of_id("cut", None)
    assert found.problem_of_id("new", None) is None


def test_a_clip_of_two_splits_is_kept_by_the_evaluation_split(
    workspace: Path, tmp_path: Path, videos: list[bytes]
) -> None:
    for split in ("train", "val"):
        (tmp_path / "raw" / split).mkdir(parents=True)
        (tmp_path / "raw" / split / f"same_{split}.mp4").write_bytes(videos[0])
    run(workspace, manifest(tmp_path, more=TWO_SPLITS), tmp_path / "raw")
    found = rows(workspace)
    assert (found["same_val.mp4"]["reason"], found["same_train.mp4"]["reason"]) == (None, "duplicate")
    assert found["same_train.mp4"]["duplicate_of"] == found["same_val.mp4"]["clip_id"]
    assert verify(workspace, "web").as_json()["damages"] == []


def test_a_set_made_from_another_grows_like_any(workspace: Path, tmp_path: Path, videos: list[bytes]) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(2):
        (raw / f"{number}.mp4").write_bytes(videos[number])
    toml = manifest(tmp_path)
    run(workspace, toml, raw)
    verdict = Verdict(rows(workspace)["0.mp4"]["row_id"], Reason.FILTERED, "d" * 32)
    rewrite(workspace, "web", [verdict], run_id="r1", to="clean")
    (raw / "2.mp4").write_bytes(videos[2])
    report = run(workspace, toml, raw, name="clean")
    assert (report.version, report.counts["planned"], report.counts["written"]) == (2, 3, 2)
    assert open_set(workspace, "clean").seal["parents"][0]["name"] == "web"
    assert verify(workspace, "clean").as_json()["damages"] == []
